"""Images behind dask: schedulers, huge chunks; work in pieces on a cluster of two processes that are killed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel

import ragst_sd as rg
from ragst_sd import _workers
from ragst_sd._workers import gpu_of_worker, spread_over_workers, without_huge_chunks
from ragst_sd.pp import _embedding_run

from .sections import annotated, mean_colour, painted

XY = np.random.default_rng(0).uniform([0, 0], [320, 240], (90, 2))


def section(image, **parse):
    circles = ShapesModel.parse(XY, geometry=0, radius=5)
    return SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"), **parse)},
        shapes={"spots": circles},
        tables={"table": annotated(circles, circles.index)},
    )


def embed(sdata, model=mean_colour, **kwargs):
    options = {"tile_px": 16, "mpp": None, "key_added": "X", "progress": False, "batch_size": 4} | kwargs
    return rg.pp.embed_tiles(sdata, model=model, inplace=False, **options).obsm["X"]


@pytest.fixture(scope="module")
def expected():
    return embed(section(painted()), num_workers=0)


@pytest.mark.parametrize("scheduler", [None, "synchronous", "threads"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_scheduler_gives_the_same(scheduler, num_workers, expected):
    sdata = section(da.from_array(painted(), chunks=(3, 50, 70)).map_blocks(np.copy))
    with dask.config.set({} if scheduler is None else {"scheduler": scheduler}):
        np.testing.assert_array_equal(embed(sdata, num_workers=num_workers), expected)


def test_stores_are_read_without_a_graph_only_where_dask_would_read_the_same(tmp_path):
    import zarr

    stored = zarr.create_array(tmp_path / "a", shape=(3, 240, 320), chunks=(3, 100, 100), dtype=np.uint8)
    stored[:] = painted()
    plain = da.from_zarr(stored)
    assert _workers._zarr_behind(plain) is stored
    assert _workers._zarr_behind(plain.rechunk((3, 50, 50))) is None
    assert _workers._zarr_behind(plain[:, 1:]) is None
    assert _workers._zarr_behind(plain + 1) is None
    assert _workers._zarr_behind(plain.transpose(0, 2, 1)) is None
    assert _workers._zarr_behind(da.from_array(stored, lock=True)) is None
    assert _workers._zarr_behind(da.from_array(painted())) is None
    assert _workers._zarr_behind(da.from_array(painted(), chunks=-1)) is None


class TestHugeChunks:
    """A TIFF of one strip that dask decodes whole, whatever is asked for."""

    @pytest.fixture
    def decodes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_workers, "_HUGE_BYTES", 50_000)
        tifffile.imwrite(tmp_path / "he.tif", np.moveaxis(painted(), 0, -1), rowsperstrip=240, compression="zlib")
        times, lock = [], threading.Lock()

        def decode():
            with lock:
                times.append(1)
            return np.moveaxis(tifffile.imread(tmp_path / "he.tif"), -1, 0)

        image = da.from_delayed(dask.delayed(decode)(), shape=(3, 240, 320), dtype=np.uint8)
        return times, image

    def test_are_decoded_once_for_all_tiles_and_fields(self, decodes, expected, caplog):
        times, image = decodes
        sdata = section(image)
        with caplog.at_level(logging.INFO, logger="ragst_sd"):
            out = embed(sdata, context=(1, 2, 3))
        assert len(times) == 1
        assert "decoded once into a temporary store" in caplog.text
        np.testing.assert_array_equal(out[:, :3], expected)

    def test_are_decoded_once_for_all_levels(self, decodes):
        times, image = decodes
        sdata = section(image, scale_factors=[2, 2])
        times.clear()
        out = embed(sdata, context=(1, 2, 4), mpp=1.0, image_mpp=1.0)
        assert len(times) == 1
        levels = section(painted(), scale_factors=[2, 2])
        np.testing.assert_array_equal(out, embed(levels, context=(1, 2, 4), mpp=1.0, image_mpp=1.0))

    def test_the_temporary_store_is_deleted(self, decodes, caplog):
        from ragst_sd._elements import image_pyramid

        pyramid = image_pyramid(section(decodes[1]), "he")
        folders = []

        def interrupted():
            with without_huge_chunks(pyramid, [0]) as readable:
                (store,) = readable.levels
                folders.append(store.store.root)
                assert folders[0].exists()
                np.testing.assert_array_equal(store[:], painted())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not folders[0].exists()

    def test_pixels_in_memory_are_not_copied(self, monkeypatch):
        from ragst_sd._elements import image_pyramid

        monkeypatch.setattr(_workers, "_HUGE_BYTES", 50_000)
        pyramid = image_pyramid(section(da.from_array(painted(), chunks=-1)), "he")
        with without_huge_chunks(pyramid, [0]) as readable:
            assert readable is pyramid


@pytest.mark.parametrize(
    ("name", "visible", "alone", "index"),
    [
        ("0", 4, False, 0),
        ("3", 4, False, 3),
        ("SLURMCluster-12-3", 4, False, 3),
        ("5", 4, False, 1),
        ("worker", 2, False, 0),
        ("3", 4, True, 0),
    ],
)
def test_workers_of_a_machine_take_different_gpus(name, visible, alone, index):
    assert gpu_of_worker(name, visible, one_worker_per_gpu=alone) == index


def test_a_worker_in_a_task_takes_its_own_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _workers.worker_device() is None
    monkeypatch.setattr(_workers, "_this_worker", lambda: SimpleNamespace(name="2"))
    assert _workers.worker_device() == "cuda:2"
    with rg.settings.override(device="cpu"):
        assert _workers.worker_device() == "cpu"


def encoder_that_dies(marker, log, module):
    """Defined inside a function, so that workers receive it by value."""
    import torch

    class Mortal:
        name = "mortal"

        def __init__(self):
            self.model = module

        def to(self, device):
            # Called once for every encoder that is made.
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return self

        def encode_image(self, tiles):
            if os.getpid() != int(marker.read_text()) and not marker.with_suffix(".died").exists():
                marker.with_suffix(".died").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            with torch.inference_mode():
                return self.model(tiles)

    return Mortal()


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


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with dask.config.set({"distributed.comm.timeouts.connect": "60s"}):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        client = distributed.Client(cluster)
        yield client
        client.close()
        # On a busy machine the processes may take longer to go than the cluster waits for them.
        with suppress(TimeoutError):
            cluster.close(timeout=60)


@pytest.mark.parametrize("plain", [False, True])
def test_stores_that_a_worker_does_not_see_are_no_black_tiles(tmp_path, monkeypatch, plain):
    import pickle
    import shutil

    import zarr

    from ragst_sd._elements import image_pyramid

    stored = zarr.create_array(tmp_path / "a", shape=(3, 240, 320), chunks=(3, 100, 100), dtype=np.uint8)
    stored[:] = painted()
    pyramid = image_pyramid(section(da.from_zarr(stored)), "he")
    if plain:
        # As a temporary store of huge chunks is handed out.
        pyramid = replace(pyramid, levels=(stored,))
    sent = pickle.dumps(pyramid)
    _workers.require_stores(pickle.loads(sent))
    shutil.rmtree(tmp_path / "a")
    job = SimpleNamespace(pyramid=pickle.loads(sent))
    with pytest.raises(FileNotFoundError, match=r"which the worker on .* cannot access.*TMPDIR"):
        _embedding_run.embed_part(job, None)


@pytest.mark.slow
class TestCluster:
    def test_a_killed_worker_changes_nothing(self, client, tmp_path):
        import torch

        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        marker, log = tmp_path / "here", tmp_path / "loaded"
        marker.write_text(str(os.getpid()))
        model = encoder_that_dies(marker, log, module)
        sdata = section(da.from_array(painted(), chunks=(3, 64, 64)))
        with client.as_current(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(_workers, "active_client", lambda: None)
            patch.setattr("ragst_sd.pp._embedding_run.active_client", lambda: None)
            local = embed(sdata, model, context=(1, 3))
        log.unlink()
        before = set(client.scheduler_info()["workers"])
        out = embed(sdata, model, context=(1, 3), cache=tmp_path / "cache")
        np.testing.assert_array_equal(out, local)
        died = int(marker.with_suffix(".died").read_text())
        assert died != os.getpid()
        assert set(client.scheduler_info()["workers"]) != before
        by_process = log.read_text().split()
        by_process.remove(str(os.getpid()))  # the session's own, for the header
        assert len(by_process) == len(set(by_process)), "one encoder for each process"
        assert 2 <= len(by_process) <= 3
        # What the workers returned was kept.
        marker.with_suffix(".died").write_text("")
        np.testing.assert_array_equal(embed(sdata, model, context=(1, 3), cache=tmp_path / "cache"), local)
        assert log.read_text().split()[-1] == str(os.getpid())

    def test_encoders_by_name(self, client):
        sdata = section(painted(), chunks=(3, 128, 128))
        options = {"model": "texture", "tile_px": 64, "context": (1,)}
        out = embed(sdata, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ragst_sd.pp._embedding_run.active_client", lambda: None)
            np.testing.assert_array_equal(out, embed(sdata, **options))

    def test_errors_of_the_encoder_arrive(self, client):
        def broken(tiles):
            return tiles.flatten(1)[:, :2] * float("nan")

        with pytest.raises(ValueError, match="NaN or infinite values"):
            embed(section(painted()), broken)

    def test_inside_a_task_everything_is_done_there(self, client):
        def task():
            from ragst_sd._workers import active_client

            return active_client() is None

        assert _workers.active_client() is client
        assert client.submit(task, pure=False).result()


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
