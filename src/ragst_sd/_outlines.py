"""Outlines of an annotation, in the frame where they are asked about."""

from __future__ import annotations

import logging

import numpy as np
from geopandas import GeoSeries
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from ragst_sd._elements import affine_between, element_of, shared_coordinate_system
from ragst_sd._validate import listing, require_key

logger = logging.getLogger(__name__)

AREAS = ("Polygon", "MultiPolygon")


def made_valid(outlines: GeoSeries, what: str) -> GeoSeries:
    """Outlines, with those whose rings cross made valid areas; a log line counts these."""
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
    shapes = sdata.shapes[annotation_key]
    others = sorted(set(shapes.geometry.geom_type) - set(AREAS))
    if others or not len(shapes):
        fault = f"holds {listing(others)}" if others else "is empty"
        raise ValueError(f"`sdata.shapes[{annotation_key!r}]` {fault}; an annotation is made of polygons.")
    affine = _affine_between(sdata, annotation_key, other, coordinate_system)
    (a, b, x), (c, d, y) = affine[:2]
    return made_valid(shapes.geometry.affine_transform([a, b, c, d, x, y]), repr(annotation_key))


def _affine_between(sdata: SpatialData, first: str, other: str, coordinate_system: str | None) -> np.ndarray:
    """3 x 3 affine from one element to another; an annotation has all frames of its image, and any of them will do."""
    elements = element_of(sdata, first), element_of(sdata, other)
    shared = set.intersection(*(set(get_transformation(element, get_all=True)) for element in elements))
    if coordinate_system is not None or not shared:
        shared = {shared_coordinate_system(sdata, first, other, coordinate_system)}
    affines = {frame: affine_between(*elements, frame) for frame in sorted(shared)}
    affine = next(iter(affines.values()))
    if not all(np.allclose(affine, each, rtol=1e-3) for each in affines.values()):
        raise ValueError(
            f"{first!r} and {other!r} lie differently to each other in the frames that they share, {listing(affines)}. "
            f"Leave {first!r} the right one only: `spatialdata.transformations.remove_transformation`."
        )
    return affine


def extent_of(points: np.ndarray) -> str:
    """The extent of (n, 2) points, for a message: `x 0 to 500 and y 20 to 480`."""
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return f"x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f}"
