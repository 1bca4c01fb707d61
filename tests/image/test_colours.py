"""What the numbers of a picture mean: full brightness, order of channels, opacity."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.image.colours import Colours, read_colours, thinned

PINK = np.array([210, 90, 160])


@pytest.fixture
def rgb():
    """Bright glass above, pink tissue below; uint8 (3, 30, 40)."""
    pixels = np.empty((3, 30, 40), np.uint8)
    pixels[:, :10] = 250
    pixels[:, 10:] = PINK[:, None, None]
    return pixels


def tissue(pixels, **kwargs):
    """Colour of the tissue as it is read."""
    out = read_colours(pixels, **kwargs).to_rgb(pixels)
    assert out.dtype == np.uint8
    assert out.shape == (3, *pixels.shape[1:])
    return out[:, 20, 20]


def with_fourth(rgb, value):
    return np.concatenate([rgb, np.full((1, *rgb.shape[1:]), value, rgb.dtype)])


class TestFullBrightness:
    @pytest.mark.parametrize(
        ("dtype", "factor"),
        [
            (np.uint8, 1), (np.uint16, 1), (np.uint16, 4095 / 255), (np.uint16, 257), (np.int16, 1), (np.uint32, 1),
            (np.int64, 257), (np.float32, 1 / 255), (np.float64, 1), (np.float16, 1 / 255), (np.float32, 257),
        ],
    )  # fmt: skip
    def test_is_told_from_the_values(self, rgb, dtype, factor):
        stored = rgb * float(factor)
        stored = stored if np.dtype(dtype).kind == "f" else np.rint(stored)
        np.testing.assert_array_equal(tissue(stored.astype(dtype)), PINK)

    @pytest.mark.parametrize(("factor", "dtype"), [(1 / 255, np.float32), (1.0, np.float64), (1.0, np.int32)])
    def test_resampling_may_overshoot(self, rgb, factor, dtype):
        stored = rgb.astype(float)
        stored[:, 9], stored[:, 10] = 275, -20
        np.testing.assert_array_equal(tissue((stored * factor).astype(dtype)), PINK)

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: p.astype(np.uint16) * 4, lambda p: p.astype(np.uint16) * 100, lambda p: p / 255 * 2 - 1,
            lambda p: p / 65535, lambda p: -2 * np.log(p / 255 + 1e-3), lambda p: (p > 100).astype(np.uint8),
            lambda p: p.astype(np.int8), lambda p: np.maximum(p, 200).astype(np.int8), lambda p: p.astype(np.uint32) * 2**20, lambda p: p.astype(complex),
            lambda p: np.full(p.shape, np.nan),
        ],
    )  # fmt: skip
    def test_that_cannot_be_told_is_refused(self, rgb, change):
        with pytest.raises(ValueError, match=r"Scan holds .* pixels from .*embed_tiles.*value_max=.*read_st"):
            read_colours(change(rgb), what="Scan")

    def test_may_be_given(self, rgb):
        np.testing.assert_array_equal(tissue(rgb.astype(np.uint16) * 4, value_max=1020), PINK)

    def test_black_is_black(self, rgb):
        assert (tissue(rgb.astype(np.uint16) * 0) == 0).all()

    def test_what_was_not_measured_is_white(self, rgb):
        stored = rgb / 255
        stored[:, 25:] = np.nan
        out = read_colours(stored).to_rgb(stored)
        assert (out[:, 25:] == 255).all()
        np.testing.assert_array_equal(out[:, 20, 20], PINK)

    def test_large_pictures_of_bytes_are_not_decoded_for_it(self):
        class Undecodable:
            shape, dtype = (3, 5000, 5000), np.dtype(np.uint8)

        assert read_colours(Undecodable()) == Colours()


class TestChannels:
    @pytest.mark.parametrize(
        ("names", "order"),
        [("rgb", [0, 1, 2]), ("bgr", [2, 1, 0]), (["Green", "BLUE", " red"], [1, 2, 0]), ([0, 1, 2], [0, 1, 2])],
    )
    def test_are_put_in_order_by_name(self, rgb, names, order):
        np.testing.assert_array_equal(tissue(rgb[order], names=list(names)), PINK)

    @pytest.mark.parametrize("names", [["r", "g", "x"], ["r", "r", "b"], ["DAPI", "CD3", "CD8"], ["a", "g", "b"]])
    def test_of_other_names_are_refused(self, rgb, names):
        with pytest.raises(ValueError, match=f"named '{names[0]}', '{names[1]}'.*c_coords"):
            read_colours(rgb, names=names)

    @pytest.mark.parametrize("photometric", ["separated", "cielab", "ycbcr", "miniswhite", "palette"])
    def test_of_other_colour_spaces_are_refused(self, rgb, photometric):
        with pytest.raises(ValueError, match=f"'{photometric}'; RGB is needed"):
            read_colours(rgb, photometric=photometric)


class TestOpacity:
    def test_has_any_place(self, rgb):
        stored = with_fourth(rgb, 255)[[3, 2, 1, 0]]
        np.testing.assert_array_equal(tissue(stored, names=["alpha", "blue", "green", "red"]), PINK)

    @pytest.mark.parametrize("premultiplied", [False, True])
    def test_is_laid_onto_white(self, rgb, premultiplied):
        quarter = 63.75 / 255
        stored = with_fourth(rgb.astype(float), 63.75)
        if premultiplied:
            stored[:3] *= quarter
        out = tissue(stored, names=list("rgba"), premultiplied=premultiplied, value_max=255)
        np.testing.assert_allclose(out, PINK * quarter + 255 * (1 - quarter), atol=1)

    @pytest.mark.parametrize(
        ("factor", "opaque"), [(1 / 255, 1), (1 / 255, 255), (1, 1), (1, 255), (257, 65535), (257, 255)]
    )
    def test_has_a_scale_of_its_own(self, rgb, factor, opaque):
        stored = np.concatenate([rgb * float(factor), np.full((1, 30, 40), opaque)])
        np.testing.assert_array_equal(tissue(stored, names=list("rgba")), PINK)

    def test_of_no_name_has_to_be_opaque(self, rgb):
        stored = with_fourth(rgb, 255)
        stored[3, 0] = 0
        np.testing.assert_array_equal(tissue(stored), PINK)
        stored[3, :5] = 0
        with pytest.raises(ValueError, match=r"four channels without names.*83%.*stains"):
            read_colours(stored)

    def test_of_nothing_is_refused(self, rgb):
        with pytest.raises(ValueError, match="0 everywhere"):
            read_colours(with_fourth(rgb, 0), names=list("rgba"))


def test_thinned_to_a_size(rgb):
    assert thinned(rgb, 20).shape == (3, 15, 20)
    assert thinned(rgb, 40).shape == rgb.shape
