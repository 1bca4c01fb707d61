"""A section for drawing: its picture at a resolution that suits, and its spots, all in level-0 pixels of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PathCollection
from scipy.spatial import KDTree
from shapely.plotting import patch_from_polygon

from ragst_sd import _keys
from ragst_sd._annotation import rows_in_order, single_region
from ragst_sd._elements import centers_in_pixels, element_centers, image_pyramid, require_sdata, resolve_shapes
from ragst_sd._patches import patch_edge, shrunk
from ragst_sd._resolution import embedded_mpp_of
from ragst_sd._results import Prediction
from ragst_sd._validate import listing
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.frames import apply_affine, similarity_scale

Box = tuple[float, float, float, float]

# Longest edge of a picture that is laid out of pictures of spots.
_CANVAS_PX = 6000


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

    @cached_property
    def radii(self) -> np.ndarray | None:
        """(n,) radius of each spot in pixels; `None` where spots have outlines."""
        if self.element is None:
            points = np.unique(self.centers, axis=0)
            # Points have no size; neighbouring circles of this size do not touch.
            nearest = KDTree(points).query(points, k=2)[0][:, 1] if len(points) > 1 else 2.5
            return np.full(len(self.centers), 0.4 * np.median(nearest))
        if "radius" in self.element:
            return self.element["radius"].to_numpy(float) * similarity_scale(self.affine)
        return None

    @cached_property
    def reach(self) -> float:
        """Half the size of the largest spot in pixels."""
        if self.radii is not None:
            return float(self.radii.max())
        low, high = np.split(self.element.geometry.bounds.to_numpy(), 2, axis=1)
        return float((high - low).max()) / 2 * similarity_scale(self.affine)


def read_section(prediction: Prediction, *, or_white: bool = False) -> Section:
    """The image that a prediction was made from, and its spots.

    Where the object lacks the image, small pictures of the spots stand in, or white if `or_white` asks for it.

    Raises
    ------
    ValueError
        If the image or the shapes are not in the object.
    """
    sdata, table, header = require_sdata(prediction.data), prediction.table, prediction.header
    image_key = str(header["image_key"])
    has_image = image_key in sdata.images
    embedded: Any = sdata.tables.get(str(header.get("table_key")))
    # A section may have come without its slide, with small pictures of its spots instead.
    has_thumbnails = embedded is not None and _keys.THUMBNAIL in embedded.obsm
    from_thumbnails = image_key == _keys.PATCHES and not has_image and has_thumbnails
    if not (has_image or from_thumbnails or or_white or image_key):
        raise ValueError(
            f"The embedding {str(header['use_rep'])!r} does not say on which image its spots lie (`sdata.images` has "
            f"{listing(sdata.images)}). Name it with `rg.pp.use_features(sdata, features={str(header['use_rep'])!r}, "
            "image_key=...)` and predict again."
        )
    if not (has_image or from_thumbnails or or_white):
        raise ValueError(
            f"The prediction was made from image {image_key!r}, which is not in `sdata.images` (it has "
            f"{listing(sdata.images)}). Add it, or read the object with its images."
        )
    region = single_region(table)
    if region not in sdata.shapes and region not in sdata.points:
        raise ValueError(
            f"The prediction annotates {region!r}, which is not in `sdata.shapes` (it has {listing(sdata.shapes)}). "
            "Add it, or read the object with its shapes."
        )
    shapes_key = resolve_shapes(sdata, region)
    if has_image:
        frame = {"image_key": image_key, "coordinate_system": str(header["coordinate_system"])}
        xy, index, affine, _ = centers_in_pixels(sdata, shapes_key=shapes_key, **frame)
        pyramid = image_pyramid(sdata, image_key)
    else:
        (xy, index), affine, pyramid = element_centers(sdata, shapes_key), np.eye(3), Pyramid((), ())
    order, element = rows_in_order(table, prediction.key, shapes_key, index), sdata[shapes_key]
    shapes = element.iloc[order] if hasattr(element, "geometry") else None
    section = Section(pyramid, embedded_mpp_of(sdata, header), xy[order], shapes, affine)
    if has_image:
        return section
    if from_thumbnails:
        pictures = np.asarray(embedded.obsm[_keys.THUMBNAIL])[embedded.obs_names.get_indexer(table.obs_names)]
        return _on_thumbnails(section, pictures, patch_edge(embedded, section.mpp, xy))
    # More than is shown around the spots, whatever frame they lie in.
    return _on_white(section, float(np.ptp(xy[order], axis=0).max()) + 2 * section.reach)


def _on_white(section: Section, margin: float, scale: float = 1.0) -> Section:
    """Spots without an image on white, with a margin around their centres, at a scale."""
    low, size = section.centers.min(axis=0) - margin, np.ptp(section.centers, axis=0) + 2 * margin
    affine = np.array([[scale, 0, -scale * low[0]], [0, scale, -scale * low[1]], [0, 0, 1]])
    width, height = np.ceil(size * scale).astype(int) + 1
    # Takes no memory, whatever the units of the element are.
    white = np.broadcast_to(np.uint8(255), (3, height, width))
    mpp = None if section.mpp is None else section.mpp / scale
    pyramid = Pyramid((white,), ((height, width),))
    return Section(pyramid, mpp, apply_affine(affine, section.centers), section.element, affine)


def _on_thumbnails(section: Section, pictures: np.ndarray, edge: float) -> Section:
    """Spots on the small pictures that they came with, each as wide as `edge` and laid where its spot is."""
    longest = np.ptp(section.centers, axis=0).max() + edge
    px = max(1, min(pictures.shape[1], int(_CANVAS_PX * edge / longest)))
    section = _on_white(section, edge / 2, px / edge)
    canvas = np.array(section.pyramid.levels[0])
    corners = np.rint(section.centers - px / 2).astype(int)
    for (x, y), picture in zip(corners, shrunk(pictures, px), strict=True):
        canvas[:, y : y + px, x : x + px] = np.moveaxis(picture, -1, 0)
    return replace(section, pyramid=replace(section.pyramid, levels=(canvas,)))


def extent_of(section: Section, margin: float, *, on_image: bool = False) -> Box:
    """Box (left, right, top, bottom) around all spots, or those on the image, with a margin in pixels and some air.

    It ends where the image ends, unless spots lie beyond.
    """
    centers = section.centers
    if on_image:
        centers = centers[section.pyramid.inside(centers)]
    low, high = centers.min(axis=0), centers.max(axis=0)
    margin += 0.03 * float((high - low).max())
    height, width = section.pyramid.shapes[0]
    left, top = np.maximum(low - margin, np.minimum(low, 0))
    right, bottom = np.minimum(high + margin, np.maximum(high, [width, height]))
    return float(left), float(right), float(top), float(bottom)


def free_corner(section: Section, box: Box) -> str:
    """The lower corner of a box with fewer spots, where a scale bar may go."""
    left, right, top, bottom = box
    x, y = ((section.centers - [left, top]) / [right - left, bottom - top]).T
    low = x[y > 0.82]
    return "lower right" if (low > 0.62).sum() < (low < 0.38).sum() else "lower left"


def draw_image(ax: Axes, pyramid: Pyramid, box: Box, *, edge_px: int, fade: float = 0.0) -> None:
    """Draw the part of an image that lies in a box, from the coarsest level whose longer edge there is `edge_px`.

    The axes are left in level-0 pixels. `fade` mixes the picture with white.
    """
    picture = read_picture(pyramid, box, edge_px=edge_px)
    if picture is not None:
        pixels, (left, right, top, bottom) = picture
        ax.imshow(pixels, extent=(left, right, bottom, top), alpha=1 - fade)
    ax.set(xlim=box[:2], ylim=(box[3], box[2]), aspect="equal", anchor="NW", facecolor="white")


def read_picture(pyramid: Pyramid, box: Box, *, edge_px: int) -> tuple[np.ndarray, Box] | None:
    """uint8 RGB pixels (h, w, 3) of the part of an image in a box, and the box (left, right, top, bottom) they fill.

    From the coarsest level whose longer edge there is `edge_px`; `None` if the box lies outside the image.
    """
    left, right, top, bottom = box
    size = np.array(pyramid.shapes[0])
    low, high = np.clip([(top, left), (bottom, right)], 0, size)
    if (high <= low).any():
        return None
    longest = (high - low).max()
    level = max((k for k, grid in enumerate(pyramid.grids) if longest / max(grid.scale) >= edge_px), default=0)
    factor, first = (np.array(pair)[::-1] for pair in pyramid.grids[level])
    y, x = np.maximum(np.floor((low - first) / factor).astype(int), 0)
    y_end, x_end = np.ceil((high - first) / factor).astype(int)
    # A large image without a pyramid is thinned out.
    step = max(1, int(max(y_end - y, x_end - x) // (2 * edge_px)))
    pixels = np.asarray(pyramid.levels[level][:, y:y_end:step, x:x_end:step])
    pixels = np.moveaxis(pyramid.colours.to_rgb(pixels), 0, -1)
    height, width = factor * step * pixels.shape[:2]
    top, left = first + factor * (y, x)
    return pixels, (left, left + width, top, top + height)


def field_widths(encoder: Mapping[str, Any], section: Section) -> list[float]:
    """Widths in pixels of the image of the tile and, growing, of the wider fields of view."""
    mpp = float(encoder["mpp"])
    width = int(encoder["tile_px"]) * (1.0 if np.isnan(mpp) else mpp / float(section.mpp or mpp))
    wider = {float(factor) for factor in np.ravel(encoder["context"]) if factor > 1}
    return [width * factor for factor in (1.0, *sorted(wider))]


def draw_spots(ax: Axes, section: Section, rows: np.ndarray, **style: Any) -> Collection:
    """Draw spots in true size: circles by their radius, everything else by its outline."""
    if section.radii is None:
        (a, b, x), (c, d, y) = section.affine[:2]
        outlines = section.element.geometry.iloc[rows].affine_transform([a, b, c, d, x, y])
        paths = [patch_from_polygon(outline).get_path() for outline in outlines]
        return ax.add_collection(PathCollection(paths, **style), autolim=False)
    return draw_discs(ax, section.centers[rows], 2 * section.radii[rows], **style)


def draw_rims(ax: Axes, section: Section, rows: np.ndarray, color: str, width: float, **style: Any) -> None:
    """Draw the outlines of spots."""
    draw_spots(ax, section, rows, facecolors="none", edgecolors=color, linewidths=width, **style)


def draw_discs(ax: Axes, centers: np.ndarray, diameter: np.ndarray, **style: Any) -> Collection:
    """Draw discs whose diameter is given in pixels of the image."""
    style |= {"units": "xy", "offsets": centers, "offset_transform": ax.transData}
    discs = EllipseCollection(diameter, diameter, 0 * diameter, **style)
    return ax.add_collection(discs, autolim=False)
