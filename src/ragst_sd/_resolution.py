"""Microns per pixel of an image, and how they follow it when it is cut or resampled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from ragst_sd import _keys
from ragst_sd._elements import image_levels, remember, remembered, to_frame
from ragst_sd._validate import require_positive

logger = logging.getLogger(__name__)

_SAME = 0.01
# From the finest microscope to a thumbnail of a slide.
_PLAUSIBLE_UM = (0.05, 100.0)


def keep_image_mpp(sdata: SpatialData, image_key: str, mpp: float) -> None:
    """Keep the microns per pixel of an image in `sdata.attrs`, and the pixels they were measured in."""
    _warn_of_unit(mpp, image_key)
    pixels = _pixels(sdata, image_key)
    remember(sdata, _keys.IMAGE_MPP, image_key, float(mpp))
    remember(sdata, _keys.IMAGE_PIXELS, image_key, pixels)


def image_mpp_of(sdata: SpatialData, image_key: str, image_mpp: float | None = None) -> float | None:
    """Microns per pixel of an image: given, kept by `rg.pp.set_image_mpp` or by wsidata; `None` if unknown."""
    if image_mpp is not None:
        require_positive(image_mpp, "image_mpp")
        _warn_of_unit(image_mpp, image_key)
        return float(image_mpp)
    kept = remembered(sdata, _keys.IMAGE_MPP, image_key)
    image_mpp = kept * _growth(sdata, image_key, kept) if kept else _mpp_of_wsidata(sdata, image_key)
    require_positive(image_mpp, "image_mpp", optional=True)
    return None if image_mpp is None else float(image_mpp)


def require_resolution(mpp: float | None, image_mpp: float | None, image_key: str) -> None:
    """Raise a `ValueError` if tiles of `mpp` are asked for and the resolution of the image is not known."""
    if mpp is None:
        return
    require_positive(mpp, "mpp")
    if image_mpp is None:
        raise ValueError(
            f"Tiles of {mpp} microns per pixel were asked for, but the resolution of image {image_key!r} is unknown. "
            "Give it with `image_mpp=`, or once with `rg.pp.set_image_mpp(sdata, image_key=..., mpp=...)` "
            "(or `rg.pp.set_image_mpp(..., shapes_key=...)`, to derive it from the spot pitch); `mpp=None` takes the "
            "image's own pixels. See `Resolution of an image` in the documentation."
        )


def known_mpp(sdata: SpatialData, image_key: str) -> float:
    """Microns per pixel of an image; NaN where they are unknown, or cannot be told since it was cut or resampled."""
    try:
        return image_mpp_of(sdata, image_key) or np.nan
    except ValueError:
        return np.nan


def _warn_of_unit(mpp: float, image_key: str) -> None:
    low, high = _PLAUSIBLE_UM
    if not low <= mpp <= high:
        logger.warning(
            "Image %r has %.4g microns per pixel, which no microscope has. Is it another unit?", image_key, mpp
        )


def embedded_mpp_of(sdata: SpatialData, header: Mapping[str, Any]) -> float | None:
    """Microns per pixel of an image that was embedded, as it lies in the object now; `None` if unknown."""
    stated, image_key = float(header.get("image_mpp", np.nan)), str(header["image_key"])
    if np.isnan(stated) or stated == remembered(sdata, _keys.IMAGE_MPP, image_key):
        return image_mpp_of(sdata, image_key)
    return stated


def _pixels(sdata: SpatialData, image_key: str) -> dict[str, Any]:
    """Size (x, y) of an image; of each of its frames where the image begins and how large its pixels are."""
    finest = image_levels(sdata, image_key)[0]
    frames = {}
    for name in get_transformation(finest, get_all=True):
        affine = to_frame(finest, name)
        frames[name] = [*affine[:2, 2].tolist(), float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))]
    return {"size": [int(finest.sizes[axis]) for axis in "xy"], "frames": frames}


def _growth(sdata: SpatialData, image_key: str, mpp: float) -> float:
    """How many times larger pixels are than when the microns per pixel were kept.

    Raises
    ------
    ValueError
        If the image has another size, and its frames do not say whether it was cut or resampled.
    """
    before = remembered(sdata, _keys.IMAGE_PIXELS, image_key)
    if before is None or image_key not in sdata.images:
        return 1.0
    now = _pixels(sdata, image_key)
    if list(before["size"]) == now["size"]:
        return 1.0
    # After resampling, pixels are as many times larger in a frame as there are fewer of them along each axis.
    fewer = np.divide(before["size"], now["size"])
    same_shape = abs(fewer[0] / fewer[1] - 1) < _SAME
    sizes = "{} x {} pixels and has {} x {} now".format(*before["size"], *now["size"])
    for name in set(now["frames"]) & set(before["frames"]):
        (*corner, edge), (*old_corner, old_edge) = now["frames"][name], before["frames"][name]
        larger = edge / old_edge
        # In a frame that has not moved, a cut leaves the size of pixels alone, and resampling what they cover.
        if abs(larger - 1) < _SAME:
            if same_shape and np.allclose(corner, old_corner):
                logger.warning(
                    "Image %r had %s: %.4g microns per pixel are right if it was cut. If it was resampled, set them "
                    "again with `rg.pp.set_image_mpp`.",
                    image_key,
                    sizes,
                    mpp,
                )
            return 1.0
        if same_shape and abs(larger / fewer[0] - 1) < _SAME:
            logger.info("Image %r was resampled: it has %.4g microns per pixel now.", image_key, mpp * larger)
            return larger
    raise ValueError(
        f"{mpp:.4g} microns per pixel were kept for image {image_key!r} when it had {sizes}, and its frames do not say "
        "whether it was cut or resampled. Set them again with `rg.pp.set_image_mpp(sdata, image_key=..., mpp=...)`, or "
        "with `rg.pp.embed_tiles(..., image_mpp=...)`."
    )


def _mpp_of_wsidata(sdata: SpatialData, image_key: str) -> float | None:
    """What objects of wsidata and LazySlide know of their slide, if the image is that slide at full resolution."""
    slide = sdata.attrs.get("slide_properties")
    if not isinstance(slide, dict) or slide.get("mpp") is None or image_key not in sdata.images:
        return None
    finest = image_levels(sdata, image_key)[0]
    return slide["mpp"] if list(slide.get("shape", ())) == [finest.sizes["y"], finest.sizes["x"]] else None
