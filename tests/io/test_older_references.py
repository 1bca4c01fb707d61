"""References on disk as earlier releases wrote them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr

import ragst_sd as rg
from ragst_sd.io._store_seal import _SEAL


@pytest.fixture
def older(fitted, tmp_path):
    """A fitted reference as version 1 of the schema laid it out: sections without species, no `donor_key`, no `obs`, no checksums."""
    path = tmp_path / "older.zarr"
    rg.io.write_reference(fitted, path)
    for member in ("sections/species", "donor_key", "obs", "annotations_hash"):
        shutil.rmtree(path / "uns" / "ragst" / member)
    zarr.open_group(path / "uns" / "ragst", mode="r+")["schema_version"][...] = 1
    zarr.open_group(path, mode="r+").attrs.pop(_SEAL)
    return path


def test_it_is_read_as_the_present_version_and_predicts_the_same(older, fitted, query, caplog):
    with caplog.at_level("INFO"):
        found = rg.io.read_reference(older)
    assert "has schema version 1 and is read as version 2" in caplog.text
    assert list(found.uns["ragst"]["sections"]["species"]) == ["human"] * 2
    assert found.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]
    expected, again = (rg.tl.predict(query, one, inplace=False) for one in (fitted, found))
    np.testing.assert_array_equal(again.X, expected.X)


def test_written_again_it_is_of_the_present_version_and_opens_lazily(older, fitted, tmp_path):
    rg.io.write_reference(rg.io.read_reference(older), tmp_path / "new.zarr")
    lazy = rg.io.read_reference(tmp_path / "new.zarr", lazy=True)
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
