"""Predictions into a store and embeddings into a cache that are killed: whole or refused, and gone on with to the same bits."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time

import anndata as ad
import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd import _replacing
from ragst_sd._replacing import temporary_folder
from ragst_sd.retrieval import run as runner

from ..sections import mean_colour
from ..sections import section as section_of
from .forks import N_KILLS, Child, killed_at_random

pytestmark = pytest.mark.slow

N, PART = 100, 8 * 4


def contents(folder):
    """What lies in a folder, as a checksum of each file."""
    return {
        str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(folder.rglob("*"))
        if one.is_file() and not one.name.endswith((".lock", ".log"))
    }


@pytest.fixture
def several_blocks(monkeypatch):
    monkeypatch.setattr(runner, "_BLOCK_VALUES", 1)
    monkeypatch.setattr(runner, "_QUERIES", 16)


def same_table(found, expected):
    assert list(found.obs_names) == list(expected.obs_names) and list(found.var_names) == list(expected.var_names)
    arrays = {"X": (found.X, expected.X)}
    for part in ("layers", "obsm"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert set(ours) == set(theirs)
        arrays |= {f"{part}/{name}": (ours[name], theirs[name]) for name in ours}
    arrays |= {f"obs/{name}": (found.obs[name], expected.obs[name]) for name in expected.obs.select_dtypes("number")}
    for name, (own, other) in arrays.items():
        np.testing.assert_array_equal(np.asarray(own), np.asarray(other), err_msg=name)
    assert (
        found.uns["retrieval"]["cited"]["reference"].tolist()
        == expected.uns["retrieval"]["cited"]["reference"].tolist()
    )


def one_of(path, tables):
    """Which of two predictions a store holds; it must be the whole of it."""
    found = ad.read_zarr(path)
    hashes = [table.uns["retrieval"]["reference_hash"] for table in tables]
    which = hashes.index(found.uns["retrieval"]["reference_hash"])
    same_table(found, tables[which])
    return which


@pytest.mark.usefixtures("several_blocks")
@pytest.mark.parametrize("first", [False, True], ids=["over an old one", "where nothing was"])
def test_a_prediction_into_a_store_that_is_killed(versions, query, tmp_path, first):
    home = tmp_path / "home"
    path, beside = home / "p.zarr", home / "mine"
    tables = [rg.tl.predict(query, one, inplace=False) for one in versions]
    rg.tl.predict(query, versions[0], store=beside / "other.zarr", inplace=False)
    (home / ".p.zarr.mine").write_text("not a leftover")
    untouched = contents(beside)
    started = time.perf_counter()
    rg.tl.predict(query, versions[0], store=path, inplace=False)
    seconds = time.perf_counter() - started

    def for_ever():
        for one in itertools.cycle(versions[::-1]):
            rg.tl.predict(query, one, store=path, inplace=False)

    def check():
        # As the next prediction into this place begins.
        _replacing.recover(path)
        if path.exists():
            one_of(path, tables)
            if first:
                shutil.rmtree(path)
        else:
            assert first
        assert contents(beside) == untouched

    if first:
        shutil.rmtree(path)
    killed_at_random(for_ever, check, tmp_path, seconds=seconds if first else 2 * seconds)
    stored = rg.tl.predict(query, versions[1], store=path, inplace=False)
    same_table(stored, tables[1])
    assert one_of(path, tables) == 1
    assert sorted(one.name for one in home.iterdir() if not one.name.endswith(".lock")) == [
        ".p.zarr.mine",
        "mine",
        "p.zarr",
    ]
    assert contents(beside) == untouched


def _killed_by_itself(work, module, name, at):
    """`work`, which is killed when a function is called for the n-th time."""
    original, calls = getattr(module, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    def run():
        setattr(module, name, killed)
        work()

    return run


@pytest.mark.usefixtures("several_blocks")
@pytest.mark.parametrize(("name", "at"), [("values_of", 1), ("values_of", 3), ("_finish", 1), ("fresh_folder", 1)])
def test_a_prediction_that_is_killed_at_a_certain_place(versions, query, tmp_path, name, at):
    from ragst_sd.tl import _predict_store

    path, tables = tmp_path / "p.zarr", [rg.tl.predict(query, one, inplace=False) for one in versions]
    for before in (None, 0):
        work = _killed_by_itself(
            lambda: rg.tl.predict(query, versions[1], store=path, inplace=False), _predict_store, name, at
        )
        assert Child(work, tmp_path / "child.log").wait() == -signal.SIGKILL
        left = [one for one in tmp_path.iterdir() if one.name.endswith(".new")]
        assert len(left) == (name != "fresh_folder")
        assert one_of(path, tables) == 0 if before == 0 else not path.exists()
        for one in left:
            # What is not finished cannot be taken for a table.
            with pytest.raises(Exception, match=r"."):
                one_of(one, tables)
        rg.tl.predict(query, versions[0], store=path, inplace=False)
        assert one_of(path, tables) == 0
        assert sorted(one.name for one in tmp_path.iterdir() if not one.name.endswith((".lock", ".log"))) == ["p.zarr"]


class Slow:
    """Mean colour, slow enough to be killed in between; counts the tiles it has seen."""

    def __init__(self, name="slow colour", seconds=0.01):
        self.name, self.seconds, self.seen = name, seconds, 0

    def __call__(self, tiles):
        time.sleep(self.seconds)
        self.seen += len(tiles)
        return mean_colour(tiles)


def section():
    return section_of(np.random.default_rng(0).uniform(10, 200, (N, 2)))


def embed(model, **kwargs):
    sdata = section()
    options = {
        "tile_px": 16,
        "mpp": None,
        "batch_size": 4,
        "key_added": "X",
        "progress": False,
        "num_workers": 0,
    } | kwargs
    rg.pp.embed_tiles(sdata, model=model, **options)
    return np.asarray(sdata.tables["table"].obsm["X"])


def runs(cache):
    return {one for one in cache.iterdir() if one.is_dir()}


@pytest.fixture
def cache(tmp_path):
    """A cache that holds the run of another encoder, and a file of the user's."""
    folder = tmp_path / "cache"
    embed(Slow("other colour", 0), cache=folder)
    (folder / "mine.txt").write_text("mine")
    return folder


def tiles_kept(run):
    """Tiles of all parts in the folder of a run; each of its files is whole."""
    parts = {one.name: len(np.load(one)) for one in run.iterdir() if one.name.startswith("part-")}
    if (run / "run.json").exists():
        assert json.loads((run / "run.json").read_text())["batch_size"] == 4
    else:
        assert not parts
    return sum(parts.values())


def test_a_cache_that_is_killed(cache, tmp_path):
    expected, before, untouched = embed(Slow(seconds=0)), runs(cache), contents(cache)
    started = time.perf_counter()
    embed(Slow())
    seconds, kept = time.perf_counter() - started, []

    def work():
        embed(Slow(), cache=cache)
        time.sleep(600)

    def check():
        kept.append(sum(tiles_kept(run) for run in runs(cache) - before))
        again = Slow(seconds=0)
        np.testing.assert_array_equal(embed(again, cache=cache), expected)
        assert again.seen == N - kept[-1]
        for run in runs(cache) - before:
            assert tiles_kept(run) == N
            shutil.rmtree(run)
        assert contents(cache) == untouched

    killed_at_random(work, check, tmp_path, seconds=seconds / 1.2)
    assert len(kept) == N_KILLS and all(n in (0, PART, 2 * PART, 3 * PART, N) for n in kept)


class Killed(Slow):
    """It is killed during its n-th batch."""

    def __init__(self, at):
        super().__init__(seconds=0)
        self.at, self.calls = at, 0

    def __call__(self, tiles):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tiles)


@pytest.mark.parametrize(("at", "kept"), [(1, 0), (10, PART), (20, 2 * PART)])
def test_a_cache_that_is_killed_during_a_certain_batch(cache, tmp_path, at, kept):
    expected, before = embed(Slow(seconds=0)), runs(cache)
    assert Child(lambda: embed(Killed(at), cache=cache), tmp_path / "child.log").wait() == -signal.SIGKILL
    (run,) = runs(cache) - before
    assert tiles_kept(run) == kept
    again = Slow(seconds=0)
    np.testing.assert_array_equal(embed(again, cache=cache), expected)
    assert again.seen == N - kept


def test_a_temporary_store_goes_with_the_next_one_when_its_process_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ragst_sd_elsewhere_abc").mkdir()

    def work():
        with temporary_folder() as folder:
            (folder / "pixels").write_bytes(bytes(1000))
            time.sleep(600)

    def left():
        return {one.name for one in tmp_path.iterdir() if one.is_dir()} - {"ragst_sd_elsewhere_abc"}

    children = [Child(work, tmp_path / f"{k}.log") for k in range(2)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/pixels"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children[0].kill(0) == -signal.SIGKILL
    assert len(left()) == 2
    with temporary_folder() as mine:
        # That of the process that lives, and mine.
        assert len(left()) == 2 and mine.name in left()
        assert all((tmp_path / name / "pixels").exists() for name in left() - {mine.name})
    assert len(left()) == 1
    assert children[1].kill(0) == -signal.SIGKILL
    with temporary_folder() as mine:
        assert left() == {mine.name}
    assert not left()
    assert (tmp_path / "ragst_sd_elsewhere_abc").exists()


def test_processes_that_make_temporary_folders_at_once_leave_each_other_alone(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))

    def work():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with temporary_folder() as folder:
                (folder / "pixels").write_bytes(b"1")
                time.sleep(0.002)
                assert (folder / "pixels").exists()

    children = [Child(work, tmp_path / f"{k}.log") for k in range(4)]
    ends = [child.wait() for child in children]
    assert ends == [0] * 4, [child.log.read_text() for child in children if child.log.exists()]
    assert not list(shared.iterdir())


def test_an_error_inside_leaves_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted():
        with temporary_folder() as folder:
            (folder / "pixels").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
