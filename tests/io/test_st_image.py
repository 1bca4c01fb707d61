"""Pictures as `rg.io.read_st` takes them: formats, depths, transparency, size."""

from __future__ import annotations

import re

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from ragst_sd.io import read_st

from .deposits import HEIGHT, WIDTH, pixels_of


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".jpg", ".jpeg", ".JPG"])
def test_formats(adata, tmp_path, suffix):
    path = tmp_path / f"he{suffix}"
    smooth = np.zeros((HEIGHT, WIDTH, 3), np.uint8) + np.linspace(0, 255, WIDTH).astype(np.uint8)[:, None]
    smooth[..., 1] = 90
    (tifffile.imwrite if "tif" in suffix else lambda p, a: Image.fromarray(a).save(p, quality=95))(path, smooth)
    found = pixels_of(read_st(adata, path))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), np.moveaxis(smooth, -1, 0), atol=4)


def test_planar_tif_and_lone_axes(adata, picture, tmp_path):
    planes = np.moveaxis(picture, -1, 0)
    tifffile.imwrite(tmp_path / "planar.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(
        tmp_path / "he.ome.tif", planes[None], ome=True, photometric="minisblack", metadata={"axes": "ZCYX"}
    )
    for name in ("planar.tif", "he.ome.tif"):
        np.testing.assert_array_equal(pixels_of(read_st(adata, tmp_path / name)), planes)


def test_transparency_is_laid_onto_white(adata, picture):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:100] = 0
    alpha[100:200] = 51
    found = pixels_of(read_st(adata, np.concatenate([picture, alpha], axis=-1)))
    assert (found[:, :100] == 255).all()
    expected = np.rint(0.2 * picture[100:200].astype(float) + 0.8 * 255)
    np.testing.assert_allclose(np.moveaxis(found[:, 100:200], 0, -1), expected, atol=1)
    np.testing.assert_array_equal(found[:, 200:], np.moveaxis(picture[200:], -1, 0))


def test_palette(adata, picture, tmp_path):
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "palette.png")
    expected = np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0)
    np.testing.assert_array_equal(pixels_of(read_st(adata, tmp_path / "palette.png")), expected)


def test_other_depths(adata, picture):
    expected = np.moveaxis(picture, -1, 0)
    np.testing.assert_array_equal(pixels_of(read_st(adata, picture.astype(np.uint16) * 257)), expected)
    np.testing.assert_array_equal(pixels_of(read_st(adata, picture.astype(np.float32) / 255)), expected)
    with pytest.raises(ValueError, match=r"holds int64 pixels from"):
        read_st(adata, picture.astype(np.int64) * 1000)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_is_refused(adata, picture, tmp_path, mode):
    grey = Image.fromarray(picture).convert("L")
    path = tmp_path / "grey.png"
    (Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)).save(path)
    with pytest.raises(ValueError, match=r"Image 'grey.png' is grey.*RGB"):
        read_st(adata, path)


def test_channels_first_is_refused(adata, picture):
    with pytest.raises(ValueError, match=r"channels come first: pass `np.moveaxis"):
        read_st(adata, np.moveaxis(picture, -1, 0))


def test_large_pictures_pass_the_limit_of_pillow(adata, picture, picture_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    np.testing.assert_array_equal(pixels_of(read_st(adata, picture_path)), np.moveaxis(picture, -1, 0))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_pyramid_of_a_large_picture(adata, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (1301, 2207, 3), dtype=np.uint8)
    image = read_st(adata, pixels)["he"]
    assert list(image) == ["scale0", "scale1", "scale2"]
    level = np.moveaxis(pixels, -1, 0)
    for k in range(3):
        found = image[f"scale{k}"]["image"]
        assert found.dtype == np.uint8
        assert found.data.chunksize[1:] == tuple(min(512, size) for size in level.shape[1:])
        np.testing.assert_array_equal(np.asarray(found.data), level)
        height, width = (size // 2 * 2 for size in level.shape[1:])
        blocks = level[:, :height, :width].reshape(3, height // 2, 2, width // 2, 2)
        level = np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def test_small_picture_is_one_scale(adata, picture):
    assert read_st(adata, picture)["he"].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("step", [257, 16])
def test_deep_png_keeps_all_its_bits(adata, picture, tmp_path, step):
    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(picture.astype(np.uint16) * step))
    found = pixels_of(read_st(adata, path, value_max=255 * step))
    np.testing.assert_array_equal(found, np.moveaxis(picture, -1, 0))


def turned(path, picture, orientation):
    if path.suffix == ".tif":
        tifffile.imwrite(path, picture, photometric="rgb", extratags=[(274, 3, 1, orientation, False)])
        return
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_turned_pictures_are_refused(adata, picture, tmp_path, suffix):
    turned(tmp_path / f"turned{suffix}", picture, 6)
    with pytest.raises(ValueError, match=r"shown rotated or mirrored \(orientation 6\)") as refused:
        read_st(adata, tmp_path / f"turned{suffix}")
    # What the message advises gives what it says.
    stored, shown = re.search(r"`([^`]+)` as stored, or `([^`]+)` as shown", str(refused.value)).groups()
    names = {"np": np, "Image": Image, "ImageOps": ImageOps, "tifffile": tifffile, "path": tmp_path / f"turned{suffix}"}
    assert eval(stored, names).shape == (HEIGHT, WIDTH, 3)
    assert eval(shown, names).shape == (WIDTH, HEIGHT, 3)
    turned(tmp_path / f"upright{suffix}", picture, 1)
    assert pixels_of(read_st(adata, tmp_path / f"upright{suffix}")).shape == (3, HEIGHT, WIDTH)


def test_cmyk_is_refused_as_in_tiffs(adata, picture, tmp_path):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "print.jpg")
    with pytest.raises(ValueError, match=r"Image 'print.jpg' are stored as 'cmyk'; RGB is needed"):
        read_st(adata, tmp_path / "print.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_half_a_picture_is_refused(adata, picture, tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cannot be decoded \(.*truncated.*damaged or incomplete"):
        read_st(adata, path)
