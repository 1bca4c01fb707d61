"""A section for drawing: its picture at a resolution that suits, and its spots, all in level-0 pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._annotation import rows_in_order, single_region
from ragst_sd._elements import centers_in_pixels, image_mpp_of, image_pyramid, resolve_shapes
from ragst_sd._validate import listing
from ragst_sd.image.frames import apply_affine, similarity_scale
from ragst_sd.image.tiles import as_rgb_uint8

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from spatialdata import SpatialData

    from ragst_sd.image.embedding import Pyramid

# Points have no size; neighbouring circles of this share of the distance between them do not touch.
_POINT_SHARE = 0.4


@dataclass(frozen=True)
class Section:
    """Image and spots of a predicted table."""

    pyramid: Pyramid
    mpp: float | None
    """Microns per pixel of the finest level, where known."""
    centers: np.ndarray
    """(rows, 2) centres (x, y) of the table's spots."""
    element: Any
    """The shapes or points, in the order of the table's rows."""
    affine: np.ndarray
    """From the element to the image."""


def read_section(sdata: SpatialData, table: AnnData, header: dict[str, Any], prediction_key: str) -> Section:
    """The image that a prediction was made from, and its spots.

    Raises
    ------
    ValueError
        If the image or the shapes are not in the object.
    """
    image_key = str(header["image_key"])
    if image_key not in sdata.images:
        msg = (
            f"The prediction was made from image {image_key!r}, which is not in `sdata.images` (it has "
            f"{listing(sdata.images)}). Add it, or read the object with its images."
        )
        raise ValueError(msg)
    region = single_region(table)
    if region not in sdata.shapes and region not in sdata.points:
        msg = (
            f"The prediction annotates {region!r}, which is not in `sdata.shapes` (it has {listing(sdata.shapes)}). "
            "Add it, or read the object with its shapes."
        )
        raise ValueError(msg)
    shapes_key = resolve_shapes(sdata, region)
    found = centers_in_pixels(
        sdata, shapes_key=shapes_key, image_key=image_key, coordinate_system=str(header["coordinate_system"])
    )
    order = rows_in_order(table, prediction_key, shapes_key, found.index)
    element = sdata[shapes_key]
    mpp = float(header["image_mpp"])
    return Section(
        pyramid=image_pyramid(sdata, image_key),
        mpp=mpp if np.isfinite(mpp) else image_mpp_of(sdata, image_key),
        centers=found.xy[order],
        element=element.iloc[order] if hasattr(element, "geometry") else None,
        affine=found.affine,
    )


def extent_of(section: Section, margin: float, *, on_image: bool = False) -> tuple[float, float, float, float]:
    """Box (left, right, top, bottom) around the spots (all, or those on the image), with a margin in pixels and some air.

    It ends where the image ends, unless spots lie beyond.
    """
    centers = section.centers[section.pyramid.inside(section.centers)] if on_image else section.centers
    low, high = centers.min(axis=0), centers.max(axis=0)
    margin += 0.03 * float((high - low).max())
    height, width = section.pyramid.shapes[0]
    left, top = np.maximum(low - margin, np.minimum(low, 0))
    right, bottom = np.minimum(high + margin, np.maximum(high, [width, height]))
    return float(left), float(right), float(top), float(bottom)


def corner_is_free(section: Section, box: tuple[float, float, float, float]) -> bool:
    """Whether fewer spots lie in the lower right than in the lower left corner of a box, where a scale bar may go."""
    x, y = (section.centers - [box[0], box[2]]).T / np.array([[box[1] - box[0]], [box[3] - box[2]]])
    low = y > 0.82
    return int((low & (x > 0.62)).sum()) < int((low & (x < 0.38)).sum())


def draw_image(
    ax: Axes, pyramid: Pyramid, box: tuple[float, float, float, float], *, edge_px: int, fade: float = 0.0
) -> None:
    """Draw the part of an image that lies in a box, from the coarsest level whose longer edge there is `edge_px`.

    The axes are left in level-0 pixels. `fade` mixes the picture with white.
    """
    found = read_picture(pyramid, box, edge_px=edge_px)
    if found is not None:
        pixels, (left, right, top, bottom) = found
        if fade:
            pixels = np.rint(255 * fade + pixels * (1 - fade)).astype(np.uint8)
        ax.imshow(pixels, extent=(left, right, bottom, top), interpolation="antialiased")
    ax.set(xlim=box[:2], ylim=(box[3], box[2]), aspect="equal", anchor="NW")


def read_picture(
    pyramid: Pyramid, box: tuple[float, float, float, float], *, edge_px: int
) -> tuple[np.ndarray, tuple[float, float, float, float]] | None:
    """uint8 RGB pixels (h, w, 3) of the part of an image in a box, and the box (left, right, top, bottom) they fill.

    From the coarsest level whose longer edge there is `edge_px`; `None` if the box lies outside the image.
    """
    height, width = pyramid.shapes[0]
    left, right = max(0, int(np.floor(box[0]))), min(width, int(np.ceil(box[1])))
    top, bottom = max(0, int(np.floor(box[2]))), min(height, int(np.ceil(box[3])))
    if right <= left or bottom <= top:
        return None
    longest = max(right - left, bottom - top)
    factors = [height / level_height for level_height, _ in pyramid.shapes]
    fitting = [k for k, factor in enumerate(factors) if longest / factor >= edge_px]
    level = max(fitting, key=lambda k: factors[k]) if fitting else 0
    level_height, level_width = pyramid.shapes[level]
    fx, fy = width / level_width, height / level_height
    x0, x1 = int(left / fx), min(level_width, int(np.ceil(right / fx)))
    y0, y1 = int(top / fy), min(level_height, int(np.ceil(bottom / fy)))
    # A large image without a pyramid is thinned out.
    step = max(1, int(max(x1 - x0, y1 - y0) // (2 * edge_px)))
    pixels = as_rgb_uint8(np.asarray(pyramid.levels[level][:, y0:y1:step, x0:x1:step]), pyramid.value_max)
    pixels = np.moveaxis(pixels, 0, -1)
    right_edge, bottom_edge = (x0 + step * pixels.shape[1]) * fx, (y0 + step * pixels.shape[0]) * fy
    return pixels, (x0 * fx, right_edge, y0 * fy, bottom_edge)


def spot_reach(section: Section) -> float:
    """Half the size of the largest spot in pixels."""
    if section.element is None:
        return _point_radius(section.centers)
    if "radius" in section.element:
        return float(section.element["radius"].max()) * similarity_scale(section.affine)
    bounds = section.element.geometry.bounds
    edges = np.maximum(bounds["maxx"] - bounds["minx"], bounds["maxy"] - bounds["miny"])
    return float(edges.max()) / 2 * similarity_scale(section.affine)


def draw_spots(ax: Axes, section: Section, rows: np.ndarray, **style: Any) -> Collection:
    """Draw spots in true size: circles by their radius, everything else by its outline."""
    from matplotlib.collections import PathCollection

    if section.element is not None and "radius" not in section.element:
        paths = [_outline(shape, section.affine) for shape in section.element.geometry.iloc[rows]]
        return ax.add_collection(PathCollection(paths, **style), autolim=False)
    if section.element is None:
        diameter = np.full(len(rows), 2 * _point_radius(section.centers))
    else:
        diameter = 2 * section.element["radius"].to_numpy(float)[rows] * similarity_scale(section.affine)
    return draw_discs(ax, section.centers[rows], diameter, **style)


def draw_discs(ax: Axes, centers: np.ndarray, diameter: np.ndarray, **style: Any) -> Collection:
    """Draw discs whose diameter is given in pixels of the image."""
    from matplotlib.collections import EllipseCollection

    discs = EllipseCollection(
        diameter, diameter, np.zeros(len(diameter)), units="xy", offsets=centers, offset_transform=ax.transData, **style
    )
    return ax.add_collection(discs, autolim=False)


def _point_radius(centers: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    points = np.unique(centers, axis=0)
    if len(points) < 2:
        return 1.0
    return _POINT_SHARE * float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def _outline(shape: Any, affine: np.ndarray) -> Any:
    """Path of a polygon or multipolygon, holes included."""
    from matplotlib.path import Path
    from shapely.geometry.polygon import orient

    # Holes stay empty only where they run against their exterior.
    polygons = [orient(polygon) for polygon in getattr(shape, "geoms", [shape])]
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    return Path.make_compound_path(
        *(Path(apply_affine(affine, np.asarray(ring.coords)[:, :2]), closed=True) for ring in rings)
    )
