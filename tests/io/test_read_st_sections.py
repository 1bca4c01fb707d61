"""`rg.io.read_st` of counts that hold several sections: one is chosen, or all are named."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from ragst_sd.io import read_st

PICTURE = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
DIAMETERS = {"left": 20.0, "right": 30.0}


def library(name, *, column="library_id", seed=0):
    rng = np.random.default_rng(seed)
    barcodes = [f"BC{i}" for i in range(12)]
    table = ad.AnnData(
        rng.poisson(3, (12, 4)).astype(np.float32),
        obs=pd.DataFrame({column: name} if column else {}, index=barcodes),
        var=pd.DataFrame(index=list("abcd")),
    )
    table.obsm["spatial"] = np.array([[x, y] for x in (60, 160, 260, 360) for y in (60, 150, 240)], dtype=float)
    table.uns["spatial"] = {name: {"images": {}, "scalefactors": {"spot_diameter_fullres": DIAMETERS[name]}}}
    return table


def joined(column="library_id", **kwargs):
    parts = [library("left", column=column), library("right", column=column, seed=1)]
    return ad.concat(parts, **({"uns_merge": "unique", "index_unique": "-"} | kwargs)), parts


def read(counts, **kwargs):
    return read_st(counts, PICTURE, **({"image_mpp": 1.0} | kwargs))


@pytest.mark.parametrize("column", ["library_id", "sample", "slide"])
@pytest.mark.parametrize("index_unique", ["-", None])
@pytest.mark.parametrize("name", ["left", "right"])
def test_the_section_that_is_named_is_read(column, index_unique, name):
    both, parts = joined(column, index_unique=index_unique)
    sdata = read(both, sample=name)
    expected = parts[list(DIAMETERS).index(name)].X
    np.testing.assert_array_equal(sdata["table"].X.toarray(), expected)
    assert set(sdata["table"].obs["sample"]) == {name}
    assert set(sdata["spots"]["radius"]) == {DIAMETERS[name] / 2}
    assert both.n_obs == 24


@pytest.mark.parametrize("index_unique", ["-", None])
@pytest.mark.parametrize("sample", [None, "middle"])
def test_sections_are_named_where_none_of_them_is_chosen(sample, index_unique):
    both, _ = joined(index_unique=index_unique)
    with pytest.raises(ValueError, match=r"holds 2 sections: 'left', 'right'.*Choose one with `sample=`"):
        read(both, sample=sample)


def test_a_section_of_a_file_is_read(tmp_path):
    both, parts = joined(index_unique=None)
    both.write_h5ad(tmp_path / "both.h5ad")
    sdata = read(tmp_path / "both.h5ad", sample="right")
    np.testing.assert_array_equal(sdata["table"].X.toarray(), parts[1].X)


def test_without_uns_the_column_is_enough():
    both, _ = joined(uns_merge=None)
    with pytest.raises(ValueError, match="holds 2 sections"):
        read(both)
    assert read(both, sample="right")["table"].n_obs == 12


def test_libraries_that_no_column_tells_apart_are_refused_and_the_advice_works():
    both, parts = joined(column=None)
    with pytest.raises(ValueError, match=r"2 sections: 'left', 'right'.*Write into `obs\['library_id'\]`"):
        read(both, sample="right")
    both.obs["library_id"] = ["left"] * 12 + ["right"] * 12
    np.testing.assert_array_equal(read(both, sample="right")["table"].X.toarray(), parts[1].X)


def test_coordinates_follow_the_rows_of_all_sections_or_of_one():
    both, _ = joined()
    moved = both.obsm["spatial"] + np.arange(24)[:, None] / 10
    for given in (moved, moved[12:]):
        found = read(both, sample="right", coordinates=given)["table"].obsm["spatial"]
        np.testing.assert_array_equal(found, moved[12:])


def test_a_part_of_a_joined_object_is_one_section_with_its_own_diameter():
    both, _ = joined()
    sdata = read(both[both.obs["library_id"] == "right"].copy(), sample="renamed")
    assert set(sdata["table"].obs["sample"]) == {"renamed"}
    assert set(sdata["spots"]["radius"]) == {15.0}


def test_spots_at_one_place_warn(caplog):
    both, _ = joined(column=None, uns_merge=None)
    with caplog.at_level(logging.WARNING):
        read(both, sample="all")
    assert "lie at the same place" in caplog.text
