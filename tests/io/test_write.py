"""`rg.io.write_reference`, `read_reference` and `write_table`."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import dask
import numpy as np
import psutil
import pytest
import scipy.sparse as sp
import spatialdata as sd

import ragst_sd as rg

from ..sections import copied

FULL = "disk full"


def seen(folder):
    """What lies in a folder beside the locks of writers."""
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(".lock"))


@pytest.fixture
def path(_fitted_store, tmp_path):
    """Where `fitted` was written."""
    return Path(shutil.copy(_fitted_store, tmp_path / "r.zarr.zip"))


def bare(table):
    """A table of few parts, which is quick to write."""
    keys = ("region", "region_key", "instance_key")
    attrs = {key: table.uns["spatialdata_attrs"][key] for key in keys}
    obs = table.obs[[attrs["region_key"], attrs["instance_key"]]].copy()
    return ad.AnnData(table[:, :9].X.copy(), obs=obs, uns={"spatialdata_attrs": attrs})


@pytest.fixture(scope="module")
def _predicted_store(_sections, _predicted, tmp_path_factory):
    query = copied(_sections["donor3"])
    query.tables = {"table": bare(query.tables["table"]), "predicted": bare(_predicted)}
    query.write(tmp_path_factory.mktemp("section") / "s.zarr")
    return query.path


@pytest.fixture
def stored(_predicted_store, tmp_path):
    """A section with two small tables, read from `s.zarr`."""
    return sd.read_zarr(shutil.copytree(_predicted_store, tmp_path / "s.zarr"))


def test_reference_is_replaced_only_when_asked(fitted, path, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        rg.io.write_reference(fitted, path)
    rg.io.write_reference(fitted, path, overwrite=True)
    assert seen(tmp_path) == ["r.zarr.zip"]
    other = tmp_path / "mine.zarr.zip"
    other.write_text("important")
    with pytest.raises(FileExistsError, match="not a reference"):
        rg.io.write_reference(fitted, other, overwrite=True)
    assert other.read_text() == "important"
    other.unlink()
    other.mkdir()
    with pytest.raises(FileExistsError, match="not a reference"):
        rg.io.write_reference(fitted, other, overwrite=True)


@pytest.mark.parametrize("name", ["r.zarr", "r.zip", "r"])
def test_the_name_of_a_file_is_told(fitted, tmp_path, name):
    with pytest.raises(ValueError, match=r"A reference is one file.* name it '.*/r\.zarr\.zip'"):
        rg.io.write_reference(fitted, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_plain_anndata_reads_the_file(fitted, path):
    import zarr

    found = ad.read_zarr(zarr.storage.ZipStore(path))
    np.testing.assert_array_equal(found.X.toarray(), fitted.X.toarray())
    np.testing.assert_array_equal(found.obsm["retrieval_key"], fitted.obsm["retrieval_key"])
    assert list(found.obs_names) == list(fitted.obs_names)
    assert found.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]


def test_failed_write_leaves_the_old_version(fitted, path, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(FULL)

    monkeypatch.setattr(ad.experimental, "write_dispatched", broken)
    with pytest.raises(OSError, match="disk full"):
        rg.io.write_reference(fitted, path, overwrite=True)
    monkeypatch.undo()
    assert rg.io.read_reference(path).shape == fitted.shape
    assert seen(tmp_path) == ["r.zarr.zip"]


def test_read_refuses_what_is_no_reference(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rg.io.read_reference(tmp_path / "nothing.zarr.zip")
    ad.AnnData(np.ones((2, 2), dtype=np.float32)).write_zarr(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="not a reference"):
        rg.io.read_reference(tmp_path / "other.zarr")
    other = ad.read_zarr(tmp_path / "other.zarr")
    other.write_zarr(tmp_path / "folder")
    packed(tmp_path / "folder", tmp_path / "other.zarr.zip")
    with pytest.raises(ValueError, match="not a reference"):
        rg.io.read_reference(tmp_path / "other.zarr.zip")


def packed(folder, path):
    """A folder as a zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture
def unpacked(path, tmp_path):
    """The parts of the file as a folder."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked.zarr")
    return tmp_path / "unpacked.zarr"


def test_a_file_that_was_unpacked_or_packed_again_is_read(unpacked, fitted, tmp_path):
    for place in (unpacked, packed(unpacked, tmp_path / "again.zarr.zip")):
        for lazy in (False, True):
            assert rg.io.read_reference(place, lazy=lazy).shape == fitted.shape


def test_other_values_and_other_labels_are_noticed(unpacked, tmp_path):
    import zarr

    group = zarr.open_group(unpacked, mode="r+")
    group["X/data"][:] = group["X/data"][:] * 2
    with pytest.raises(ValueError, match="does not match its hash"):
        rg.io.read_reference(packed(unpacked, tmp_path / "values.zarr.zip"))
    group["obs/donor/codes"][:] = 0
    with pytest.raises(ValueError, match="do not match the hash"):
        rg.io.read_reference(packed(unpacked, tmp_path / "labels.zarr.zip"), lazy=True)


def damaged(path, part):
    """Change one byte in the middle of a part of a file."""
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(part)
        start = place.header_offset + 30 + len(part) + place.file_size // 2
    content = bytearray(path.read_bytes())
    content[start] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_part_is_noticed(path, query):
    damaged(path, "X/data/c/0")
    with pytest.raises(ValueError, match=r"r\.zarr\.zip cannot be read .*X/data/c/0.* It is damaged"):
        rg.io.read_reference(path)
    lazy = rg.io.read_reference(path, lazy=True)
    with pytest.raises(RuntimeError, match=r"r\.zarr\.zip is damaged .*X/data/c/0"):
        rg.tl.predict(query, lazy, inplace=False)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_file_that_was_cut_or_lost_a_part_is_refused(path, lazy):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"X/data/c/0", b"X/data/c/9"))
    with pytest.raises(ValueError, match=r"the list of parts does not match what was written\)\. It is damaged"):
        rg.io.read_reference(path, lazy=lazy)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"not the whole of one .*If it was copied or downloaded, do that again"):
        rg.io.read_reference(path, lazy=lazy)


def test_a_reference_larger_than_the_memory_is_refused_before_it_is_read(path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=40960))
    with pytest.raises(MemoryError, match=r"this machine has 0\.0 GB of memory.*`lazy=True`"):
        rg.io.read_reference(path)


def test_a_subset_is_written_without_its_fit(fitted, tmp_path, caplog):
    part = fitted[5:].copy()
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.io.write_reference(part, tmp_path / "part.zarr.zip")
    assert "written without its fit" in caplog.text
    back = rg.io.read_reference(tmp_path / "part.zarr.zip")
    assert back.n_obs == fitted.n_obs - 5
    assert "fit" not in back.uns["ragst"]
    assert "fit" in part.uns["ragst"]


def test_rows_lie_in_chunks(fitted, tmp_path, monkeypatch):
    import zarr

    from ragst_sd.io import _write_reference

    monkeypatch.setattr(_write_reference, "_CHUNK_BYTES", 2048)
    rg.io.write_reference(fitted, tmp_path / "r.zarr.zip")
    with zipfile.ZipFile(tmp_path / "r.zarr.zip") as archive:
        assert {part.compress_type for part in archive.infolist()} == {zipfile.ZIP_STORED}
        assert len(set(archive.namelist())) == len(archive.namelist())
    group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "r.zarr.zip"), mode="r")
    assert group.metadata.zarr_format == 3
    for name in ("X/data", "X/indices", "layers/counts/data", "obsm/thumbnail", "obsm/X_colour", "obsm/retrieval_key"):
        array = group[name]
        assert array.shards is None
        assert array.chunks[1:] == array.shape[1:]
        assert array.chunks[0] < array.shape[0]
    np.testing.assert_array_equal(rg.io.read_reference(tmp_path / "r.zarr.zip").X.toarray(), fitted.X.toarray())


@pytest.fixture
def lazy(path):
    """The fitted reference, its rows on disk."""
    return rg.io.read_reference(path, lazy=True)


def test_a_lazy_reference_leaves_its_rows_on_disk(fitted, lazy):
    import dask.array as da

    for values in (
        lazy.X,
        lazy.layers["counts"],
        *(lazy.obsm[name] for name in ("X_colour", "thumbnail", "retrieval_key")),
    ):
        assert isinstance(values, da.Array)
    assert list(lazy.obs_names) == list(fitted.obs_names)
    whole = lazy.to_memory()
    np.testing.assert_array_equal(whole.X.toarray(), fitted.X.toarray())
    np.testing.assert_array_equal(whole.obsm["retrieval_key"], fitted.obsm["retrieval_key"])


@pytest.mark.parametrize("form", ["columns", "listed twice"])
def test_any_sparse_matrix_is_read_as_what_it_means(fitted, query, tmp_path, form):
    expected = rg.tl.predict(query, fitted, inplace=False)
    rows = fitted.X.tocsr()
    given = fitted.copy()
    given.X = rows.tocsc()
    if form == "listed twice":
        halves, places = np.repeat(rows.data / 2, 2), np.repeat(rows.indices, 2)
        given.X = sp.csr_matrix((halves, places, 2 * rows.indptr), shape=rows.shape)
    rg.io.write_reference(given, tmp_path / "given.zarr.zip")
    for lazy in (False, True):
        table = rg.tl.predict(query, rg.io.read_reference(tmp_path / "given.zarr.zip", lazy=lazy), inplace=False)
        np.testing.assert_allclose(table.X, expected.X, atol=1e-6)
        np.testing.assert_allclose(table.layers["disagreement"], expected.layers["disagreement"], atol=1e-5)


@pytest.mark.parametrize("method", ["knn", "ridge", "mean"])
def test_every_fit_predicts_the_same_read_back_and_lazily(reference, method, query, tmp_path, monkeypatch):
    """Blocks far smaller than the reference, so that rows of several of them are cited for one spot."""
    from ragst_sd.io import _read_reference, _write_reference
    from ragst_sd.retrieval.search import search_in_blocks

    monkeypatch.setattr(_read_reference, "ROW_BLOCK", 16)
    monkeypatch.setattr(_write_reference, "_CHUNK_BYTES", 16384)
    monkeypatch.setattr(search_in_blocks, "__kwdefaults__", {"block_rows": 20})
    rg.tl.fit(reference, method=method, n_neighbors=10)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    lazy = rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=True)
    assert lazy.X.numblocks[0] > 3
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    np.testing.assert_array_equal(back.obsm["thumbnail"], reference.obsm["thumbnail"])
    expected, whole, got = (rg.tl.predict(query, one, inplace=False) for one in (reference, back, lazy))
    np.testing.assert_array_equal(whole.X, expected.X)
    np.testing.assert_array_equal(got.X, expected.X)
    for name in expected.layers:
        np.testing.assert_array_equal(got.layers[name], expected.layers[name])
    for name in ("retrieval_rows", "retrieval_weights", "retrieval_distances"):
        np.testing.assert_array_equal(got.obsm[name], expected.obsm[name])
    assert got.obs.equals(expected.obs)


def test_a_lazy_reference_explains_the_same(fitted, lazy, query):
    rg.tl.predict(query, fitted)
    spot, gene = query.tables["predicted"].obs_names[3], fitted.var_names[5]
    first, second = (rg.get.explain(query, one, obs_names=spot, genes=gene) for one in (fitted, lazy))
    assert first.equals(second)


def test_what_a_lazy_reference_cannot_do_is_refused(lazy, reference, query, tmp_path, quick):
    with pytest.raises(ValueError, match=r"is lazy.*to_memory"):
        rg.tl.fit(lazy, method="knn", n_neighbors=10)
    with pytest.raises(ValueError, match=r"is lazy.*to_memory"):
        rg.io.write_reference(lazy, tmp_path / "again.zarr.zip")
    with pytest.raises(ValueError, match="needs all of its rows"):
        rg.tl.predict(query, lazy, backend="pynndescent")
    with pytest.raises(ValueError, match="lazy"):
        rg.tl.merge_references([lazy])
    rg.tl.fit(reference, method="random_rag", n_neighbors=10, options=quick("random_rag"))
    rg.io.write_reference(reference, tmp_path / "random.zarr.zip")
    with pytest.raises(ValueError, match="'random_rag' needs all of its rows"):
        rg.tl.predict(query, rg.io.read_reference(tmp_path / "random.zarr.zip", lazy=True))


def test_changes_to_a_lazy_reference_are_noticed(lazy, query):
    assert rg.tl.predict(query, lazy, inplace=False).n_obs
    with pytest.raises(ValueError, match="changed after it was fitted"):
        rg.tl.predict(query, lazy[5:].copy())
    lazy.obs["donor"] = "someone else"
    with pytest.raises(ValueError, match="changed after it was fitted"):
        rg.tl.predict(query, lazy)


def test_a_lazy_reference_is_read_in_a_fork_and_where_it_was_pickled_to(lazy, fitted):
    expected = fitted.X.toarray()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy.X)).compute().toarray(), expected)
    with dask.config.set(scheduler="synchronous"):
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                same = False
                try:
                    same = np.array_equal(lazy.X.compute().toarray(), expected)
                finally:
                    os._exit(0 if same else 1)
            # Both read at the same time.
            assert np.array_equal(lazy.X.compute().toarray(), expected)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_lazy_reference_notices_that_its_file_was_replaced(lazy, path):
    pickled = pickle.dumps(lazy.X)
    Path(shutil.copy(path, path.with_name("same.zarr.zip"))).replace(path)
    for values in (lazy.X, pickle.loads(pickled)):
        with pytest.raises(RuntimeError, match="was replaced or changed after it was opened"):
            values.compute()
    path.unlink()
    with pytest.raises(RuntimeError, match="was replaced or changed after it was opened"):
        pickle.loads(pickled).compute()


def test_write_table_adds_and_replaces(predicted, fitted, tmp_path):
    path = tmp_path / "s.zarr"
    table = predicted.tables.pop("predicted")
    with pytest.raises(ValueError, match="no store"):
        rg.io.write_table(predicted, "table")
    predicted.write(path)
    predicted.tables["predicted"] = table
    rg.io.write_table(predicted, "predicted")
    np.testing.assert_array_equal(sd.read_zarr(path).tables["predicted"].X, table.X)
    rg.tl.predict(predicted, fitted, n_neighbors=3)
    rg.io.write_table(predicted, "predicted")
    back = sd.read_zarr(path)
    assert back.tables["predicted"].obsm["retrieval_rows"].shape[1] == 3
    assert sorted(back.tables) == sorted(predicted.tables) == ["predicted", "table"]
    assert back.attrs["ragst"]["image_mpp"]["he"] == 1.0


def test_write_table_brings_back_what_an_earlier_release_had_moved_away(stored):
    predicted, path = stored, stored.path
    left = path.with_name(f".{path.name}.0123abcd.new") / "tables"
    left.mkdir(parents=True)
    (path / "tables" / "table").rename(left / "table.new.old")
    rg.io.write_table(predicted, "predicted")
    assert (path / "tables" / "table").is_dir()
    assert not left.exists()


def test_write_table_keeps_a_complete_table_when_it_fails(stored, monkeypatch):
    predicted, path = stored, stored.path
    before = predicted.tables["predicted"].X.copy()

    def broken(self, path, **kwargs):
        raise OSError(FULL)

    monkeypatch.setattr(sd.SpatialData, "write", broken)
    with pytest.raises(OSError, match="disk full"):
        rg.io.write_table(predicted, "predicted")
    monkeypatch.undo()
    assert sorted(predicted.tables) == ["predicted", "table"]
    np.testing.assert_array_equal(sd.read_zarr(path).tables["predicted"].X, before)
    rg.io.write_table(predicted, "predicted")


def test_unknown_table(predicted):
    with pytest.raises(KeyError, match="'predictd' not found"):
        rg.io.write_table(predicted, "predictd")


@pytest.mark.slow
def test_write_table_touches_no_other_table(stored):
    predicted, path = stored, stored.path
    predicted.tables["predicted.new"] = predicted.tables["table"].copy()
    predicted.write_element("predicted.new")
    rg.io.write_table(predicted, "predicted")
    assert sorted(sd.read_zarr(path).tables) == sorted(predicted.tables) == ["predicted", "predicted.new", "table"]


def test_leftovers_of_an_interrupted_call_are_cleared(stored, tmp_path):
    predicted, path = stored, stored.path
    (tmp_path / ".s.zarr.0123abcd.new" / "tables" / "predicted").mkdir(parents=True)
    rg.io.write_table(predicted, "predicted")
    assert sorted(sd.read_zarr(path).tables) == sorted(predicted.tables) == ["predicted", "table"]
    assert seen(tmp_path) == ["s.zarr"]
