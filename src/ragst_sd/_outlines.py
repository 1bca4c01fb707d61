"""Outlines of an annotation, in the frame where they are asked about."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._elements import shared_coordinate_system, to_frame
from ragst_sd._validate import listing, require_key

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

AREAS = ("Polygon", "MultiPolygon")


def made_valid(outlines: GeoSeries, what: str) -> GeoSeries:
    """Outlines whose rings cross are made valid, and counted in a log line; what is left of them are areas."""
    crossed = ~outlines.is_valid
    if not crossed.any():
        return outlines
    logger.info("%d of %d outlines of %s cross themselves: they are made valid.", crossed.sum(), len(outlines), what)
    # Lines that a ring leaves where it runs back on itself have no area.
    return outlines.where(~crossed, outlines[crossed].make_valid().buffer(0))


def areas_in_frame_of(sdata: SpatialData, annotation_key: str, other: str, coordinate_system: str | None) -> GeoSeries:
    """Outlines of an annotation in the own units of another element, pixels of an image for instance.

    Raises
    ------
    KeyError
        If there are no such shapes.
    ValueError
        If they are no areas, or the two share no frame.
    """
    todo = "Read one with `rg.io.read_annotations`."
    require_key(annotation_key, sdata.shapes, "sdata.shapes", todo)
    shapes = require_areas(sdata.shapes[annotation_key], annotation_key)
    frame = shared_coordinate_system(sdata, annotation_key, other, coordinate_system)
    affine = np.linalg.inv(to_frame(sdata[other], frame)) @ to_frame(shapes, frame)
    (a, b, x), (c, d, y) = affine[:2]
    return made_valid(shapes.geometry.affine_transform([a, b, c, d, x, y]), repr(annotation_key))


def require_areas(shapes: GeoDataFrame, annotation_key: str) -> GeoDataFrame:
    """Shapes that are polygons, all of them; a `ValueError` if others are among them."""
    kinds = sorted(set(shapes.geometry.geom_type) - set(AREAS))
    if kinds or not len(shapes):
        found = f"holds {listing(kinds)}" if kinds else "is empty"
        msg = f"`sdata.shapes[{annotation_key!r}]` {found}; an annotation is made of polygons."
        raise ValueError(msg)
    return shapes


def extent_of(low: np.ndarray, high: np.ndarray) -> str:
    """From where to where something reaches, for a message."""
    return f"x {low[0]:.0f} to {high[0]:.0f} and y {low[1]:.0f} to {high[1]:.0f}"
