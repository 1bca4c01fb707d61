"""Microns per pixel of images that are cut and resampled."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Scale, set_transformation

import ragst_sd as rg
from ragst_sd._resolution import embedded_mpp_of, image_mpp_of

from .sections import painted, section


@pytest.fixture
def slide():
    sdata = section([[100, 120], [200, 120]])
    rg.pp.set_image_mpp(sdata, mpp=0.5)
    return sdata


def scaled(sdata, factor, name="small"):
    for element in ("he", "spots"):
        set_transformation(sdata[element], Scale([factor, factor], ("x", "y")), name)


@pytest.mark.parametrize(("mpp", "is_said"), [(0.0005, True), (500, True), (0.25, False), (20, False)])
def test_another_unit_is_said(slide, mpp, is_said, caplog):
    rg.pp.set_image_mpp(slide, mpp=mpp)
    assert ("Is it another unit?" in caplog.text) == is_said
    caplog.clear()
    assert image_mpp_of(slide, "he", mpp) == mpp
    assert ("Is it another unit?" in caplog.text) == is_said


def test_they_follow_an_image_into_a_frame_it_had(slide):
    scaled(slide, 0.25)
    rg.pp.set_image_mpp(slide, mpp=0.5)
    small = slide.transform_to_coordinate_system("small")
    assert small.images["he"].shape == (3, 60, 80)
    assert image_mpp_of(small, "he") == pytest.approx(2.0)
    assert image_mpp_of(slide, "he") == 0.5


def test_they_follow_an_image_that_keeps_its_place(slide):
    scaled(slide, 0.5)
    small = slide.transform_to_coordinate_system("small", maintain_positioning=True)
    assert image_mpp_of(small, "he") == pytest.approx(1.0)


def test_they_follow_an_image_that_was_resized_by_hand(slide):
    frame = {"global": Scale([4.0, 4.0], ("x", "y"))}
    slide.images["he"] = Image2DModel.parse(painted()[:, ::4, ::4], dims=("c", "y", "x"), transformations=frame)
    assert image_mpp_of(slide, "he") == pytest.approx(2.0)


def test_an_unknown_frame_is_an_error_whose_advice_works(slide):
    scaled(slide, 0.25)
    small = slide.transform_to_coordinate_system("small")
    with pytest.raises(ValueError, match=r"when it had 320 x 240 pixels and has 80 x 60 now.*set_image_mpp"):
        rg.pp.tile_grid(small, image_key="he", tile_px=8, mpp=2.0, tissue=False)
    rg.pp.set_image_mpp(small, image_key="he", mpp=2.0)
    rg.pp.tile_grid(small, image_key="he", tile_px=8, mpp=2.0, tissue=False)
    np.testing.assert_allclose(small.shapes["tiles"].geometry.area, 8**2)
    # The object that it was made from has the same attrs.
    assert image_mpp_of(slide, "he") == 0.5


@pytest.mark.parametrize(("low", "high"), [([32, 24], [288, 216]), ([0, 0], [160, 130]), ([7, 9], [300, 100])])
def test_a_cut_leaves_them_alone(slide, low, high, caplog):
    crop = slide.query.bounding_box(
        axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )
    assert image_mpp_of(crop, "he") == 0.5
    assert not caplog.records


def test_a_cut_that_may_be_a_resampled_image_warns(slide, caplog):
    slide.images["he"] = Image2DModel.parse(painted()[:, ::2, ::2], dims=("c", "y", "x"))
    with caplog.at_level(logging.WARNING):
        assert image_mpp_of(slide, "he") == 0.5
    assert "320 x 240 pixels and has 160 x 120 now" in caplog.text
    assert "set_image_mpp" in caplog.text


def test_a_new_alignment_leaves_them_alone(slide):
    turned = Affine(np.array([[0, -3.0, 90], [3, 0, 7], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    set_transformation(slide.images["he"], turned)
    assert image_mpp_of(slide, "he") == 0.5


def test_an_image_moved_and_cut_is_an_error(slide):
    scaled(slide, 0.3, "global")
    crop = slide.query.bounding_box(
        axes=("x", "y"), min_coordinate=[5, 5], max_coordinate=[60, 30], target_coordinate_system="global"
    )
    with pytest.raises(ValueError, match="whether it was cut or resampled"):
        image_mpp_of(crop, "he")
    assert image_mpp_of(crop, "he", 0.7) == 0.7


def test_what_was_embedded_before_is_drawn_at_the_size_of_now(slide):
    header = {"image_key": "he", "image_mpp": 0.5}
    scaled(slide, 0.25)
    rg.pp.set_image_mpp(slide, mpp=0.5)
    small = slide.transform_to_coordinate_system("small")
    assert embedded_mpp_of(small, header) == pytest.approx(2.0)
    # Told by the call that embedded it, and never kept.
    assert embedded_mpp_of(small, header | {"image_mpp": 0.6}) == 0.6


def test_objects_of_earlier_releases_have_no_pixels_kept(slide):
    slide.attrs["ragst"] = {"image_mpp": {"he": 0.25}}
    slide.images["he"] = Image2DModel.parse(painted()[:, ::2, ::2], dims=("c", "y", "x"))
    assert image_mpp_of(slide, "he") == 0.25


def test_they_survive_a_store(slide, tmp_path):
    from spatialdata import read_zarr

    scaled(slide, 0.5)
    rg.pp.set_image_mpp(slide, mpp=0.5)
    slide.write(tmp_path / "slide.zarr")
    small = read_zarr(tmp_path / "slide.zarr").transform_to_coordinate_system("small")
    assert image_mpp_of(small, "he") == pytest.approx(1.0)
