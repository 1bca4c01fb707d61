"""References on disk as earlier releases wrote them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr

import ragst_sd as rg

from .older_layout import SEAL, write_folder


@pytest.fixture(scope="module")
def _folder(_fitted_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("older") / "r.zarr"
    write_folder(rg.io.read_reference(_fitted_store), path, chunk_bytes=16384, chunks_per_shard=3)
    return path


@pytest.fixture
def folder(_folder, tmp_path):
    """The reference of `fitted` as a folder of sharded arrays; every test gets its own copy."""
    return shutil.copytree(_folder, tmp_path / "r.zarr")


@pytest.fixture
def older(folder):
    """The same as version 1 of the schema laid it out: sections without species, no `donor_key`, no `obs`, no checksums."""
    for member in ("sections/species", "donor_key", "obs", "annotations_hash"):
        shutil.rmtree(folder / "uns" / "ragst" / member)
    zarr.open_group(folder / "uns" / "ragst", mode="r+")["schema_version"][...] = 1
    zarr.open_group(folder, mode="r+").attrs.pop(SEAL)
    return folder


@pytest.mark.slow
def test_a_folder_is_read_and_left_on_disk_as_a_file_would_be(folder, fitted, query):
    assert zarr.open_group(folder, mode="r")["X/data"].shards is not None
    expected = rg.tl.predict(query, fitted, inplace=False)
    for lazy in (False, True):
        found = rg.io.read_reference(folder, lazy=lazy)
        assert found.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]
        np.testing.assert_array_equal(rg.tl.predict(query, found, inplace=False).X, expected.X)


def test_a_folder_that_was_replaced_is_noticed_by_a_lazy_reference(folder, query):
    lazy = rg.io.read_reference(folder, lazy=True)
    folder.rename(folder.with_name("moved.zarr"))
    with pytest.raises(RuntimeError, match="was replaced or changed after it was opened"):
        rg.tl.predict(query, lazy, inplace=False)
    shutil.copytree(folder.with_name("moved.zarr"), folder)
    with pytest.raises(RuntimeError, match="was replaced or changed after it was opened"):
        rg.tl.predict(query, lazy, inplace=False)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kept", [None, 0.5])
def test_a_folder_with_a_chunk_that_is_gone_or_cut_is_refused(folder, lazy, kept):
    """Zarr reads zeros where a chunk is not there."""
    chunk = folder / "X" / "indices" / "c" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    if kept:
        chunk.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read .*X does not match what was written\)\. It is damaged"):
        rg.io.read_reference(folder, lazy=lazy)


def test_a_folder_with_other_values_is_refused(folder):
    values = zarr.open_group(folder, mode="r+")["X/data"]
    values[:] = values[:] * 2
    with pytest.raises(ValueError, match=r"X does not match what was written|does not match its hash"):
        rg.io.read_reference(folder)


def test_a_folder_with_other_labels_is_not_opened_lazily(folder):
    group = zarr.open_group(folder, mode="r+")
    group.attrs.pop(SEAL)
    group["obs/donor/codes"][:] = 0
    with pytest.raises(ValueError, match="do not match the hash"):
        rg.io.read_reference(folder, lazy=True)


def test_it_is_read_as_the_present_version_and_predicts_the_same(older, fitted, query, caplog):
    with caplog.at_level("INFO"):
        found = rg.io.read_reference(older)
    assert "has schema version 1 and is read as version 2" in caplog.text
    assert list(found.uns["ragst"]["sections"]["species"]) == ["human"] * 2
    assert found.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]
    expected, again = (rg.tl.predict(query, one, inplace=False) for one in (fitted, found))
    np.testing.assert_array_equal(again.X, expected.X)


def test_written_again_it_is_of_the_present_version_and_opens_lazily(older, fitted, tmp_path):
    rg.io.write_reference(rg.io.read_reference(older), tmp_path / "new.zarr.zip")
    lazy = rg.io.read_reference(tmp_path / "new.zarr.zip", lazy=True)
    assert int(lazy.uns["ragst"]["schema_version"]) == 2
    assert lazy.uns["ragst"]["fit"]["fit_hash"] == fitted.uns["ragst"]["fit"]["fit_hash"]


def test_a_later_version_is_refused(older):
    zarr.open_group(older / "uns" / "ragst", mode="r+")["schema_version"][...] = 3
    for lazy in (False, True):
        with pytest.raises(
            ValueError,
            match=r"schema version 3, and this .* reads versions up to 2\. Install a release that reads version 3",
        ):
            rg.io.read_reference(older, lazy=lazy)


def test_one_in_memory_is_not_taken_for_a_present_one(fitted):
    fitted.uns["ragst"]["schema_version"] = 1
    with pytest.raises(ValueError, match=r"version 1, and this .* works with version 2\. .*`rg\.io\.read_reference`"):
        rg.tl.fit(fitted, method="knn")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_that_was_moved_away_when_its_writer_was_stopped_is_brought_back(folder, fitted, lazy):
    folder.rename(folder.with_name(f".{folder.name}.0123abcd.new.old"))
    found = rg.io.read_reference(folder, lazy=lazy)
    assert found.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]
    assert folder.is_dir()
