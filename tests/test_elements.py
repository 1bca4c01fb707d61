"""Where pixels and spots of SpatialData elements lie."""

from __future__ import annotations

import logging
import re
import shutil

import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from spatialdata import get_pyramid_levels
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, Scale, Sequence, Translation, get_transformation, set_transformation

import ragst_sd as rg
from ragst_sd._elements import element_centers, image_pyramid

from .sections import annotated, mean_colour, section

WIDTH, HEIGHT = 1501, 703
SPOTS = np.array([[x, 350.0] for x in range(200, 1400, 200)])


def ramp():
    """Red tells x, green tells y."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, 0 * x]).round().astype(np.uint8)


def read_at(sdata, **kwargs):
    """Places on the whole image that tiles around the spots were read at."""
    options = {"model": mean_colour, "tile_px": 8, "image_mpp": 1.0, "context": (1,), "key_added": "X", "amp": False}
    rg.pp.embed_tiles(sdata, progress=False, **(options | kwargs))
    colours = sdata.tables["table"].obsm["X"][:, :2]
    return colours * [WIDTH, HEIGHT]


def cut(sdata, low, high):
    return sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )


FACTORS = [None, [2, 2, 2], [3, 2], [{"y": 2, "x": 4}, {"y": 2, "x": 1}]]
BOXES = [None, ([97, 311], [1430, 389]), ([100, 1], [1401, 702])]
RESOLUTIONS = [2.0, 4.0, 8.0]


def in_pairs():
    """Every two of pyramid, box and resolution meet in a quick test, and all three in a slow one."""
    for f, b, r in np.ndindex(len(FACTORS), len(BOXES), len(RESOLUTIONS)):
        marks = () if (f + b + r) % len(RESOLUTIONS) == 0 else pytest.mark.slow
        yield pytest.param(FACTORS[f], BOXES[b], RESOLUTIONS[r], marks=marks)


@pytest.mark.parametrize(("factors", "box", "mpp"), in_pairs())
def test_tiles_are_read_where_the_spots_lie(factors, box, mpp):
    sdata = section(SPOTS, ramp(), scale_factors=factors)
    found = read_at(sdata if box is None else cut(sdata, *box), mpp=mpp)
    if box is not None and box[1][1] - box[0][1] < 8 * mpp:
        # A tile that hangs over the edge shows mirrored tissue.
        found[:, 1] = SPOTS[:, 1]
    # Half a pixel of the tile, and a step of the ramp.
    np.testing.assert_allclose(found, SPOTS, atol=mpp / 2 + WIDTH / 255)


def test_every_level_has_a_grid_of_its_own():
    sdata = section(SPOTS, ramp(), scale_factors=[2, 2])
    for k, level in enumerate(get_pyramid_levels(sdata.images["he"])):
        shift = Translation([10.0 * k, 4.0 * k], ("x", "y"))
        set_transformation(level, Sequence([Scale([2.0**k, 2.0**k], ("x", "y")), shift]), "global")
    grids = image_pyramid(sdata, "he").grids
    assert [grid.scale for grid in grids] == [(1, 1), (2, 2), (4, 4)]
    assert [grid.offset for grid in grids] == [(0, 0), (10, 4), (20, 8)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image.sel(x=slice(300, 900)), r"begin at x, y = \[300.0, 0.0\] and are \[1.0, 1.0\] wide"),
        (lambda image: image.isel(x=slice(None, None, 4), y=slice(None, None, 4)), r"are \[4.0, 4.0\] wide"),
        (lambda image: image.coarsen(x=4, y=4, boundary="trim").mean().astype("uint8"), r"are \[4.0, 4.0\] wide"),
    ],
)
def test_images_cut_with_xarray_are_refused_and_the_advice_works(change, said):
    sdata = section(SPOTS, ramp())
    sdata.images["he"] = image = change(sdata.images["he"])
    with pytest.raises(ValueError, match=said):
        read_at(sdata, mpp=4.0, image_mpp=float(image.x[1] - image.x[0]))
    widths = [float(image[axis][1] - image[axis][0]) for axis in "xy"]
    begins = [float(image[axis][0]) - width / 2 for axis, width in zip("xy", widths, strict=True)]
    frame = {"global": Sequence([Scale(widths, ("x", "y")), Translation(begins, ("x", "y"))])}
    sdata.images["he"] = Image2DModel.parse(image.data, dims=image.dims, transformations=frame)
    found = read_at(sdata, mpp=4.0, image_mpp=widths[0])
    on_image = np.isfinite(found[:, 0])
    assert on_image.sum() >= 3
    np.testing.assert_allclose(found[on_image], SPOTS[on_image], atol=2 + WIDTH / 255)


def test_a_level_taken_out_of_a_pyramid_is_an_image():
    sdata = section(SPOTS, ramp(), scale_factors=[2, 2])
    sdata.images["he"] = get_pyramid_levels(sdata.images["he"], n=1)
    assert not isinstance(get_transformation(sdata.images["he"]), Identity)
    np.testing.assert_allclose(read_at(sdata, mpp=4.0, image_mpp=2.0), SPOTS, atol=2 + WIDTH / 255)


def outlined(outlines):
    sdata = section(SPOTS[: len(outlines)], ramp())
    sdata.shapes["spots"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines))
    return sdata


def test_outlines_that_cross_themselves_have_their_centre_inside(caplog):
    hourglass = [(400, 300), (440, 300.5), (400, 341), (440, 340)]
    valid = shapely.Polygon([(100, 100), (140, 100), (100, 130)])
    sdata = outlined([shapely.Polygon(hourglass), valid])
    with caplog.at_level(logging.INFO):
        centers, _ = element_centers(sdata, "spots")
    np.testing.assert_allclose(centers[0], [420, 320], atol=2)
    np.testing.assert_array_equal(centers[1], [valid.centroid.x, valid.centroid.y])
    assert "1 outlines of 'spots' cross themselves" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not sdata.shapes["spots"].geometry.is_valid.all()


def test_outlines_without_a_centre_warn(caplog):
    sdata = outlined([shapely.box(100, 100, 120, 120), shapely.box(300, 100, 320, 120)])
    sdata.shapes["spots"].loc[1, "geometry"] = shapely.Polygon()
    with caplog.at_level(logging.WARNING):
        assert np.isnan(read_at(sdata, mpp=4.0)[1]).all()
    assert "1 outlines of 'spots' are empty and have no centre, for instance those of '1'" in caplog.text


def points(*parts):
    """Points of several partitions, each with an index of its own."""
    frames = [pd.DataFrame(xy, columns=["x", "y"]) for xy in parts]
    return PointsModel.parse(dd.concat([dd.from_pandas(frame, npartitions=1) for frame in frames]))


def test_points_are_numbered_through_where_their_index_starts_again():
    sdata = section(SPOTS, ramp())
    del sdata.shapes["spots"]
    sdata.points["spots"] = points(SPOTS[:2], SPOTS[2:])
    assert sdata.points["spots"].compute().index.tolist() == [0, 1, 0, 1, 2, 3]
    order = [4, 0, 5, 1, 2, 3]
    sdata.tables["table"] = sdata.tables["table"][order].copy()
    found = read_at(sdata, mpp=4.0, shapes_key="spots")
    np.testing.assert_allclose(found, SPOTS[order], atol=2 + WIDTH / 255)


def test_points_with_the_same_id_twice_are_refused():
    sdata = section(SPOTS[:3], ramp())
    del sdata.shapes["spots"]
    repeated = pd.DataFrame(SPOTS[:3], columns=["x", "y"], index=[0, 1, 1])
    sdata.points["spots"] = PointsModel.parse(dd.from_pandas(repeated, npartitions=1))
    with pytest.raises(ValueError, match="ids in the index of 'spots' are duplicated, for example '1'"):
        read_at(sdata, mpp=4.0, shapes_key="spots")


def test_a_table_of_labels_can_follow_the_advice():
    sdata = section(SPOTS, ramp())
    marks = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for name, (x, y) in zip([9, 3, 7, 5, 2, 8], SPOTS.astype(int), strict=True):
        marks[y - 6 : y + 6, x - 6 : x + 6] = name
    sdata.labels["cells"] = Labels2DModel.parse(marks, dims=("y", "x"))
    del sdata.shapes["spots"]
    sdata.tables["table"] = annotated(None, [2, 3, 5, 7, 8, 9], "cells")
    with pytest.raises(ValueError, match=r"'cells' are labels.*to_circles.*set_table_annotates") as caught:
        read_at(sdata, mpp=4.0)
    first, second, third = re.findall(r"`([^`]*)`", str(caught.value))
    names = {"sdata": sdata, "spatialdata": spatialdata, "pandas": pd, "table": sdata.tables["table"]}
    for line in (first, second, third):
        exec(line, names | {"region_key": "region", "table_key": "table"})
    np.testing.assert_allclose(read_at(sdata, mpp=4.0), SPOTS[[4, 1, 3, 2, 5, 0]], atol=2 + WIDTH / 255)


def test_pixels_of_a_store_that_is_gone_are_not_black(tmp_path):
    """Zarr reads zeros where it finds no file."""
    section(SPOTS, ramp(), scale_factors=[2]).write(tmp_path / "s.zarr")
    sdata = spatialdata.read_zarr(tmp_path / "s.zarr")
    part = cut(sdata, [97, 311], [1430, 389])
    np.testing.assert_allclose(read_at(sdata), SPOTS, atol=6)
    shutil.move(tmp_path / "s.zarr", tmp_path / "elsewhere.zarr")
    for opened in (sdata, part):
        with pytest.raises(FileNotFoundError, match=r"Image 'he' is read from .*s\.zarr.*Read the object again"):
            read_at(opened, overwrite=True)
