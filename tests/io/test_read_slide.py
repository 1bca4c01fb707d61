"""Slide files: pixels, pyramid and resolution, read region by region."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import spatialdata as sd
import tifffile
from spatialdata.transformations import get_transformation

import ragst_sd as rg
from ragst_sd.io import _slide_file
from ragst_sd.io._slide_file import open_slide

from .slides import MPP, paint, write_pyramid


@pytest.fixture(scope="module")
def pixels():
    return paint(1, 1100, 1301)


@pytest.fixture(scope="module")
def slide_path(pixels, tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", pixels)


def level(sdata, k: int) -> np.ndarray:
    return np.asarray(sdata["he"][f"scale{k}"]["image"].data)


@pytest.mark.parametrize("ome", [False, True])
def test_levels_and_resolution_are_those_of_the_file(pixels, tmp_path, ome):
    sdata = rg.io.read_slide(write_pyramid(tmp_path / "a.tif", pixels, ome=ome))
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(MPP)
    assert list(sdata["he"]) == ["scale0", "scale1", "scale2"]
    for k in range(3):
        np.testing.assert_array_equal(level(sdata, k), np.moveaxis(pixels[:: 2**k, :: 2**k], -1, 0))
    assert set(get_transformation(sdata["he"], get_all=True)) == {"global"}
    # centres of pixels, in pixels of the finest level
    x = sdata["he"]["scale2"].coords["x"].to_numpy()
    assert len(x) == 326
    np.testing.assert_allclose(x[[0, -1]], [1301 / 326 / 2, 1301 - 1301 / 326 / 2])


def test_turned_slides_are_read_as_stored_and_said_so(pixels, tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, 3, False)])
    found = rg.io.read_slide(tmp_path / "a.tif", mpp=0.5)
    np.testing.assert_array_equal(level(found, 0), np.moveaxis(pixels, -1, 0))
    assert "shown rotated or mirrored (orientation 3)" in caplog.text
    with pytest.raises(ValueError, match=r"Image 'a.tif' has a flag.*`tifffile.imread\(path\)` as stored"):
        open_slide(tmp_path / "a.tif")


def test_jpeg_in_its_own_colour_space(pixels, tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", compression="jpeg", subsampling=(2, 2), tile=(256, 256)
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].photometric.name == "YCBCR"
    found = level(rg.io.read_slide(tmp_path / "a.tif", mpp=0.5), 0).astype(float)
    assert np.abs(found.mean((1, 2)) - pixels.mean((0, 1))).max() < 2


@pytest.mark.parametrize("layout", ["strips", "planes", "pages", "alpha"])
def test_tiffs_of_other_layouts(pixels, tmp_path, layout):
    path = tmp_path / "a.tif"
    if layout == "strips":
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64)
    elif layout == "pages":
        path = tmp_path / "a.ome.tif"
        planes = np.moveaxis(pixels, -1, 0)
        tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CYX"}, tile=(256, 256))
    elif layout == "planes":
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    else:
        alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        tifffile.imwrite(
            path, np.concatenate([pixels, alpha], -1), photometric="rgb", extrasamples=[2], tile=(256, 256)
        )
    sdata = rg.io.read_slide(path, mpp=0.25)
    np.testing.assert_array_equal(level(sdata, 0), np.moveaxis(pixels, -1, 0))
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == 0.25


def test_tiles_that_were_left_out_are_white(pixels, tmp_path):
    def tiles():
        yield pixels[:256, :256]
        yield None

    tifffile.imwrite(
        tmp_path / "a.tif", tiles(), shape=(256, 512, 3), dtype=np.uint8, photometric="rgb", tile=(256, 256)
    )
    found = level(rg.io.read_slide(tmp_path / "a.tif", mpp=0.5), 0)
    np.testing.assert_array_equal(found[:, :, :256], np.moveaxis(pixels[:256, :256], -1, 0))
    assert (found[:, :, 256:] == 255).all()


def test_any_window_equals_the_pixels(slide_path, pixels, rng):
    image = open_slide(slide_path).levels[0]
    for _ in range(20):
        y, x = rng.integers(0, 1000, 2)
        height, width = rng.integers(1, 100, 2)
        window = np.asarray(image[:, y : y + height, x : x + width])
        np.testing.assert_array_equal(window, np.moveaxis(pixels[y : y + height, x : x + width], -1, 0))


def test_nothing_is_read_until_asked_for_and_then_only_the_chunk(slide_path, monkeypatch):
    asked = []

    def spy(path, stamp, k, x, y, width, height, *, read=_slide_file._read_tiff):
        asked.append((k, width, height))
        return read(path, stamp, k, x, y, width, height)

    monkeypatch.setattr(_slide_file, "_read_tiff", spy)
    sdata = rg.io.read_slide(slide_path)
    assert asked == []
    assert sdata["he"]["scale0"]["image"].data[:, 900:1000, 300:400].compute().shape == (3, 100, 100)
    assert asked == [(0, 1024, 1024)], "one chunk, not the level"
    asked.clear()
    rg.pp.tile_grid(sdata, mpp=MPP)
    rg.pp.embed_tiles(sdata, tile_px=64, mpp=2.0, context=(1,), progress=False)
    assert max(width * height for _, width, height in asked) <= 1024 * 1024


def test_image_can_be_sent_to_another_process(slide_path, pixels):
    lazy = open_slide(slide_path).levels[0]
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(np.asarray(again[:, :50, :50]), np.moveaxis(pixels[:50, :50], -1, 0))


def test_file_that_was_replaced_is_read_anew(pixels, tmp_path):
    path = write_pyramid(tmp_path / "a.tif", pixels)
    assert level(rg.io.read_slide(path), 0).mean() > 100
    write_pyramid(path, np.zeros_like(pixels))
    assert level(rg.io.read_slide(path), 0).max() == 0


def test_tiles_and_embeddings_equal_those_of_pixels_in_memory(slide_path, pixels):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    image = Image2DModel.parse(pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"])
    in_memory, lazy = SpatialData(images={"he": image}), rg.io.read_slide(slide_path)
    for sdata in (in_memory, lazy):
        rg.pp.tile_grid(sdata, mpp=MPP, image_mpp=MPP, tissue=False)
        rg.pp.embed_tiles(sdata, mpp=MPP, image_mpp=MPP, context=(1,), progress=False)
    of_memory, of_slide = (one.tables["tiles_table"].obsm["X_texture"] for one in (in_memory, lazy))
    np.testing.assert_allclose(of_slide, of_memory, rtol=1e-5, atol=1e-5)


def test_tissue_is_told_from_the_margin(slide_path):
    sdata = rg.io.read_slide(slide_path)
    rg.pp.tile_grid(sdata, tile_px=112, mpp=MPP)
    assert sdata.tables["tiles_table"].obsm["spatial"][:, 0].min() > 1301 / 8 - 56


def test_written_and_read_back(slide_path, pixels, tmp_path):
    sdata = rg.io.read_slide(slide_path)
    sdata.write(tmp_path / "a.zarr")
    again = sd.read_zarr(tmp_path / "a.zarr")
    for k in range(3):
        np.testing.assert_array_equal(level(again, k), np.moveaxis(pixels[:: 2**k, :: 2**k], -1, 0))
    assert again.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(MPP)


def test_slide_predicts(slide_path, sections, fitted, embed):
    sdata = rg.io.read_slide(slide_path)
    rg.pp.tile_grid(sdata, tile_px=64, mpp=2.0)
    rg.pp.embed_tiles(sdata, **embed)
    sdata.tables["tiles_table"].obs["donor"] = "new"
    rg.tl.predict(sdata, fitted)
    assert np.isfinite(sdata.tables["predicted"].X).all()


class TestRealSlide:
    @pytest.fixture
    def path(self, data_dir):
        return data_dir / "histology" / "wsi_test" / "CMU-1-Small-Region.svs"

    def test_pixels_and_resolution(self, path):
        sdata = rg.io.read_slide(path)
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(0.499)
        whole = tifffile.imread(path)
        assert level(sdata, 0).shape == (3, 2967, 2220)
        window = np.asarray(sdata["he"]["scale0"]["image"].data[:, 900:1300, 700:1100]).astype(int)
        # two decoders of JPEG
        assert np.abs(window - np.moveaxis(whole[900:1300, 700:1100], -1, 0)).max() <= 8

    def test_tiles_and_embeddings(self, path):
        sdata = rg.io.read_slide(path)
        rg.pp.tile_grid(sdata)
        rg.pp.embed_tiles(sdata, context=(1,), progress=False)
        table = sdata.tables["tiles_table"]
        assert 20 < table.n_obs < 120
        assert np.isfinite(table.obsm["X_texture"]).all()


class TestResolution:
    def test_absent(self, pixels, tmp_path, caplog):
        sdata = rg.io.read_slide(write_pyramid(tmp_path / "a.tif", pixels, mpp=None))
        assert "image_mpp" not in sdata.attrs.get("ragst", {})
        assert "does not state its microns per pixel" in caplog.text

    def test_of_a_printer_is_passed_over(self, pixels, tmp_path, caplog):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), resolution=(72, 72), resolutionunit="INCH")
        assert "image_mpp" not in rg.io.read_slide(path).attrs.get("ragst", {})
        assert "352.8 x 352.8 microns per pixel, which no microscope has" in caplog.text

    def test_in_inches(self, pixels, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(101600, 101600), resolutionunit="INCH")
        assert rg.io.read_slide(path).attrs["ragst"]["image_mpp"]["he"] == pytest.approx(0.25)

    def test_unlike_in_x_and_y(self, pixels, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(2e4, 1e4), resolutionunit="CENTIMETER")
        with pytest.raises(ValueError, match=r"not square: 0\.5 x 1 microns"):
            rg.io.read_slide(path)
        assert rg.io.read_slide(path, mpp=1.0).attrs["ragst"]["image_mpp"]["he"] == 1.0


class TestErrors:
    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            rg.io.read_slide(tmp_path / "a.svs")
        with pytest.raises(FileNotFoundError, match="is a folder"):
            rg.io.read_slide(tmp_path)

    def test_no_slide(self, tmp_path):
        (tmp_path / "a.svs").write_bytes(b"no slide at all")
        with pytest.raises(ValueError, match=r"no slide that OpenSlide knows and no TIFF.*read_st"):
            rg.io.read_slide(tmp_path / "a.svs")

    def test_truncated(self, slide_path, tmp_path):
        (tmp_path / "a.tif").write_bytes(slide_path.read_bytes()[:100_000])
        with pytest.raises(ValueError, match="damaged or incomplete"):
            rg.io.read_slide(tmp_path / "a.tif")

    def test_damaged_within(self, slide_path, tmp_path):
        content = bytearray(slide_path.read_bytes())
        content[200_000:210_000] = bytes(10_000)
        (tmp_path / "a.tif").write_bytes(content)
        sdata = rg.io.read_slide(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a\.tif' is damaged or incomplete"):
            level(sdata, 0)

    @pytest.mark.parametrize("shape", [(300, 300), (300, 300, 2), (5, 300, 300)])
    def test_not_rgb(self, tmp_path, shape):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), photometric="minisblack")
        with pytest.raises(ValueError, match="RGB is needed"):
            rg.io.read_slide(tmp_path / "a.tif")

    @pytest.mark.parametrize("mpp", [0, -1, "0.5", float("nan")])
    def test_mpp(self, slide_path, mpp):
        with pytest.raises(ValueError, match="`mpp` is"):
            rg.io.read_slide(slide_path, mpp=mpp)


def test_log_says_what_was_read(slide_path, caplog):
    with caplog.at_level(logging.INFO):
        rg.io.read_slide(slide_path)
    assert "1301 x 1100 px, 3 levels, 0.5 um per px" in caplog.text
