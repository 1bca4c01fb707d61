"""Microns per pixel that a TIFF states: in OME-XML, by ImageJ, or in its resolution tags."""

from __future__ import annotations

import logging
from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring

import numpy as np

logger = logging.getLogger(__name__)

# Microns in each unit of length of the OME schema that fits a slide, and in ImageJ's own spellings.
_MICRONS = {
    "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6,
    "thou": 25.4, "mil": 25.4, "li": 25_400 / 12, "pt": 25_400 / 72, "in": 25_400.0, "ft": 304_800.0,
    "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "inch": 25_400.0, "\\u00B5m": 1.0,
    "angstrom": 1e-4, "ångström": 1e-4, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
_RESOLUTION_UNITS = {2: _MICRONS["in"], 3: _MICRONS["cm"], 4: _MICRONS["mm"], 5: _MICRONS["µm"]}


def microns_of(unit: str) -> float | None:
    """Microns in a unit of length; `None` for pixels, and for what is none."""
    # Two letters look like the sign for micro, and two like that of angstrom.
    unit = unit.strip().replace("μ", "µ").replace("\u212b", "Å")
    return _MICRONS.get(unit, _MICRONS.get(unit.lower()))


def tiff_mpp(tiff: Any, series: int) -> tuple[float, float] | None:
    """Microns per pixel in x and y; `None` where a file states none, or nothing that can be understood."""
    described = ome_image(tiff, series)
    if described is not None:
        pixels = described.find("{*}Pixels")
        x, y = (None if pixels is None else _physical_size(pixels, axis) for axis in "XY")
        if x is not None and y is not None:
            return x, y
    tags = tiff.series[series].keyframe.tags
    unit = _RESOLUTION_UNITS.get(tags.valueof("ResolutionUnit", default=1))
    stated = tiff.is_imagej and (tiff.imagej_metadata or {}).get("unit")
    unit = microns_of(str(stated)) or unit if stated else unit
    try:
        ratios = [tags.valueof(f"{axis}Resolution", default=(0, 0)) for axis in "XY"]
        if unit is None or not np.all(ratios):
            return None
        return tuple(unit * below / above for above, below in ratios)  # type: ignore[return-value]
    except (TypeError, ValueError):
        logger.warning("The resolution tags of %r cannot be understood: %s.", tiff.filename, ratios)
        return None


def ome_image(tiff: Any, series: int) -> Element | None:
    """What OME-XML says of one picture; `None` if there is none, it is damaged, or it lies in a companion file."""
    if not tiff.is_ome:
        return None
    try:
        images = fromstring(tiff.ome_metadata).findall("{*}Image")
    except (ParseError, ValueError) as error:
        logger.warning("The OME-XML of %r cannot be read (%s): passed over.", tiff.filename, error)
        return None
    return images[series] if series < len(images) else None


def _physical_size(pixels: Element, axis: str) -> float | None:
    unit = microns_of(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", ""))
    except ValueError:
        return None
    return None if unit is None or not size > 0 else size * unit
