"""Microns per pixel that TIFFs state, in any unit, and metadata that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import ragst_sd as rg
from ragst_sd.io._tiff_mpp import microns_of

PIXELS = np.full((40, 60, 3), 200, np.uint8)
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def mpp_of(path, **kwargs):
    tifffile.imwrite(path, PIXELS, photometric="rgb", **kwargs)
    return rg.io.read_slide(path).attrs.get("ragst", {}).get("image_mpp", {}).get("he")


UNITS = {
    "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "thou": 25.4,
    "in": 25_400, "ft": 304_800, "pt": 25_400 / 72,
}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_units_of_ome(tmp_path, unit):
    size = {f"PhysicalSize{axis}": 0.5 / UNITS[unit] for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    assert mpp_of(tmp_path / "a.ome.tif", metadata={"axes": "YXS"} | size | units) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [
        ("um", 2),
        ("micron", 2),
        ("microns", 2),
        ("\\u00B5m", 2),
        ("nm", 2e-3),
        ("mm", 2e3),
        ("cm", 2e4),
        ("inch", 50_800),
    ],
)
def test_units_of_imagej(tmp_path, unit, per_unit):
    found = mpp_of(tmp_path / "a.tif", imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    assert found == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "furlong", ""])
def test_what_is_no_unit_of_length(unit):
    assert microns_of(unit) is None


@pytest.mark.parametrize("unit", ["μm", "µm", "UM", " micrometer "])
def test_spellings_of_the_micron(unit):
    assert microns_of(unit) == 1


def ome(body):
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}">{body}</OME>'


UNREADABLE = {
    "cut off": ome("<Image ID='Image:0'><Pixels PhysicalSizeX='0.5'")[:-6],
    "companion": ome("<BinaryOnly MetadataFile='x.companion.ome' UUID='urn:uuid:2'/>"),
    "no pixels": ome("<Image ID='Image:0'/>"),
    "no numbers": ome(
        "<Image ID='Image:0'><Pixels ID='Pixels:0' DimensionOrder='XYCZT' Type='uint8' SizeX='60' SizeY='40' SizeC='3' "
        "SizeZ='1' SizeT='1' PhysicalSizeX='wide' PhysicalSizeY='0'><Channel ID='Channel:0' SamplesPerPixel='3'/>"
        "<TiffData/></Pixels></Image>"
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_metadata_mean_that_it_is_unknown(tmp_path, caplog, kind):
    assert mpp_of(tmp_path / "a.tif", description=UNREADABLE[kind].encode(), metadata=None) is None
    assert "Pass `mpp=`" in caplog.text
