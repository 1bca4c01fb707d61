"""`rg.pp.tile_grid`."""

from __future__ import annotations

import logging

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Scale, get_transformation

import ragst_sd as rg


@pytest.fixture
def slide():
    """White glass with a pink disc of tissue, 1 micron per pixel."""
    y, x = np.mgrid[:600, :800]
    image = np.full((3, 600, 800), 243, dtype=np.uint8)
    disc = (x - 300) ** 2 + (y - 300) ** 2 < 200**2
    image[:, disc] = np.array([[210], [120], [170]])
    noise = np.random.default_rng(0).integers(-3, 4, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    parsed = Image2DModel.parse(image, dims=("c", "y", "x"), transformations={"um": Scale([2.0, 2.0], ("x", "y"))})
    sdata = sd.SpatialData(images={"he": parsed})
    rg.pp.set_image_mpp(sdata, mpp=1.0)
    return sdata


def test_tiles_cover_the_tissue_and_nothing_else(slide):
    rg.pp.tile_grid(slide, tile_px=40, mpp=1.0)
    table = slide.tables["tiles_table"]
    xy = table.obsm["spatial"]
    distance = np.linalg.norm(xy - 300, axis=1)
    assert distance.max() < 200 + 20
    assert len(xy) == pytest.approx(np.pi * 200**2 / 40**2, rel=0.1)
    assert (table.obs["tissue_fraction"] >= 0.5).all()
    np.testing.assert_allclose(slide.shapes["tiles"].geometry.area, 1600)
    np.testing.assert_allclose(slide.shapes["tiles"].geometry.centroid.x, xy[:, 0])


def test_black_that_was_not_scanned_holds_no_tiles(slide):
    pixels = np.asarray(slide["he"].data).copy()
    noise = np.random.default_rng(1).normal(0, 12, pixels[:, :, 560:].shape)
    pixels[:, :, 560:] = np.clip(noise, 0, 255)
    del slide.images["he"]
    slide.images["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"))
    rg.pp.tile_grid(slide, tile_px=40, mpp=1.0)
    xy = slide.tables["tiles_table"].obsm["spatial"]
    assert np.linalg.norm(xy - 300, axis=1).max() < 200 + 20
    assert len(xy) == pytest.approx(np.pi * 200**2 / 40**2, rel=0.1)


def test_a_field_that_is_all_tissue_keeps_all_tiles_and_says_so(caplog):
    rng = np.random.default_rng(2)
    image = np.empty((3, 200, 320))
    image[:, :, :160], image[:, :, 160:] = np.array([[[226]], [[190]], [[212]]]), np.array([[[140]], [[80]], [[150]]])
    image = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
    sdata = sd.SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        rg.pp.tile_grid(sdata, tile_px=40, mpp=None)
    assert sdata.tables["tiles_table"].n_obs == 5 * 8
    assert "Image 'he' shows no glass" in caplog.text


def test_stride_mpp_and_whole_image(slide):
    rg.pp.tile_grid(slide, tile_px=50, mpp=2.0, stride_px=25, tissue=False)
    xy = slide.tables["tiles_table"].obsm["spatial"]
    assert len(xy) == 15 * 11
    np.testing.assert_allclose(np.unique(np.diff(np.unique(xy[:, 0]))), 50)
    np.testing.assert_allclose(slide.shapes["tiles"].geometry.area, 100**2)


def test_tiles_lie_where_the_image_lies(slide):
    rg.pp.tile_grid(slide, tile_px=40, mpp=1.0)
    assert set(get_transformation(slide.shapes["tiles"], get_all=True)) == {"um"}
    centroids = sd.get_centroids(slide.shapes["tiles"], coordinate_system="um").compute()
    np.testing.assert_allclose(centroids["x"], slide.tables["tiles_table"].obsm["spatial"][:, 0] * 2)


def test_grid_can_be_embedded_predicted_written(slide, fitted, embed, tmp_path):
    rg.pp.tile_grid(slide, tile_px=32, mpp=2.0)
    rg.pp.embed_tiles(slide, table_key="tiles_table", **embed)
    rg.tl.predict(slide, fitted)
    slide.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    assert np.isfinite(back.tables["predicted"].X).all()
    assert back.tables["predicted"].uns["spatialdata_attrs"]["region"] == "tiles"


def test_rerun_replaces_its_own_and_refuses_others(slide, query):
    rg.pp.tile_grid(slide, tile_px=40, mpp=1.0)
    before = slide.tables["tiles_table"].n_obs
    rg.pp.tile_grid(slide, tile_px=80, mpp=1.0)
    assert slide.tables["tiles_table"].n_obs < before
    with pytest.raises(ValueError, match="'spots' for shapes is taken"):
        rg.pp.tile_grid(query, tile_px=64, mpp=1.0, key_added="spots")
    with pytest.raises(ValueError, match="'table' for tables is taken"):
        rg.pp.tile_grid(query, tile_px=64, mpp=1.0, table_key="table")


def test_a_grid_replaces_its_own_tiles_only(query):
    rg.pp.tile_grid(query, tile_px=64, mpp=1.0)
    before = len(query.shapes["spots"])
    for name in ("spots", "he"):
        with pytest.raises(ValueError, match=f"'{name}' for shapes is taken"):
            rg.pp.tile_grid(query, tile_px=64, mpp=1.0, key_added=name)
    assert len(query.shapes["spots"]) == before


def test_tiles_are_not_moved_from_under_a_prediction(slide, fitted, embed):
    rg.pp.tile_grid(slide, tile_px=32, mpp=2.0)
    rg.pp.embed_tiles(slide, table_key="tiles_table", **embed)
    rg.tl.predict(slide, fitted)
    before = slide.tables["tiles_table"].n_obs
    with pytest.raises(ValueError, match="'predicted' annotate the"):
        rg.pp.tile_grid(slide, tile_px=32, mpp=2.0, stride_px=16)
    assert slide.tables["tiles_table"].n_obs == before
    rg.pp.tile_grid(slide, tile_px=32, mpp=2.0)
    del slide.tables["predicted"]
    rg.pp.tile_grid(slide, tile_px=32, mpp=2.0, stride_px=16)
    assert slide.tables["tiles_table"].n_obs > before


def annotate(slide, *outlines, scale=2.0, name="annotations"):
    """Outlines in pixels of the slide."""
    frames = {"um": Scale([scale, scale], ("x", "y"))}
    slide.shapes[name] = ShapesModel.parse(gpd.GeoDataFrame(geometry=list(outlines)), transformations=frames)


class TestAnnotation:
    def test_tiles_lie_in_it_by_half(self, slide):
        ring = shapely.Point(300, 300).buffer(150) - shapely.Point(300, 300).buffer(60)
        annotate(slide, ring, shapely.box(600, 100, 700, 300), shapely.box(650, 100, 720, 300))
        rg.pp.tile_grid(slide, tile_px=40, mpp=1.0, tissue="annotations")
        union = shapely.union_all(slide.shapes["annotations"].geometry.to_numpy())
        corners = np.stack(np.meshgrid(np.arange(0, 800, 40), np.arange(0, 600, 40)), axis=-1).reshape(-1, 2)
        shares = np.array([shapely.box(x, y, x + 40, y + 40).intersection(union).area / 1600 for x, y in corners])
        table = slide.tables["tiles_table"]
        np.testing.assert_array_equal(table.obsm["spatial"] - 20, corners[shares >= 0.5])
        np.testing.assert_allclose(table.obs["tissue_fraction"], shares[shares >= 0.5])

    def test_frame_of_the_annotation(self, slide):
        annotate(slide, shapely.box(0, 0, 200, 100), scale=4.0)
        rg.pp.tile_grid(slide, tile_px=40, mpp=1.0, tissue="annotations")
        assert slide.tables["tiles_table"].obsm["spatial"].max(axis=0).tolist() == [380, 180]

    @pytest.mark.parametrize(
        ("tissue", "error", "found"),
        [
            ("other", KeyError, "other.*rg.io.read_annotations"),
            ("small", ValueError, r"None of 300 tiles of 40 pixels lies in 'small' by half \(the fullest by 6%\)"),
            (1, TypeError, "`tissue` is a int.*the name of shapes"),
        ],
    )
    def test_bad_input(self, slide, tissue, error, found):
        annotate(slide, shapely.box(10, 10, 20, 20), name="small")
        with pytest.raises(error, match=found):
            rg.pp.tile_grid(slide, tile_px=40, mpp=1.0, tissue=tissue)
        assert set(slide.shapes) == {"small"}
