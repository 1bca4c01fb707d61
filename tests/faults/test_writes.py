"""Stores that are killed, filled up, read and written at the same time: the old version or the new one, never a mixture."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd import _replacing

from .conftest import is_one_of
from .forks import FAILED, N_KILLS, Child, killed_at_random

pytestmark = pytest.mark.slow


def seen(folder):
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith((".lock", ".log")))


@contextmanager
def held(path):
    """A place that another thread writes to."""
    ready, done = Event(), Event()

    def hold():
        with _replacing.locked(path):
            ready.set()
            done.wait()

    thread = Thread(target=hold)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def for_ever(write, versions):
    for version in itertools.cycle(versions):
        write(version)


@pytest.fixture(scope="module")
def _store(versions, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "r.zarr.zip"
    rg.io.write_reference(versions[0], path)
    started = time.perf_counter()
    rg.io.write_reference(versions[0], path, overwrite=True)
    return path, time.perf_counter() - started


@pytest.fixture
def store(_store, tmp_path):
    """A written reference, and the seconds that took; every test gets its own copy."""
    written, seconds = _store
    return Path(shutil.copy(written, tmp_path / "r.zarr.zip")), seconds


def test_a_reference_that_is_killed(versions, store, tmp_path):
    path, seconds = store
    killed_at_random(
        lambda: for_ever(lambda one: rg.io.write_reference(one, path, overwrite=True), versions),
        lambda: is_one_of(rg.io.read_reference(path), versions),
        tmp_path,
        seconds=2 * seconds,
    )
    rg.io.write_reference(versions[1], path, overwrite=True)
    assert is_one_of(rg.io.read_reference(path), versions) == versions[1].n_obs
    assert seen(tmp_path) == ["r.zarr.zip"]


def test_readers_while_a_reference_is_written(versions, store, tmp_path):
    path, _ = store
    child = Child(
        lambda: for_ever(lambda one: rg.io.write_reference(one, path, overwrite=True), versions), tmp_path / "child.log"
    )
    try:
        read = [is_one_of(rg.io.read_reference(path), versions) for _ in range(3 * N_KILLS)]
    finally:
        assert child.kill(0) == -signal.SIGKILL, child.log.read_text()
    assert set(read) <= {40, 30}


def test_a_lazy_reference_notices_that_it_was_replaced(versions, store, query):
    path, _ = store
    lazy = rg.io.read_reference(path, lazy=True)
    expected = rg.tl.predict(query, versions[0], inplace=False)
    np.testing.assert_array_equal(rg.tl.predict(query, lazy, inplace=False).X, expected.X)
    rg.io.write_reference(versions[1], path, overwrite=True)
    with pytest.raises(RuntimeError, match="was replaced or changed after it was opened"):
        rg.tl.predict(query, lazy, inplace=False)


def test_the_second_writer_is_told(versions, store, tmp_path):
    path, _ = store
    write = partial(rg.io.write_reference, versions[1], path, overwrite=True)
    with held(path):
        with pytest.raises(BlockingIOError, match=r"r\.zarr\.zip is being written by another process"):
            write()
        assert Child(write, tmp_path / "child.log").wait() == FAILED
        assert "BlockingIOError" in (tmp_path / "child.log").read_text()
    assert is_one_of(rg.io.read_reference(path), versions) == versions[0].n_obs
    with _replacing.locked(path):
        write()
    assert is_one_of(rg.io.read_reference(path), versions) == versions[1].n_obs


def test_a_link_is_followed_and_stays(versions, store, tmp_path):
    target, _ = store
    home = tmp_path / "home"
    home.mkdir()
    link = home / "link.zarr.zip"
    link.symlink_to(target)
    for version in versions[::-1]:
        rg.io.write_reference(version, link, overwrite=True)
        assert link.is_symlink() and not target.is_symlink()
        assert is_one_of(rg.io.read_reference(target), versions) == version.n_obs
    with held(target), pytest.raises(BlockingIOError, match="is being written"):
        rg.io.write_reference(versions[1], link, overwrite=True)
    assert seen(home) == ["link.zarr.zip"] and seen(tmp_path) == ["home", "r.zarr.zip"]


def test_a_folder_that_was_moved_away_is_brought_back(tmp_path):
    path = tmp_path / "p.zarr"

    def write(text):
        with _replacing.fresh_folder(path) as fresh:
            fresh.mkdir()
            (fresh / "values").write_text(text)

    write("first")
    write("second")
    assert Child(_dies_in_the_gap(lambda: write("third")), tmp_path / "child.log").wait() == 9
    assert not path.exists()
    _replacing.recover(path)
    assert (path / "values").read_text() == "second" and seen(tmp_path) == ["p.zarr"]


def test_pages_behind_links_are_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    page, link = tmp_path / "disk" / "page.html", tmp_path / "link.html"
    link.symlink_to(page)
    _replacing.replace_text(link, "new")
    assert link.is_symlink() and page.read_text() == "new"


def _on_a_full_disk(work, most_bytes):
    """`work`, where no file can grow beyond some size."""

    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        try:
            work()
        except OSError as error:
            os._exit(10 if error.errno == errno.EFBIG else 11)

    return run


@pytest.mark.parametrize("most_bytes", [400, 2000, 6000])
def test_a_full_disk_leaves_the_old_reference(versions, store, tmp_path, most_bytes):
    path, _ = store
    work = _on_a_full_disk(lambda: rg.io.write_reference(versions[1], path, overwrite=True), most_bytes)
    assert Child(work, tmp_path / "child.log").wait() == 10
    assert is_one_of(rg.io.read_reference(path), versions) == versions[0].n_obs
    assert seen(tmp_path) == ["r.zarr.zip"]


def test_threads_that_go_on_after_a_failed_write_leave_nothing(tmp_path):
    def go_on(fresh: Path) -> None:
        for i in range(20):
            fresh.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                (fresh / str(i)).write_text("late")
            time.sleep(0.01)

    def fail() -> None:
        with _replacing.fresh_folder(tmp_path / "r.zarr.zip") as fresh:
            fresh.mkdir()
            threads.append(Thread(target=go_on, args=(fresh,)))
            threads[0].start()
            raise OSError(errno.EFBIG, "disk full")

    threads: list[Thread] = []
    with pytest.raises(OSError, match="disk full"):
        fail()
    threads[0].join()
    assert seen(tmp_path) == []


@pytest.fixture(scope="module")
def _section(_sections, versions, tmp_path_factory):
    tables = [rg.tl.predict(_sections["donor3"], version, inplace=False) for version in versions]
    query = sd.deepcopy(_sections["donor3"])
    query.tables["predicted"] = tables[0]
    path = tmp_path_factory.mktemp("section") / "s.zarr"
    query.write(path)
    return path, tables


@pytest.fixture
def section(_section, query, tmp_path):
    """A section in a store with two versions of its prediction; every test gets its own copy."""
    written, tables = _section
    tables = [table.copy() for table in tables]
    query.tables["predicted"] = tables[0]
    query.path = Path(shutil.copytree(written, tmp_path / "s.zarr"))
    return query, query.path, tables


def write_version(sdata, table):
    sdata.tables["predicted"] = table
    rg.io.write_table(sdata, "predicted")


def table_is_one_of(path, tables):
    found = sd.read_zarr(path)
    assert sorted(found.tables) == ["predicted", "table"]
    hashes = [table.uns["retrieval"]["reference_hash"] for table in tables]
    which = hashes.index(found.tables["predicted"].uns["retrieval"]["reference_hash"])
    np.testing.assert_array_equal(found.tables["predicted"].X, tables[which].X)
    np.testing.assert_array_equal(
        found.tables["predicted"].obsm["retrieval_rows"], tables[which].obsm["retrieval_rows"]
    )
    return which


def test_a_table_that_is_killed(section, tmp_path):
    sdata, path, tables = section
    started = time.perf_counter()
    write_version(sdata, tables[0])
    killed_at_random(
        lambda: for_ever(lambda one: write_version(sdata, one), tables[::-1]),
        lambda: table_is_one_of(path, tables),
        tmp_path,
        seconds=2 * (time.perf_counter() - started),
    )
    write_version(sdata, tables[1])
    assert table_is_one_of(path, tables) == 1
    assert seen(tmp_path) == ["s.zarr"]


def _dies_in_the_gap(work):
    """`work`, which ends when the old version is moved away and the new one not yet in its place."""

    def rename(self, target, _original=Path.rename):
        done = _original(self, target)
        if Path(target).parent.name == "old" or str(target).endswith(".old"):
            os._exit(9)
        return done

    def run():
        Path.rename = rename
        work()

    return run


def test_a_table_that_was_moved_away_is_brought_back(section, tmp_path):
    sdata, path, tables = section
    work = _dies_in_the_gap(lambda: write_version(sdata, tables[1]))
    assert Child(work, tmp_path / "child.log").wait() == 9
    assert not (path / "tables" / "predicted").exists()
    rg.io.write_table(sdata, "table")
    assert table_is_one_of(path, tables) == 0
    assert seen(tmp_path) == ["s.zarr"]


def test_a_table_on_a_full_disk_and_a_second_writer(section, tmp_path):
    sdata, path, tables = section
    for most_bytes in (400, 3000):
        work = _on_a_full_disk(lambda: write_version(sdata, tables[1]), most_bytes)
        assert Child(work, tmp_path / "child.log").wait() == 10
        assert table_is_one_of(path, tables) == 0
    assert seen(tmp_path) == ["s.zarr"]
    with held(path), pytest.raises(BlockingIOError, match=r"s\.zarr is being written"):
        write_version(sdata, tables[1])
    assert table_is_one_of(path, tables) == 0


def test_a_table_of_the_name_of_another_element_is_refused(section):
    sdata, path, _ = section
    del sdata.shapes["spots"]
    sdata.tables["spots"] = sdata.tables["table"]
    with pytest.raises(ValueError, match="another element named 'spots'"):
        rg.io.write_table(sdata, "spots")
    assert (path / "shapes" / "spots").exists()


def test_pages_are_replaced_as_one(tmp_path):
    page = tmp_path / "page.html"
    texts = [letter * 3_000_000 for letter in "ab"]
    _replacing.replace_text(page, texts[0])

    def check():
        assert page.read_text() in texts

    killed_at_random(
        lambda: for_ever(lambda text: _replacing.replace_text(page, text), texts), check, tmp_path, seconds=0.05
    )
    work = _on_a_full_disk(lambda: _replacing.replace_text(page, texts[1]), 1000)
    before = page.read_text()
    assert Child(work, tmp_path / "child.log").wait() == 10
    assert page.read_text() == before
