"""What `rg.io.read_st` says of files and values that it cannot use."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from ragst_sd.io import read_st

from .deposits import WIDTH


@pytest.mark.parametrize("argument", ["counts", "image", "coordinates"])
def test_missing_files(adata, picture, argument, tmp_path):
    given = {"counts": adata, "image": picture} | {argument: tmp_path / "lost.csv"}
    with pytest.raises(FileNotFoundError, match=r"lost\.csv' does not exist"):
        read_st(**given)
    with pytest.raises(FileNotFoundError, match=r"is a folder"):
        read_st(**(given | {argument: tmp_path}))


@pytest.mark.parametrize(
    ("argument", "name", "match"),
    [
        ("counts", "counts.mtx", r"'counts\.mtx' has an unsupported suffix; supported: \.h5ad, \.tsv"),
        ("coordinates", "spots.json", r"'spots\.json' has an unsupported suffix; supported: \.tsv"),
        ("image", "he.gif", r"'he\.gif' has an unsupported suffix; supported: \.jpg"),
        ("image", "he.svs", r"Slide files are read with `rg\.io\.read_slide`"),
    ],
)
def test_unsupported_suffixes(adata, picture, tmp_path, argument, name, match):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=match):
        read_st(**({"counts": adata, "image": picture} | {argument: tmp_path / name}))


@pytest.mark.parametrize("name", ["he.png", "he.tif"])
def test_broken_pictures(adata, tmp_path, name):
    (tmp_path / name).write_text("no picture")
    with pytest.raises(ValueError, match=rf"{name}' cannot be decoded"):
        read_st(adata, tmp_path / name)


def test_wrong_types(adata, picture):
    with pytest.raises(TypeError, match=r"`counts` is a ndarray; it must be AnnData or DataFrame"):
        read_st(np.ones((3, 3)), picture)
    with pytest.raises(TypeError, match=r"`image` is a list"):
        read_st(adata, [1])


def test_no_coordinates(counts, picture):
    with pytest.raises(ValueError, match=r"no `obsm\['spatial'\]` \(found none\).*coordinates="):
        read_st(counts, picture)


def test_wrong_number_of_coordinates(adata, picture):
    with pytest.raises(ValueError, match=r"shape \(5, 2\); expected \(48, 2\)"):
        read_st(adata, picture, coordinates=np.ones((5, 2)))


def test_columns_that_name_no_pixels(counts, positions, picture):
    with pytest.raises(ValueError, match=r"has the columns 'new_x'.*pixel_x and pixel_y"):
        read_st(counts, picture, coordinates=positions[["new_x", "new_y"]])


def test_nan_coordinates(adata, picture):
    adata.obsm["spatial"][3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 48 spots have NaN coordinates, for example 'C2_7x9'"):
        read_st(adata, picture)


def test_swapped_coordinates(adata, picture):
    tall = np.moveaxis(picture, 0, 1)[:, :100]
    adata.obsm["spatial"] = adata.obsm["spatial"] * [0.25, 1] + [110, 0]
    adata.obsm["spatial"][:, 1] = np.clip(adata.obsm["spatial"][:, 1], 0, 99)
    with pytest.raises(ValueError, match=r"All 48 spots lie outside the picture of 100 x 420 px.*look swapped"):
        read_st(adata, tall)


def test_coordinates_of_another_resolution(adata, picture):
    adata.obsm["spatial"] = adata.obsm["spatial"] * 20
    with pytest.raises(ValueError, match=r"picture at least 16\.0 times as large \(another resolution"):
        read_st(adata, picture)


def test_some_spots_outside_warn(adata, picture, caplog):
    adata.obsm["spatial"] = adata.obsm["spatial"] + [150, 0]
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        read_st(adata, picture)
    outside = int((adata.obsm["spatial"][:, 0] >= WIDTH).sum())
    assert outside > 0
    assert f"{outside} of 48 spots lie outside the picture" in caplog.text


def test_duplicated_spots(counts, adata, positions, picture):
    adata.obs_names = ["same"] * 2 + list(adata.obs_names[2:])
    with pytest.raises(ValueError, match=r"1 spot names of `counts` are duplicated, for example 'same'"):
        read_st(adata, picture)
    with pytest.raises(ValueError, match=r"1 spots of `coordinates` are duplicated, for example '3x4'"):
        read_st(counts, picture, coordinates=pd.concat([positions, positions.iloc[:1]]))
    counts.index = ["B4_3x4", "B5_3x4", *counts.index[2:]]
    with pytest.raises(ValueError, match=r"spots of `counts` are duplicated"):
        read_st(counts, picture, coordinates=positions)


def test_other_section_and_transposed_counts(counts, positions, picture):
    with pytest.raises(ValueError, match=r"The counts are genes x spots: transpose them"):
        read_st(counts.T, picture, coordinates=positions)
    counts.index = [f"spot{i}" for i in range(len(counts))]
    with pytest.raises(ValueError, match=r"\(for example 'spot0'.*'3x4'.*Check that both are of one section"):
        read_st(counts, picture, coordinates=positions)


def test_values_that_are_no_counts(adata, counts, picture):
    adata.X[0, 0] = -2
    with pytest.raises(ValueError, match=r"negative values \(down to -2\)"):
        read_st(adata, picture)
    adata.X[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"holds 1 NaN or infinite values"):
        read_st(adata, picture)
    with pytest.raises(ValueError, match=r"columns that hold no numbers: 'label' \(of 7\)"):
        read_st(counts.assign(label="a"), picture, coordinates=adata.obsm["spatial"])


def test_numbers_that_cannot_be(adata, picture):
    for argument in ("image_mpp", "um_between_centers", "spot_diameter_px"):
        with pytest.raises(ValueError, match=rf"`{argument}` is 0; it must be a finite number above zero"):
            read_st(adata, picture, **{argument: 0})
    with pytest.raises(ValueError, match=r"`image_mpp` or `um_between_centers`, not both"):
        read_st(adata, picture, image_mpp=1, um_between_centers=200)
    with pytest.raises(ValueError, match=r"unknown fields 'licence'; available: 'tissue'"):
        read_st(adata, picture, source={"licence": "MIT"})


def test_single_spot(adata, picture):
    del adata.uns["spatial"]
    with pytest.raises(ValueError, match=r"Pass `spot_diameter_px=`"):
        read_st(adata[:1], picture)
    assert read_st(adata[:1], picture, spot_diameter_px=10)["table"].n_obs == 1


def test_columns_that_are_no_genes(counts, picture):
    with pytest.raises(ValueError, match=r"`counts` has columns that are no genes: 'x', 'Total_counts'\. Leave them"):
        read_st(counts.assign(x=1.0, Total_counts=9), picture, coordinates=np.ones((len(counts), 2)))


def test_coordinates_with_decimal_commas(counts, positions, picture):
    positions = positions.assign(pixel_x=positions["pixel_x"].astype(str).str.replace(".", ","))
    with pytest.raises(ValueError, match=r"'pixel_x' and 'pixel_y' of `coordinates` hold no numbers"):
        read_st(counts, picture, coordinates=positions)
