"""Where pixels and spots of SpatialData elements lie."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import get_pyramid_levels
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, Sequence, Translation, get_transformation, set_transformation

import ragst_sd as rg
from ragst_sd._elements import image_pyramid

from .sections import mean_colour, section

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


@pytest.mark.parametrize("mpp", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("factors", [None, [2, 2, 2], [3, 2], [{"y": 2, "x": 4}, {"y": 2, "x": 1}]])
@pytest.mark.parametrize("box", [None, ([97, 311], [1430, 389]), ([100, 1], [1401, 702])])
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
