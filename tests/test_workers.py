"""Work in pieces on a cluster: what the pieces share travels once to each worker, and is sent again where all were lost."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import numpy as np
import pytest

from ragst_sd._workers import spread_over_workers


def shared_of(log):
    """An array that writes down each process in which it is unpacked; made here, so that it travels by value."""

    class Shared:
        def __init__(self):
            self.values = np.arange(100_000.0)

        def __setstate__(self, state):
            self.__dict__.update(state)
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")

    return Shared()


def work():
    return lambda shared, item: float(shared.values[item] * 3)


def test_without_a_client_nothing_travels(tmp_path):
    shared = shared_of(tmp_path / "log")
    assert list(spread_over_workers(work(), [1, 5, 2], shared)) == [3.0, 15.0, 6.0]
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_what_is_shared_travels_once_to_each_worker_and_is_sent_again_when_lost(tmp_path):
    distributed = pytest.importorskip("distributed")
    log = tmp_path / "log"
    shared, items = shared_of(log), list(range(40))
    expected = [3.0 * item for item in items]
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None)
    try:
        with distributed.Client(cluster) as client:
            workers = sorted(client.run(os.getpid).values())
            assert list(spread_over_workers(work(), items, shared)) == expected
            # The scheduler lives in this process: it has not had it in its hands. A worker that is in a hurry asks twice.
            unpacked = list(map(int, log.read_text().split()))
            assert sorted(set(unpacked)) == workers
            assert len(unpacked) <= 2 * len(workers)
            # All processes that hold it die; those that start in their place hold nothing.
            pieces = spread_over_workers(work(), items, shared)
            found = [next(pieces)]
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            found += list(pieces)
            assert found == expected
            assert set(map(int, log.read_text().split())) - {os.getpid()} > set(workers)
            # An error of a piece is its own, and not taken for a loss.
            with pytest.raises(IndexError):
                list(spread_over_workers(work(), [1, 10**9, 2], shared))
    finally:
        with suppress(TimeoutError):
            cluster.close(timeout=60)


def test_a_cluster_without_workers_and_one_that_cannot_be_reached(monkeypatch):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=None
    )

    def fails(*args, **kwargs):
        msg = "no way there"
        raise OSError(msg)

    with cluster, distributed.Client(cluster) as client:
        monkeypatch.setattr(client, "scatter", fails)
        assert list(spread_over_workers(lambda shared, item: shared["a"] + item, [1, 2], {"a": 3})) == [4, 5]
        monkeypatch.undo()
        assert list(spread_over_workers(lambda shared, item: shared["a"] + item, [1, 2], {"a": 3})) == [4, 5]
