"""Threads: as many as the process may use, and those of the caller are given back after a training."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests.screens import QUICK, planted_screen
from threadpoolctl import threadpool_info, threadpool_limits

import ragst_sd as rg
from ragst_sd.retrieval import pt_rag
from ragst_sd.retrieval.threads import n_threads, on_threads, one_thread, side_by_side


@pytest.fixture
def allow():
    """Set how many threads torch may use; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity cannot be set on this system")
def test_no_more_than_torch_and_the_affinity_allow(allow):
    before = os.sched_getaffinity(0)
    allow(1)
    assert n_threads() == 1
    allow(len(before) + 3)
    assert 1 <= n_threads() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert n_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_linear_algebra_has_one_thread_inside_and_its_own_afterwards():
    def blas():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = blas()
        with one_thread():
            assert set(blas()) == {1}
        assert blas() == before


def test_calls_that_overlap_give_all_threads_back(allow):
    def state():
        return torch.get_num_threads(), [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    allow(2)
    before = state()
    inside, ended = threading.Barrier(2, timeout=30), threading.Event()

    def first():
        with one_thread():
            inside.wait()
            inside.wait()
        ended.set()

    def second():
        inside.wait()
        with one_thread():
            inside.wait()
            assert ended.wait(30)
        return torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(call) for call in (first, second)]
        assert results[1].result() == 2
    assert state() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_pieces_come_in_their_order_from_several_threads(monkeypatch):
    monkeypatch.setattr("ragst_sd.retrieval.threads.n_threads", lambda: 2)
    both = threading.Barrier(2, timeout=30)

    def square(number):
        both.wait()
        return number**2, threading.get_ident()

    found = on_threads(square, range(4))
    assert [value for value, _ in found] == [0, 1, 4, 9]
    assert len({ident for _, ident in found}) == 2
    assert on_threads(lambda number: threading.get_ident(), range(1)) == [threading.get_ident()]


def test_no_more_pieces_are_made_ahead_than_there_are_threads(monkeypatch, allow):
    allow(2)
    monkeypatch.setattr("ragst_sd.retrieval.threads.n_threads", lambda: 2)
    taken = []

    def numbers():
        for number in range(9):
            taken.append(number)
            yield number

    pieces = side_by_side(lambda number: (number, torch.get_num_threads()), numbers())
    assert next(pieces) == (0, 1)
    assert taken == [0, 1, 2]
    assert list(pieces) == [(number, 1) for number in range(1, 9)]
    assert torch.get_num_threads() == 2


def test_an_error_in_a_piece_is_raised(monkeypatch):
    monkeypatch.setattr("ragst_sd.retrieval.threads.n_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        on_threads(lambda number: 1 / number, [1, 0])


@pytest.mark.parametrize("method", ["rag", "mlp"])
def test_a_training_on_one_or_two_threads_is_the_same_and_gives_them_back(reference, query, quick, allow, method):
    fitted = {}
    for number in (1, 2):
        allow(number)
        rg.tl.fit(reference, method=method, n_neighbors=10, options=quick(method), progress=False)
        table = rg.tl.predict(query, reference, inplace=False)
        assert torch.get_num_threads() == number
        fitted[number] = reference.uns["ragst"]["fit"]["parameters"], np.asarray(table.X)
    for name, value in fitted[1][0].items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(fitted[2][0][name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(fitted[2][1], fitted[1][1], atol=1e-5)


def test_pt_rag_trains_on_one_thread_and_gives_them_back(allow, monkeypatch):
    screen, embedding = planted_screen(n_programmes=2, per_programme=3, contexts=("a",), n_genes=20, n_cells=12)
    used, loss = set(), pt_rag.batch_loss

    def watched(*arguments):
        used.add(torch.get_num_threads())
        return loss(*arguments)

    monkeypatch.setattr(pt_rag, "batch_loss", watched)
    reference = rg.tl.build_perturbation_reference(
        screen, embedding=embedding, unit="log1p_cp10k", context_key="cell_type", batch_key="batch", rng=0
    )
    fitted = []
    for number in (1, 2):
        allow(number)
        rg.tl.fit(reference, method="pt_rag", options=QUICK["pt_rag"], progress=False)
        assert torch.get_num_threads() == number
        fitted.append(reference.uns["ragst"]["fit"]["parameters"])
    assert used == {1}
    for name, value in fitted[0].items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(fitted[1][name], value, rtol=1e-6, atol=1e-6, err_msg=name)
