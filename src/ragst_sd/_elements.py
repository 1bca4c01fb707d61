"""SpatialData elements as arrays: image pyramids, spot centres in image pixels, annotating tables."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd import _keys
from ragst_sd._results import require_tissue
from ragst_sd._validate import listing, require_key, require_positive, require_type
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.frames import apply_affine, similarity_scale

if TYPE_CHECKING:
    import pandas as pd
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_RGB_NAMES = {"r", "g", "b", "a", "red", "green", "blue", "alpha", "0", "1", "2", "3"}


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


def require_sdata(sdata: object) -> None:
    """Raise a `TypeError` unless `sdata` is a SpatialData; a `ValueError` if it holds responses to perturbations."""
    from anndata import AnnData
    from spatialdata import SpatialData

    if isinstance(sdata, AnnData):
        require_tissue(sdata.uns.get(_keys.RETRIEVAL))

    require_type(sdata, SpatialData, "sdata", "Read sections with spatialdata-io or `rg.io.read_st`.")


def resolve_image(sdata: SpatialData, image_key: str | None) -> str:
    """Name of the image: the one asked for, or the only one there is."""
    names = list(sdata.images)
    if image_key is not None:
        require_key(image_key, names, "sdata.images")
        return image_key
    if len(names) != 1:
        msg = f"`image_key` is needed: found {len(names)} images in `sdata.images`: {listing(names)}."
        raise ValueError(msg)
    return names[0]


def resolve_shapes(sdata: SpatialData, shapes_key: str | None) -> str:
    """Name of the shapes (or points): asked for, or the only shapes there are."""
    names = [*sdata.shapes, *sdata.points]
    if shapes_key is not None:
        require_key(shapes_key, names, "sdata.shapes / sdata.points")
        return shapes_key
    if len(sdata.shapes) != 1:
        msg = f"`shapes_key` is needed: found {len(sdata.shapes)} elements in `sdata.shapes`: {listing(sdata.shapes)}."
        raise ValueError(msg)
    return next(iter(sdata.shapes))


def shared_coordinate_system(sdata: SpatialData, first: str, second: str, coordinate_system: str | None) -> str:
    """The frame that two elements share; an error lists them if there is none or more than one."""
    from spatialdata.transformations import get_transformation

    systems = [set(get_transformation(_element(sdata, name), get_all=True)) for name in (first, second)]
    shared = sorted(systems[0] & systems[1])
    if coordinate_system is not None:
        if coordinate_system not in shared:
            msg = (
                f"`coordinate_system` {coordinate_system!r} is not shared by {first!r} ({listing(sorted(systems[0]))}) "
                f"and {second!r} ({listing(sorted(systems[1]))}). Shared: {listing(shared)}."
            )
            raise ValueError(msg)
        return coordinate_system
    if not shared:
        msg = (
            f"{first!r} and {second!r} share no coordinate system: {listing(sorted(systems[0]))} against "
            f"{listing(sorted(systems[1]))}. Align them with `spatialdata.transformations.set_transformation`."
        )
        raise ValueError(msg)
    if len(shared) > 1:
        msg = (
            f"{first!r} and {second!r} share several coordinate systems: {listing(shared)}. "
            "Say which one with `coordinate_system=`."
        )
        raise ValueError(msg)
    return shared[0]


def _element(sdata: SpatialData, name: str) -> Any:
    # Not `sdata[name]`: objects of wsidata do not find the picture of their slide that way.
    return next(kind[name] for kind in (sdata.images, sdata.shapes, sdata.points, sdata.labels) if name in kind)


def image_affine(sdata: SpatialData, image_key: str, coordinate_system: str) -> np.ndarray:
    """3 x 3 affine from level-0 pixels of an image to a frame."""
    from spatialdata.transformations import get_transformation

    transformation = get_transformation(sdata.images[image_key], to_coordinate_system=coordinate_system)
    return np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)


def centers_in_pixels(sdata: SpatialData, *, shapes_key: str, image_key: str, coordinate_system: str | None) -> Centers:
    """Centroids of shapes or points in level-0 pixels of an image.

    The affine from the element to the image goes through the shared frame; it is refused if it shears or is not
    isotropic.
    """
    from spatialdata.transformations import get_transformation

    frame = shared_coordinate_system(sdata, shapes_key, image_key, coordinate_system)
    element = sdata[shapes_key]
    if len(element) == 0:
        msg = f"{shapes_key!r} is empty: it holds no spots."
        raise ValueError(msg)
    to_pixels = np.linalg.inv(image_affine(sdata, image_key, frame))
    from_shapes = get_transformation(element, to_coordinate_system=frame).to_affine_matrix(("x", "y"), ("x", "y"))
    affine = to_pixels @ np.asarray(from_shapes, dtype=float)
    similarity_scale(affine)
    if hasattr(element, "compute"):
        element = element.compute()
    return Centers(apply_affine(affine, element_centers(element)), element.index, affine, frame)


def element_centers(element: Any) -> np.ndarray:
    """(n, 2) centroids of shapes or points, in their own frame."""
    if hasattr(element, "compute"):
        element = element.compute()
    if "geometry" not in element:
        return element[["x", "y"]].to_numpy(float)
    # Not `spatialdata.get_centroids`: it warns about every index of strings that is not sorted.
    centroids = element.geometry.centroid
    return np.column_stack([centroids.x, centroids.y])


def squares_on_image(sdata: SpatialData, image_key: str, lows: np.ndarray, edge: Any) -> GeoDataFrame:
    """Squares from their corners (n, 2) and edges, in pixels of an image and in all frames of it."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    (x, y), frames = lows.T, get_transformation(sdata.images[image_key], get_all=True)
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + edge, y + edge))
    return ShapesModel.parse(frame, transformations=dict(frames))


def image_pyramid(sdata: SpatialData, image_key: str) -> Pyramid:
    """Pixels of an RGB or RGBA image of any integer or unit-range float type.

    Raises
    ------
    ValueError
        If the image has not 3 or 4 channels, or float pixels outside [0, 1] and [0, 255].
    """
    from spatialdata import get_pyramid_levels
    from xarray import DataArray

    image = sdata.images[image_key]
    found = [image] if isinstance(image, DataArray) else get_pyramid_levels(image)
    arrays = [level.transpose("c", "y", "x") for level in found]
    channels = arrays[0].sizes["c"]
    names = [str(name) for name in arrays[0].coords["c"].to_numpy()] if "c" in arrays[0].coords else []
    if channels not in (3, 4):
        msg = (
            f"Image {image_key!r} has {channels} channel(s) ({listing(names)}); the encoders need RGB or RGBA. "
            f"Images available: {listing(sdata.images)}."
        )
        raise ValueError(msg)
    if names and not {name.lower() for name in names} <= _RGB_NAMES:
        msg = (
            f"The channels of image {image_key!r} are named {listing(names)}; the encoders need red, green and blue. If "
            "that is what they are, rename them (`spatialdata.models.Image2DModel.parse(..., c_coords=['r', 'g', 'b'])`). "
            f"Images available: {listing(sdata.images)}."
        )
        raise ValueError(msg)
    levels = tuple(level.data for level in arrays)
    return Pyramid(levels, tuple(_chunk(level) for level in levels), _value_max(levels[-1], image_key))


def _chunk(level: object) -> tuple[int, int]:
    chunks = getattr(level, "chunks", None)
    if not chunks:
        return level.shape[1:]  # type: ignore[attr-defined]
    rows, columns = (size if isinstance(size, int) else size[0] for size in chunks[1:])
    return rows, columns


def _value_max(coarsest: object, image_key: str) -> float:
    dtype = coarsest.dtype  # type: ignore[attr-defined]
    if dtype.kind == "u" or dtype == np.bool_:
        return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
    pixels = np.asarray(coarsest)
    low, high = float(pixels.min()), float(pixels.max())
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return 1.0
    if low >= 0 and high <= 255:
        return 255.0
    msg = (
        f"Image {image_key!r} holds {dtype} pixels from {low:.4g} to {high:.4g}; expected unsigned integers, or "
        "numbers in [0, 1] or [0, 255]. Convert it to uint8 RGB first."
    )
    raise ValueError(msg)


def image_mpp_of(sdata: SpatialData, image_key: str, image_mpp: float | None = None) -> float | None:
    """Microns per pixel of an image: given, kept by `rg.pp.set_image_mpp` or by wsidata; `None` if unknown."""
    if image_mpp is None:
        image_mpp = sdata.attrs.get(_keys.ATTRS, {}).get(_keys.IMAGE_MPP, {}).get(image_key)
    if image_mpp is None:
        image_mpp = _mpp_of_wsidata(sdata, image_key)
    if image_mpp is None:
        return None
    require_positive(image_mpp, "image_mpp")
    return float(image_mpp)


def _mpp_of_wsidata(sdata: SpatialData, image_key: str) -> float | None:
    """What objects of wsidata and LazySlide know of their slide, if the image is that slide at full resolution."""
    from spatialdata import get_pyramid_levels
    from xarray import DataArray

    slide = sdata.attrs.get("slide_properties")
    if not isinstance(slide, dict) or slide.get("mpp") is None or image_key not in sdata.images:
        return None
    image = sdata.images[image_key]
    finest = image if isinstance(image, DataArray) else next(iter(get_pyramid_levels(image)))
    return slide["mpp"] if list(slide.get("shape", ())) == [finest.sizes["y"], finest.sizes["x"]] else None
