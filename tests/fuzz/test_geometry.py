"""Tiles of random images under random transformations against windows cut by brute force on the image's own axes.

At the image's own pixels a tile is the window, to the last bit. Where a tile is resampled, the colour at its middle is right
within one pixel of the level that is read and one level of grey.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, set_transformation

import ragst_sd as rg

from .examples import examples

pytestmark = pytest.mark.slow

PAD = 128


def pixels(tiles):
    """The tile itself as its embedding."""
    return tiles.float().flatten(1)


@st.composite
def similarities(draw):
    """Scale, rotation, flip and translation."""
    angle, scale = draw(st.floats(-np.pi, np.pi)), draw(st.floats(0.05, 20))
    flip, shift = draw(st.sampled_from([1, -1])), [draw(st.floats(-1e4, 1e4)) for _ in range(2)]
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[c, -s], [s, c]]) @ np.diag([1, flip])
    matrix[:2, 2] = shift
    return matrix


@st.composite
def scenes(draw):
    height, width = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    n = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    # Every place, edges, corners and outside.
    xy = rng.uniform([-15, -15], [width + 15, height + 15], size=(n, 2))
    xy[0] = width / 2, height / 2
    return {
        "image": rng.integers(0, 256, (3, height, width), dtype=np.uint8),
        "xy": xy,
        "image_to_frame": draw(similarities()),
        "shapes_to_frame": draw(similarities()),
        "chunks": (3, draw(st.integers(7, 90)), draw(st.integers(7, 90))),
        "scale_factors": draw(st.sampled_from([None, [2]])),
    }


def section(scene, image=None):
    """The scene as an object; spots lie where the inverse of their own transformation puts them."""
    homogeneous = np.column_stack([scene["xy"], np.ones(len(scene["xy"]))])
    own = np.linalg.solve(scene["shapes_to_frame"], scene["image_to_frame"] @ homogeneous.T).T[:, :2]
    shapes = ShapesModel.parse(own, geometry=0, radius=1)
    set_transformation(shapes, Affine(scene["shapes_to_frame"], ("x", "y"), ("x", "y")))
    parsed = Image2DModel.parse(
        scene["image"] if image is None else image, dims=("c", "y", "x"), scale_factors=scene["scale_factors"],
        chunks=scene["chunks"],
    )  # fmt: skip
    set_transformation(parsed, Affine(scene["image_to_frame"], ("x", "y"), ("x", "y")))
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * len(own)), "spot": shapes.index}, index=shapes.index.astype(str)
    )
    table = TableModel.parse(
        AnnData(np.ones((len(own), 1), dtype=np.float32), obs=obs),
        region="spots",
        region_key="region",
        instance_key="spot",
    )
    return SpatialData(images={"he": parsed}, shapes={"spots": shapes}, tables={"table": table})


def embedded(sdata, **kwargs):
    options = {"model": pixels, "mpp": None, "context": (1,), "key_added": "X", "progress": False, "amp": False}
    rg.pp.embed_tiles(sdata, **(options | kwargs))
    table = sdata.tables["table"]
    return table.obsm["X"], table.obs["tile_padded_fraction"].to_numpy()


@examples(400)
@given(scene=scenes(), tile_px=st.integers(1, 40), batch_size=st.integers(1, 5), num_workers=st.sampled_from([0, 2]))
def test_a_tile_is_the_window_on_the_axes_of_the_image(scene, tile_px, batch_size, num_workers):
    found, padded = embedded(section(scene), tile_px=tile_px, batch_size=batch_size, num_workers=num_workers)
    image, (height, width) = scene["image"], scene["image"].shape[1:]
    mirrored = np.pad(image, ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
    for (x, y), vector, share in zip(scene["xy"], found, padded, strict=True):
        if min(abs(x), abs(x - width), abs(y), abs(y - height)) < 1e-6:
            continue
        if not (0 <= x < width and 0 <= y < height):
            assert np.isnan(vector).all() and share == 1
            continue
        first = np.array([x, y]) - tile_px / 2
        if (abs(first % 1 - 0.5) < 1e-6).any():
            continue
        x0, y0 = (int(np.rint(one)) for one in first)
        window = mirrored[:, y0 + PAD : y0 + PAD + tile_px, x0 + PAD : x0 + PAD + tile_px]
        np.testing.assert_array_equal(np.rint(vector * 255), window.reshape(-1))
        inside = max(0, min(x0 + tile_px, width) - max(x0, 0)) * max(0, min(y0 + tile_px, height) - max(y0, 0))
        assert abs(share - (1 - inside / tile_px**2)) < 1e-6


@examples(200)
@given(scene=scenes(), tile_px=st.integers(2, 12), zoom=st.floats(0.4, 4.0), image_mpp=st.floats(0.1, 5))
def test_a_resampled_tile_has_the_colour_of_its_place(scene, tile_px, zoom, image_mpp):
    """On a ramp the mean of a tile is the colour at its middle."""
    height, width = scene["image"].shape[1:]
    y, x = np.mgrid[:height, :width] + 0.5
    ramp = np.stack([255 * x / width, 255 * y / height, np.full((height, width), 128.0)])
    sdata = section(scene, np.rint(ramp).astype(np.uint8))
    found, padded = embedded(sdata, tile_px=tile_px, mpp=zoom * image_mpp, image_mpp=image_mpp)
    coarse = 2 if scene["scale_factors"] and zoom >= 2 / 1.01 else 1
    for (cx, cy), vector, share in zip(scene["xy"], found, padded, strict=True):
        # A window that is mirrored at the edge is no ramp.
        margin = zoom * tile_px / 2 + 2 * coarse
        if share > 0 or not (margin < cx < width - margin and margin < cy < height - margin):
            continue
        mean = vector.reshape(3, -1).mean(axis=1) * 255
        np.testing.assert_allclose(mean[0], 255 * cx / width, atol=1 + 255 * coarse / width)
        np.testing.assert_allclose(mean[1], 255 * cy / height, atol=1 + 255 * coarse / height)
        np.testing.assert_allclose(mean[2], 128, atol=1)
