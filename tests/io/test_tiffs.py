"""TIFFs of any kind, read as slides and as pictures of spots: the right colours, or a refusal by name."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import tifffile

import ragst_sd as rg

from .slides import paint

TILED = {"tile": (64, 64), "compression": "zlib"}
HEIGHT, WIDTH = 150, 210


@pytest.fixture(scope="module")
def pixels():
    return paint(5, HEIGHT, WIDTH)


def of_slide(path, **kwargs):
    image = rg.io.read_slide(path, mpp=0.5, **kwargs)["he"]["scale0"]["image"]
    assert image.dtype == np.uint8
    return np.moveaxis(np.asarray(image.data), 0, -1)


def of_spots(path, **kwargs):
    counts = pd.DataFrame([[1], [2]], index=["a", "b"], columns=["EPCAM"])
    centres = np.array([[30, 40], [60, 40]])
    image = rg.io.read_st(counts, path, coordinates=centres, image_mpp=0.5, **kwargs)["he"]
    assert image.dtype == np.uint8
    return np.moveaxis(np.asarray(image.data), 0, -1)


@pytest.fixture(params=[of_slide, of_spots])
def read(request):
    return request.param


def planes(pixels):
    return np.moveaxis(pixels, -1, 0)


def opaque(pixels, value=255):
    return np.concatenate([pixels, np.full((HEIGHT, WIDTH, 1), value, pixels.dtype)], axis=-1)


def names(*channels):
    return {"axes": "CYX", "Channel": {"Name": list(channels)}}


READABLE = {
    "8 bit in 16": lambda p: (p.astype(np.uint16), {"photometric": "rgb"} | TILED),
    "12 bit in 16": lambda p: (np.rint(p * (4095 / 255)).astype(np.uint16), {"photometric": "rgb"}),
    "16 bit, bytes swapped": lambda p: (p.astype(np.uint16) * 257, {"photometric": "rgb", "byteorder": ">"}),
    "floats": lambda p: ((p / 255).astype(np.float32), {"photometric": "rgb"}),
    "floats in tiles": lambda p: ((p / 255).astype(np.float32), {"photometric": "rgb"} | TILED),
    "half floats": lambda p: ((p / 255).astype(np.float16), {"photometric": "rgb"}),
    "one compressed strip": lambda p: (p, {"photometric": "rgb", "rowsperstrip": HEIGHT, "compression": "zlib"}),
    "one plane of a stack": lambda p: (p[None], {"photometric": "rgb", "metadata": {"axes": "ZYXS"}} | TILED),
    "stack of ImageJ": lambda p: (planes(p)[None, None], {"imagej": True, "metadata": {"axes": "TZCYX"}}),
    "16-bit stack of ImageJ": lambda p: (
        planes(p)[None, None].astype(np.uint16) * 257,
        {"imagej": True, "metadata": {"axes": "TZCYX"}},
    ),
    "named pages": lambda p: (planes(p)[::-1], {"ome": True, "metadata": names("Blue", "Green", "Red")}),
    "unnamed opaque fourth": lambda p: (opaque(p), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "alpha of 1": lambda p: (opaque(p, 1), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
}


@pytest.mark.parametrize("kind", READABLE)
def test_colours_are_right(read, pixels, tmp_path, kind):
    stored, options = READABLE[kind](pixels)
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    found = read(tmp_path / "a.tif").astype(int)
    assert np.abs(found - pixels).max() <= (1 if kind == "12 bit in 16" else 0)


@pytest.mark.parametrize("kind", ["associated", "unassociated"])
def test_alpha_is_laid_onto_white_as_the_file_says(read, pixels, tmp_path, kind):
    stored = opaque(pixels).astype(float)
    stored[:50, :, 3], stored[50:100, :, 3] = 0, 102
    if kind == "associated":
        stored[..., :3] *= stored[..., 3:] / 255
    code = {"associated": "assocalpha", "unassociated": "unassalpha"}[kind]
    tifffile.imwrite(tmp_path / "a.tif", stored.round().astype(np.uint8), photometric="rgb", extrasamples=[code])
    found = read(tmp_path / "a.tif")
    assert (found[:50] == 255).all()
    np.testing.assert_allclose(found[50:100], 0.4 * pixels[50:100] + 0.6 * 255, atol=1)
    np.testing.assert_array_equal(found[100:], pixels[100:])


REFUSED = {
    "CMYK": (lambda p: (opaque(255 - p, 0), {"photometric": "separated"}), "'separated'; RGB is needed"),
    "Lab": (lambda p: (p, {"photometric": "cielab"}), "'cielab'; RGB is needed"),
    "YCbCr as it is": (lambda p: (p, {"photometric": "ycbcr"}), "'ycbcr'; RGB is needed"),
    "inverted": (
        lambda p: (planes(p), {"ome": True, "photometric": "miniswhite", "metadata": {"axes": "CYX"}}),
        "'miniswhite'; RGB is needed",
    ),
    "palette": (
        lambda p: (p[..., 0], {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        "'palette'; RGB is needed",
    ),
    "grey": (lambda p: (p[..., 0], {"photometric": "minisblack"}), "axes YX.*RGB is needed"),
    "stains": (lambda p: (planes(p), {"ome": True, "metadata": names("DAPI", "CD3", "CD8")}), "'DAPI', 'CD3', 'CD8'"),
    "four stains": (lambda p: (opaque(p, 9), {"photometric": "rgb", "extrasamples": ["unspecified"]}), "stains"),
    "nothing opaque": (lambda p: (opaque(p, 0), {"photometric": "rgb", "extrasamples": [2]}), "0 everywhere"),
    "stack of planes": (
        lambda p: (np.stack([p, p]), {"imagej": True, "metadata": {"axes": "ZYXS"}}),
        r"axes ZYXS, shape \(2, .*in focus",
    ),
    "10 bit": (lambda p: (p.astype(np.uint16) * 4, {"photometric": "rgb"}), "holds uint16 pixels.*value_max="),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_by_name(read, pixels, tmp_path, kind):
    change, match = REFUSED[kind]
    stored, options = change(pixels)
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with pytest.raises(ValueError, match=rf"a\.tif' .*{match}"):
        read(tmp_path / "a.tif")


def test_tiles_that_were_left_out_say_nothing_of_full_brightness(read, pixels, tmp_path):
    tile = np.full((64, 64, 3), (210, 90, 160), np.uint16)
    tiles = (None if k == 1 else tile for k in range(4))
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(128, 128, 3), dtype=np.uint16, photometric="rgb", tile=(64, 64))
    found = read(tmp_path / "a.tif")
    assert (found[:64, 64:] == 255).all()
    np.testing.assert_array_equal(found[64:, 64:], tile)


def test_channels_in_several_files_are_refused(read, tmp_path):
    ids = [f"urn:uuid:0000000{k}-0000-0000-0000-000000000000" for k in range(3)]
    places = "".join(
        f"<TiffData IFD='0' PlaneCount='1' FirstC='{k}'><UUID FileName='{k}.ome.tif'>{one}</UUID></TiffData>"
        for k, one in enumerate(ids)
    )
    channels = "".join(f"<Channel ID='Channel:0:{k}' SamplesPerPixel='1'/>" for k in range(3))
    sizes = "DimensionOrder='XYCZT' Type='uint8' SizeX='48' SizeY='32' SizeC='3' SizeZ='1' SizeT='1'"
    for k, one in enumerate(ids):
        xml = (
            f"<?xml version='1.0' encoding='UTF-8'?><OME xmlns='http://www.openmicroscopy.org/Schemas/OME/2016-06' "
            f"UUID='{one}'><Image ID='Image:0'><Pixels ID='Pixels:0' {sizes}>{channels}{places}</Pixels></Image></OME>"
        )
        grey = np.full((32, 48), 70 * (k + 1), np.uint8)
        tifffile.imwrite(tmp_path / f"{k}.ome.tif", grey, photometric="minisblack", description=xml, metadata=None)
    with pytest.raises(ValueError, match="lie in several files"):
        read(tmp_path / "0.ome.tif")


def test_full_brightness_may_be_given(read, pixels, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.uint16) * 4, photometric="rgb", **TILED)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", value_max=1020), pixels)
    with pytest.raises(ValueError, match="`value_max` is 0"):
        read(tmp_path / "a.tif", value_max=0)


def test_the_largest_colour_picture_is_read(read, pixels, tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(np.full((50, 70, 3), 30, np.uint8), photometric="rgb", metadata=None)
        tiff.write(pixels, photometric="rgb", metadata=None)
        tiff.write(np.zeros((500, 400), np.uint8), photometric="minisblack", metadata=None)
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), pixels)
    assert "the largest picture, (150, 210, 3), is read; not" in caplog.text


@pytest.mark.parametrize(
    ("options", "chunk", "n_decoded"),
    [
        ({"rowsperstrip": 2400}, (2400, 2300), 1),
        ({"tile": (2400, 2304)}, (2400, 2300), 1),
        ({"rowsperstrip": 700}, (700, 2300), 4),
        ({"tile": (64, 1024)}, (1024, 1024), 38 * 3),
    ],
)
def test_strips_and_tiles_are_decoded_once(tmp_path, monkeypatch, options, chunk, n_decoded):
    large = np.full((2400, 2300, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", large, photometric="rgb", compression="zlib", **options)
    sdata = rg.io.read_slide(tmp_path / "a.tif", mpp=0.5)
    assert sdata["he"]["scale0"]["image"].data.chunksize == (3, *chunk)
    rg.pp.tile_grid(sdata, tile_px=230, mpp=0.5, tissue=False)
    decoded = []

    def spy(path, stamp, *, opened=rg.io._slide_file._opened_tiff):
        return [
            (places, page, lambda data, index, decode=decode: decoded.append(index) or decode(data, index))
            for places, page, decode in opened(path, stamp)
        ]

    monkeypatch.setattr(rg.io._slide_file, "_opened_tiff", spy)
    rg.pp.embed_tiles(sdata, model=lambda x: x.mean((2, 3)), tile_px=64, batch_size=4, context=(1,), progress=False)
    # Several segments are read for the hash of the image, and for the tiles.
    assert len(decoded) == (1 if n_decoded == 1 else 2 * n_decoded)
