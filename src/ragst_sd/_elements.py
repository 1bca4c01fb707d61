"""SpatialData elements as arrays: image pyramids, spot centres in image pixels, annotating tables."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import ShapesModel
from spatialdata.transformations import Scale, get_transformation
from xarray import DataArray

from ragst_sd import _keys
from ragst_sd._fields import require_tissue
from ragst_sd._validate import listing, require_key, require_positive, require_type
from ragst_sd._workers import is_at_hand, require_stored
from ragst_sd.image.colours import read_colours
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.frames import LevelGrid, apply_affine, similarity_scale

logger = logging.getLogger(__name__)


class Centers(NamedTuple):
    """Centres of an element in the pixels of an image."""

    xy: np.ndarray
    """(n, 2) centres (x, y) in level-0 pixels of the image."""
    index: pd.Index
    """Instance ids."""
    affine: np.ndarray
    """3 x 3 affine from the element to the image."""
    coordinate_system: str
    """The frame that both share."""


def require_sdata(sdata: Any) -> SpatialData:
    """The object itself.

    A `TypeError` unless it is a SpatialData, a `ValueError` if it holds responses to perturbations.
    """
    if isinstance(sdata, AnnData):
        require_tissue(sdata.uns.get(_keys.RETRIEVAL))

    require_type(sdata, SpatialData, "sdata", "Read sections with spatialdata-io or `rg.io.read_st`.")
    return sdata


def resolve_image(sdata: SpatialData, image_key: str | None) -> str:
    """Name of the image: the one asked for, or the only one there is."""
    if image_key is None:
        return _only(sdata.images, "image_key", "images in `sdata.images`")
    require_key(image_key, sdata.images, "sdata.images")
    return image_key


def resolve_shapes(sdata: SpatialData, shapes_key: str | None) -> str:
    """Name of the shapes (or points): asked for, or the only shapes there are."""
    if shapes_key is None:
        return _only(sdata.shapes, "shapes_key", "elements in `sdata.shapes`")
    if shapes_key in sdata.labels:
        circles = f"{shapes_key}_circles"
        raise ValueError(
            f"{shapes_key!r} are labels; spots are shapes or points. Make circles of them, and let the table "
            f"annotate these: `sdata.shapes[{circles!r}] = spatialdata.to_circles(sdata.labels[{shapes_key!r}])`, "
            f"`table.obs[region_key] = pandas.Categorical([{circles!r}] * len(table))`, "
            f"`sdata.set_table_annotates_spatialelement(table_key, region={circles!r})`."
        )
    require_key(shapes_key, [*sdata.shapes, *sdata.points], "sdata.shapes / sdata.points")
    return shapes_key


def _only(elements: Mapping[str, Any], argument: str, what: str) -> str:
    """The name of the only element of a kind."""
    if len(elements) != 1:
        raise ValueError(f"`{argument}` is needed: found {len(elements)} {what}: {listing(elements)}.")
    return next(iter(elements))


def shared_coordinate_system(sdata: SpatialData, first: str, second: str, coordinate_system: str | None) -> str:
    """The frame that two elements share; an error lists them if there is none or more than one."""
    systems = [sorted(get_transformation(element_of(sdata, name), get_all=True)) for name in (first, second)]
    shared = [system for system in systems[0] if system in systems[1]]
    if coordinate_system in shared:
        return str(coordinate_system)
    if coordinate_system is None and len(shared) == 1:
        return str(shared[0])
    first_has, second_has = map(listing, systems)
    if not shared:
        raise ValueError(
            f"{first!r} and {second!r} share no coordinate system: {first_has} against {second_has}. Align them with "
            "`spatialdata.transformations.set_transformation`."
        )
    raise ValueError(
        f"`coordinate_system` is {coordinate_system!r}; {first!r} ({first_has}) and {second!r} ({second_has}) share "
        f"{listing(shared)}. Say which one with `coordinate_system=`."
    )


def element_of(sdata: SpatialData, name: str) -> Any:
    # Not `sdata[name]`: objects of wsidata do not find the picture of their slide that way.
    return next(kind[name] for kind in (sdata.images, sdata.shapes, sdata.points, sdata.labels) if name in kind)


def to_frame(element: Any, coordinate_system: str) -> np.ndarray:
    """3 x 3 affine from an element, level-0 pixels of an image for instance, to a frame."""
    transformation = get_transformation(element, to_coordinate_system=coordinate_system)
    return np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)


def affine_between(element: Any, other: Any, coordinate_system: str) -> np.ndarray:
    """3 x 3 affine from one element to another, through a frame that both have."""
    return np.linalg.inv(to_frame(other, coordinate_system)) @ to_frame(element, coordinate_system)


def centers_in_pixels(sdata: SpatialData, *, shapes_key: str, image_key: str, coordinate_system: str | None) -> Centers:
    """Centroids of shapes or points in level-0 pixels of an image, or in the units of another element.

    The affine from the element to the image goes through the shared frame; it is refused if it shears or is not
    isotropic.
    """
    frame = shared_coordinate_system(sdata, shapes_key, image_key, coordinate_system)
    affine = affine_between(sdata[shapes_key], element_of(sdata, image_key), frame)
    similarity_scale(affine)
    xy, index = element_centers(sdata, shapes_key)
    return Centers(apply_affine(affine, xy), index, affine, frame)


def element_centers(sdata: SpatialData, shapes_key: str) -> tuple[np.ndarray, pd.Index]:
    """(n, 2) centroids of shapes or points, in their own frame, and their instance ids."""
    element = sdata[shapes_key]
    if len(element) == 0:
        raise ValueError(f"{shapes_key!r} is empty: it holds no spots.")
    if "geometry" not in element:
        points = element.compute()
        return points[["x", "y"]].to_numpy(float), _numbered_through(points.index, shapes_key)
    # Not `spatialdata.get_centroids`: it warns about every index of strings that is not sorted.
    crossed = ~element.geometry.is_valid
    if crossed.any():
        logger.info(
            "%d outlines of %r cross themselves: their centres are those of valid ones.", crossed.sum(), shapes_key
        )
    centroids = element.geometry.make_valid().centroid
    xy = np.column_stack([centroids.x, centroids.y])
    lost = element.index[np.isnan(xy).any(axis=1)]
    if len(lost):
        says = "%d outlines of %r are empty and have no centre, for instance those of %s."
        logger.warning(says, len(lost), shapes_key, listing(lost[:3]))
    return xy, element.index


def _numbered_through(index: pd.Index, shapes_key: str) -> pd.Index:
    """Ids of points; an index that starts again in every partition is counted on."""
    values = index.to_numpy()
    if index.is_unique or values.dtype.kind not in "iu":
        return index
    if not ((values == 0) | (np.diff(values, prepend=-1) == 1)).all():
        return index
    logger.info("The index of %r starts again at 0 in every partition: its points are numbered through.", shapes_key)
    return pd.RangeIndex(len(index))


def require_free(
    sdata: SpatialData, name: str, kind: str, todo: str = "Choose another one.", *, ours: Collection[Any] = ()
) -> None:
    """Raise a `ValueError` if an element has that name, in whichever case, unless it is among `ours` (kind, name)."""
    taken = [(element, key) for element, key, _ in sdata.gen_elements() if key.lower() == name.lower()]
    if taken and not set(taken) <= set(ours):
        raise ValueError(f"The name {name!r} for {kind} is taken by {taken[0][0]} {taken[0][1]!r}. {todo}")


def squares_on_image(sdata: SpatialData, image_key: str, lows: np.ndarray, edge: Any) -> GeoDataFrame:
    """Squares from their corners (n, 2) and edges, in pixels of an image and in all frames of it."""
    (x, y), frames = lows.T, get_transformation(sdata.images[image_key], get_all=True)
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + edge, y + edge))
    return ShapesModel.parse(frame, transformations=dict(frames))


def image_pyramid(sdata: SpatialData, image_key: str, value_max: float | None = None) -> Pyramid:
    """Pixels of an image, and what they mean; `value_max` is full brightness, else what `keep_value_max` kept.

    Raises
    ------
    FileNotFoundError
        If the store of the image is gone.
    ValueError
        If the image is not RGB, full brightness cannot be told, or it has several planes.
    """
    what = f"Image {image_key!r}" + (f" (of {listing(sdata.images)})" if len(sdata.images) > 1 else "")
    if value_max is None:
        value_max = remembered(sdata, _keys.VALUE_MAX, image_key)
    else:
        require_positive(value_max, "value_max")
    arrays = [_one_plane(level, what).transpose("c", "y", "x") for level in image_levels(sdata, image_key)]
    _refuse_cropped(arrays[0], image_key)
    names = arrays[0].coords["c"].to_numpy() if "c" in arrays[0].coords else []
    levels = tuple(level.data for level in arrays)
    require_stored(levels, what)
    if value_max is None and levels[-1].dtype == np.uint8 and not is_at_hand(levels[-1]):
        value_max = 255.0
    colours = read_colours(levels[-1], names=list(names), value_max=value_max, what=what)
    grids = tuple(_grid(level, arrays[0]) for level in arrays)
    return Pyramid(levels, tuple(map(_chunk, levels)), colours, grids)


def keep_value_max(sdata: SpatialData, image_key: str, value_max: float | None) -> None:
    """Keep a full brightness that was given, for all that looks at the image later."""
    if value_max is not None:
        remember(sdata, _keys.VALUE_MAX, image_key, float(value_max))


def remember(sdata: SpatialData, what: str, image_key: str, value: Any) -> None:
    """Keep in `sdata.attrs` what is known of an image."""
    attrs = sdata.attrs.get(_keys.ATTRS, {})
    of_images = {**attrs.get(what, {}), image_key: value}
    # An object that was cut out of another one has the same attrs, which must not change with it.
    sdata.attrs = {**sdata.attrs, _keys.ATTRS: {**attrs, what: of_images}}


def remembered(sdata: SpatialData, what: str, image_key: str) -> Any:
    """What `remember` kept of an image; `None` if nothing."""
    return sdata.attrs.get(_keys.ATTRS, {}).get(what, {}).get(image_key)


def _one_plane(level: Any, what: str) -> Any:
    """An image without its z axis, which may be of length one."""
    planes = level.sizes.get("z", 1)
    if planes != 1:
        raise ValueError(
            f"{what} has {planes} planes along z; one is needed. Choose the one in focus and store it as an image of "
            "its own: `sdata.images['plane'] = Image2DModel.parse(image.isel(z=k), transformations=...)`, with "
            "`image` the finest scale."
        )
    return level.isel(z=0) if "z" in level.dims else level


def image_levels(sdata: SpatialData, image_key: str) -> list[Any]:
    """The arrays of an image, the finest first."""
    image = sdata.images[image_key]
    return [image] if isinstance(image, DataArray) else list(get_pyramid_levels(image))


def _refuse_cropped(finest: Any, image_key: str) -> None:
    """Refuse an image that was cut or thinned out with xarray: its coordinates say so, its transformation does not.

    Raises
    ------
    ValueError
        If its pixels lie elsewhere by their coordinates than by their transformation.
    """
    places = [finest.coords[axis].to_numpy() for axis in "xy" if axis in finest.coords]
    steps = [float(place[1] - place[0]) if len(place) > 1 else 1.0 for place in places]
    begins = [float(place[0]) - step / 2 for place, step in zip(places, steps, strict=True)]
    # A level that was taken out of a pyramid keeps its coordinates, and its transformation begins with its scale.
    scaled = [
        getattr(transformation, "transformations", [None])[0]
        for transformation in get_transformation(finest, get_all=True).values()
    ]
    is_level = all(isinstance(first, Scale) for first in scaled)
    if np.allclose(begins, 0, atol=0.9) and (is_level or np.allclose(steps, 1)):
        return
    raise ValueError(
        f"Image {image_key!r} was cropped or subsampled with xarray: according to its coordinates, its pixels begin at "
        f"x, y = {begins} and are {steps} wide, but its transformation does not say so. Crop with "
        "`spatialdata.bounding_box_query`, or set the transformation: `Image2DModel.parse(image.data, dims=image.dims, "
        "transformations={'global': Sequence([Scale(widths, ('x', 'y')), Translation(begins, ('x', 'y'))])})`."
    )


def _grid(level: Any, finest: Any) -> LevelGrid:
    """Where the pixels of a level lie, from its own transformation: crops and odd sizes leave no common factor."""
    frame = next(iter(get_transformation(finest, get_all=True)))
    affine = affine_between(level, finest, frame)
    return LevelGrid((float(affine[0, 0]), float(affine[1, 1])), (float(affine[0, 2]), float(affine[1, 2])))


def _chunk(level: Any) -> tuple[int, int]:
    chunks = getattr(level, "chunks", None) or level.shape
    rows, columns = (int(np.ravel(size)[0]) for size in chunks[1:])
    return rows, columns
