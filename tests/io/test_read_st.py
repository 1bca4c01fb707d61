"""`rg.io.read_st`: tables and pictures as they are deposited."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy.sparse import issparse
from spatialdata.transformations import Identity, get_transformation

from ragst_sd._elements import centers_in_pixels
from ragst_sd.io import read_st

from .deposits import MPP, PITCH, pixels_of


def test_tables_and_positions_from_files(counts, positions, picture, picture_path, tmp_path):
    counts.to_csv(tmp_path / "C2.tsv.gz", sep="\t")
    positions.to_csv(tmp_path / "C2_selection.tsv", sep="\t", index=False)
    sdata = read_st(
        tmp_path / "C2.tsv.gz",
        picture_path,
        coordinates=tmp_path / "C2_selection.tsv",
        donor="C",
        um_between_centers=200,
        source={"tissue": "breast", "license": "CC BY 4.0"},
    )
    table, spots = sdata["table"], sdata["spots"]
    assert issparse(table.X)
    assert table.X.format == "csr"
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())
    assert list(table.obs_names) == list(counts.index)
    assert list(table.var_names) == list(counts.columns)
    assert set(table.obs["sample"]) == {"C2"}
    assert set(table.obs["donor"]) == {"C"}
    attrs = table.uns["spatialdata_attrs"]
    assert (attrs["region"], attrs["region_key"], attrs["instance_key"]) == ("spots", "region", "spot_id")

    expected = positions.set_index(positions["x"].astype(str) + "x" + positions["y"].astype(str))
    expected = expected.loc[counts.index, ["pixel_x", "pixel_y"]].to_numpy()
    np.testing.assert_array_equal(table.obsm["spatial"], expected)
    by_id = spots.loc[table.obs["spot_id"]]
    np.testing.assert_array_equal(np.column_stack([by_id.geometry.x, by_id.geometry.y]), expected)
    np.testing.assert_allclose(spots["radius"], PITCH / 4)

    np.testing.assert_array_equal(pixels_of(sdata), np.moveaxis(picture, -1, 0))
    for name in ("he", "spots"):
        assert get_transformation(sdata[name], get_all=True) == {"global": Identity()}
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(200 / PITCH)
    assert table.uns["ragst"]["source"] == {
        "tissue": "breast",
        "technology": "unknown",
        "license": "CC BY 4.0",
        "citation": "unknown",
    }


def test_h5ad_names_what_is_not_given(adata, picture_path, tmp_path):
    adata.write_h5ad(tmp_path / "anything.h5ad")
    sdata = read_st(tmp_path / "anything.h5ad", picture_path)
    table = sdata["table"]
    assert set(table.obs["sample"]) == {"C2"}
    assert set(table.obs["donor"]) == {"C"}
    assert list(table.obs["label"]) == list(adata.obs["label"])
    assert table.uns["ragst"]["source"] == {
        "tissue": "breast",
        "technology": "ST 1k",
        "license": "CC BY 4.0",
        "citation": "Andersson 2021",
    }
    assert sdata.attrs["ragst"]["image_mpp"] == {"he": MPP}
    np.testing.assert_allclose(sdata["spots"]["radius"], 8.5)
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"])


def test_arguments_win_over_the_file(adata, picture):
    sdata = read_st(
        adata,
        picture,
        sample="mine",
        donor="me",
        image_mpp=0.25,
        spot_diameter_px=10,
        source={"tissue": "liver"},
        coordinates=adata.obsm["spatial"] + 1,
    )
    table = sdata["table"]
    assert set(table.obs["sample"]) == {"mine"}
    assert set(table.obs["donor"]) == {"me"}
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == 0.25
    np.testing.assert_allclose(sdata["spots"]["radius"], 5)
    assert table.uns["ragst"]["source"]["tissue"] == "liver"
    assert table.uns["ragst"]["source"]["technology"] == "ST 1k"
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"] + 1)


def test_input_is_left_alone(adata, picture):
    before = adata.copy()
    read_st(adata, picture)
    assert list(adata.obs.columns) == list(before.obs.columns)
    assert set(adata.uns) == set(before.uns)
    assert set(adata.obsm) == set(before.obsm)


def test_no_donor_known(adata, picture, caplog):
    del adata.uns["meta"]["patient"]
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        sdata = read_st(adata, picture)
    assert "donor" not in sdata["table"].obs
    assert "No donor is known" in caplog.text


def test_donors_of_single_spots_are_kept(adata, picture):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) < 10, "P1", "P2")
    assert list(read_st(adata, picture)["table"].obs["donor"]) == list(adata.obs["donor"])


def test_columns_that_are_written_anew_keep_their_content(adata, picture):
    adata.obs["region"], adata.obs["sample"], adata.obs["donor"] = "cortex", "s7", "C"
    obs = read_st(adata, picture, donor="D")["table"].obs
    assert set(obs["region_original"]) == {"cortex"}
    assert set(obs["donor_original"]) == {"C"}
    assert set(obs["sample"]) == {"s7"}
    assert "sample_original" not in obs
    assert set(read_st(adata, picture, sample="other")["table"].obs["sample_original"]) == {"s7"}


@pytest.mark.filterwarnings("ignore:The index of the dataframe is not monotonic")
def test_centres_follow_the_rows_whatever_the_names(adata, picture):
    sdata = read_st(adata, picture)
    assert not sdata["spots"].index.is_monotonic_increasing
    centers = centers_in_pixels(sdata, shapes_key="spots", image_key="he", coordinate_system=None)
    assert list(centers.index) == list(sdata["table"].obs["spot_id"])
    np.testing.assert_array_equal(centers.xy, sdata["table"].obsm["spatial"])


def test_layer_holds_the_counts(adata, picture, caplog):
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X.multiply(0.3).tocsr()
    np.testing.assert_array_equal(
        read_st(adata, picture, layer="raw")["table"].X.toarray(), adata.layers["raw"].toarray()
    )
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        read_st(adata, picture)
    assert "may have been normalised" in caplog.text
    assert "'raw'" in caplog.text
    with pytest.raises(KeyError, match=r"'rwa' not found in `counts.layers`.*Did you mean 'raw'"):
        read_st(adata, picture, layer="rwa")


def test_dense_and_table_counts(counts, adata, picture):
    adata.X = adata.X.toarray()
    from_dense = read_st(adata, picture)["table"].X
    from_table = read_st(counts, picture, coordinates=adata.obsm["spatial"])["table"].X
    np.testing.assert_array_equal(from_dense.toarray(), from_table.toarray())


def test_unknown_and_unselected_spots_are_dropped(counts, positions, picture, caplog):
    positions.loc[:4, "selected"] = 0
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        sdata = read_st(counts, picture, coordinates=positions.iloc[:-3])
    assert sdata["table"].n_obs == len(counts) - 8
    assert len(sdata["spots"]) == len(counts) - 8
    assert "Left out 5 of 45 positions" in caplog.text
    assert "Dropped 8 of 48 spots" in caplog.text
    assert "10x9" not in sdata["table"].obs_names


def test_positions_by_barcode(adata, picture, tmp_path):
    places = pd.DataFrame(adata.obsm["spatial"], columns=["pxl_col_in_fullres", "pxl_row_in_fullres"])
    places.insert(0, "barcode", adata.obs_names)
    places["in_tissue"] = 1
    places.iloc[::-1].to_csv(tmp_path / "tissue_positions.csv", index=False)
    expected = adata.obsm.pop("spatial")
    sdata = read_st(adata, picture, coordinates=tmp_path / "tissue_positions.csv")
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], expected)


@pytest.mark.parametrize("form", ["x{}", "{:.1f}"])
def test_array_names_written_otherwise(counts, positions, picture, form):
    parts = [name.split("x") for name in counts.index]
    if form == "x{}":
        counts.index = [f"B4_{x}x{y}" for x, y in parts]
    else:
        counts.index = [f"{float(x):.1f}x{float(y):.1f}" for x, y in parts]
    assert read_st(counts, picture, coordinates=positions)["table"].n_obs == len(counts)


def test_pitch_of_a_jittered_array(adata, picture):
    rng = np.random.default_rng(0)
    adata.obsm["spatial"] = adata.obsm["spatial"] + rng.normal(0, 0.04 * PITCH, adata.obsm["spatial"].shape)
    sdata = read_st(adata, picture, um_between_centers=200)
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(200 / PITCH, rel=0.03)


def test_round_trip_through_zarr(adata, picture, tmp_path):
    sdata = read_st(adata, picture)
    sdata.write(tmp_path / "section.zarr")
    back = sd.read_zarr(tmp_path / "section.zarr")
    np.testing.assert_array_equal(pixels_of(back), pixels_of(sdata))
    np.testing.assert_array_equal(back["table"].X.toarray(), sdata["table"].X.toarray())
    assert back.attrs["ragst"] == sdata.attrs["ragst"]
    assert back["table"].uns["ragst"]["source"] == sdata["table"].uns["ragst"]["source"]
    assert list(back["table"].obs["spot_id"]) == list(back["spots"].index)


def test_compressed_tables_of_both_kinds(counts, adata, picture, tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        counts.to_csv(file)
    counts.to_csv(tmp_path / "a.txt", sep="\t")
    for name in ("a.csv.gz", "a.txt"):
        table = read_st(tmp_path / name, picture, coordinates=adata.obsm["spatial"])["table"]
        np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())
        assert set(table.obs["sample"]) == {"a"}


@pytest.mark.slow
@pytest.mark.skipif("RAGST_SD_TEST_DATA" not in os.environ, reason="needs RAGST_SD_TEST_DATA: real sections")
@pytest.mark.parametrize(
    ("section", "donor", "n_spots", "pitch"), [("her2st/C2", "C", 187, 200.0), ("mob2k/MOB3", "ind2", 438, 141.4)]
)
def test_real_section(section, donor, n_spots, pitch):
    path = Path(os.environ["RAGST_SD_TEST_DATA"]) / "histology" / f"{section}.h5ad"
    sdata = read_st(path, path.with_suffix(".jpg"), um_between_centers=pitch)
    table = sdata["table"]
    assert set(table.obs["donor"]) == {donor}
    assert table.n_obs == n_spots
    mpp = sdata.attrs["ragst"]["image_mpp"]["he"]
    assert mpp == pytest.approx(ad.read_h5ad(path, backed="r").uns["meta"]["um_per_px"], rel=0.03)
    # Spots are 100 microns wide in both arrays.
    np.testing.assert_allclose(2 * sdata["spots"]["radius"] * mpp, 100, rtol=0.03)
    # The tissue is darker than the glass: spots lie on it.
    pixels = sdata["he"]["scale1"]["image"].data.mean(axis=0).compute()
    columns, rows = (table.obsm["spatial"] / 2).astype(int).T
    assert pixels[rows, columns].mean() < pixels.mean() - 5


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz"])
def test_names_are_read_as_they_are_written(counts, picture, tmp_path, suffix):
    names = ["001", "NA", *counts.index[2:]]
    genes = ["G1", "G1", *counts.columns[2:]]
    path = tmp_path / f"counts{suffix}"
    counts.set_axis(names).set_axis(genes, axis=1).to_csv(path, sep="," if "csv" in suffix else "\t")
    centres = np.column_stack([np.linspace(50, 250, len(names)), np.full(len(names), 80.0)])
    table = read_st(path, picture, coordinates=centres)["table"]
    assert list(table.obs_names) == names
    assert list(table.var_names) == genes
    np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())


def test_spots_beside_the_tissue_are_left_out(adata, picture, caplog):
    caplog.set_level(logging.INFO)
    adata.obs["in_tissue"] = np.arange(adata.n_obs) % 3
    found = read_st(adata, picture)["table"]
    expected = adata[adata.obs["in_tissue"] > 0]
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    positions = pd.DataFrame(adata.obsm["spatial"], columns=["pixel_x", "pixel_y"], index=adata.obs_names)
    positions["in_tissue"] = adata.obs.pop("in_tissue")
    assert list(read_st(adata, picture, coordinates=positions)["table"].obs_names) == list(expected.obs_names)
    assert caplog.text.count("whose 'in_tissue' is 0") == 2


READINGS = {
    "with x and y swapped": lambda xy, size: xy[:, ::-1],
    "with x counted from the right": lambda xy, size: np.column_stack([size - xy[:, 0], xy[:, 1]]),
    "with y counted from the bottom": lambda xy, size: np.column_stack([xy[:, 0], size - xy[:, 1]]),
}


@pytest.mark.parametrize("how", [None, *READINGS])
def test_coordinates_that_fit_the_tissue_better_otherwise_are_said(caplog, rng, how):
    size, xy = 400, rng.uniform([150, 30], [350, 180], (60, 2))
    drawn = np.full((size, size, 3), 240, np.uint8)
    drawn[20:190, 140:360] = rng.integers((150, 60, 120), (200, 120, 180), (170, 220, 3))
    counts = pd.DataFrame(np.ones((60, 3)), columns=list("abc"), index=[f"s{i}" for i in range(60)])
    read_st(counts, drawn, coordinates=xy if how is None else READINGS[how](xy, size), image_mpp=1.0)
    assert [found for found in READINGS if found in caplog.text] == ([how] if how else [])


def test_a_region_of_interest_that_fits_other_tissue_is_no_swap(caplog, rng):
    drawn = np.full((400, 400, 3), 240, np.uint8)
    drawn[20:380, 20:380] = rng.integers((150, 60, 120), (200, 120, 180), (360, 360, 3))
    drawn[30:90, 60:80] = 240
    counts = pd.DataFrame(np.ones((60, 3)), columns=list("abc"), index=[f"s{i}" for i in range(60)])
    read_st(counts, drawn, coordinates=rng.uniform([30, 30], [120, 120], (60, 2)), image_mpp=1.0)
    assert "look at both" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("section", ["mob/rep04", "mob2k/MOB4"])
def test_swapped_coordinates_of_a_real_section_are_said(data_dir, caplog, section):
    path = data_dir / "histology" / section
    counts = ad.read_h5ad(f"{path}.h5ad")
    read_st(counts, f"{path}.jpg")
    assert "swapped" not in caplog.text
    counts.obsm["spatial"] = np.asarray(counts.obsm["spatial"])[:, ::-1]
    read_st(counts, f"{path}.jpg")
    assert "with x and y swapped" in caplog.text


def test_spots_beside_what_looks_like_tissue_are_said(adata, picture, caplog):
    drawn = np.full_like(picture, 240)
    drawn[-60:, -60:] = np.random.default_rng(0).integers((150, 60, 120), (200, 120, 180), (60, 60, 3))
    read_st(adata, drawn)
    assert "of the spots lie on what looks like tissue" in caplog.text
