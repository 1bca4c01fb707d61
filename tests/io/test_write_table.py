"""`rg.io.write_table` into stores of both zarr formats, which can be read afterwards."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import spatialdata as sd
from spatialdata._io.format import SpatialDataContainerFormats

import ragst_sd as rg

from ..sections import painted, section


@pytest.fixture(scope="module", params=sorted(SpatialDataContainerFormats))
def _stored(request, tmp_path_factory):
    path, kind = tmp_path_factory.mktemp("store") / "s.zarr", SpatialDataContainerFormats[request.param]
    section([[60, 60], [200, 100]]).write(path, sdata_formats=kind)
    return path, kind


@pytest.fixture
def stored(_stored, tmp_path):
    """A section read from a store of one format; every test gets its own copy."""
    written, kind = _stored
    read = sd.read_zarr(shutil.copytree(written, tmp_path / "s.zarr"))
    read.zarr_format = kind.zarr_format
    return read


def formats(path):
    return {3 if file.name == "zarr.json" else 2 for file in path.rglob("*") if file.name in ("zarr.json", ".zgroup")}


def test_a_store_keeps_its_format(stored):
    stored.tables["table"].X[0, 0] = 7
    stored.tables["more"] = stored.tables["table"].copy()
    rg.pp.set_image_mpp(stored, mpp=0.5)
    for name in ("table", "more"):
        rg.io.write_table(stored, name)
    assert formats(stored.path) == {stored.zarr_format}
    back = sd.read_zarr(stored.path)
    np.testing.assert_array_equal(back.images["he"], painted())
    assert [back.tables[name].X[0, 0] for name in ("table", "more")] == [7, 7]
    assert back.attrs["ragst"]["image_mpp"] == {"he": 0.5}


def test_attrs_that_cannot_be_written_leave_the_table(stored):
    stored.tables["table"].X[0, 0] = 7
    stored.attrs["mine"] = object()
    with pytest.raises(TypeError, match="Invalid attribute"):
        rg.io.write_table(stored, "table")
    assert sd.read_zarr(stored.path).tables["table"].X[0, 0] == 1


@pytest.mark.parametrize("part", ["images/he", "tables/other"])
def test_a_store_that_cannot_be_read_is_told(stored, part):
    stored.tables["other"] = stored.tables["table"].copy()
    rg.io.write_table(stored, "other")
    meta = stored.path / part / (".zattrs" if stored.zarr_format == 2 else "zarr.json")
    meta.write_text(meta.read_text().replace('"multiscales"', '"scales"').replace('"version"', '"edition"'))
    with pytest.raises(RuntimeError, match=r"Table 'table' was written, but .*s\.zarr cannot be read now"):
        rg.io.write_table(stored, "table")


def test_a_store_that_was_moved_is_named(stored):
    gone = stored.path
    shutil.move(gone, gone.with_name("elsewhere.zarr"))
    with pytest.raises(FileNotFoundError, match=r"s\.zarr, is not there: .*Read the object again"):
        rg.io.write_table(stored, "table")
    assert [path.name for path in gone.parent.iterdir()] == ["elsewhere.zarr"]
