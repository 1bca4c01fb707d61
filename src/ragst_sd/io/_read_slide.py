"""`rg.io.read_slide`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike

import dask.array as da
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, set_transformation
from xarray import DataArray, Dataset, DataTree

from ragst_sd._resolution import keep_image_mpp
from ragst_sd._validate import require_positive, require_type
from ragst_sd.io._readable import existing
from ragst_sd.io._slide_file import open_slide

logger = logging.getLogger(__name__)

_PLAUSIBLE_UM = (0.05, 20.0)
_ANISOTROPY = 0.01


def read_slide(
    path: str | PathLike[str], *, image_key: str = "he", mpp: float | None = None, value_max: float | None = None
) -> SpatialData:
    """Read a whole-slide file lazily, with its pyramid and resolution.

    Parameters
    ----------
    path
        Slide file: svs, ndpi, mrxs, scn, bif, and whatever else OpenSlide knows [Goode2013]_; TIFF, tiled or not,
        OME-TIFF included.
    image_key
        Name of the image.
    mpp
        Microns per pixel of the finest level; `None` takes what the file states. A value stated outside 0.05 to 20 is
        no resolution of a microscope (printing resolutions such as 72 dpi are common) and is passed over with a
        warning.
    value_max
        Pixel value of full brightness, of TIFFs that are not 8 bit; `None` tells it from type and values.

    Returns
    -------
    A SpatialData, in the frame "global" (pixels of the finest level):

    images[image_key]
        uint8 RGB pixels, a pyramid of the levels that the file holds; the largest colour picture of a TIFF with
        several. They stay in the file and are read region by region when they are needed; the file must stay where it
        is until the object is written. What is transparent or was not scanned is white. A TIFF with a flag to be shown
        rotated or mirrored is read as stored, with a warning.
    attrs["ragst"]["image_mpp"][image_key]
        Microns per pixel, where they are known.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `path` is no path or `image_key` no name.
    ValueError
        If it is no slide or not RGB, or its pixels are not square.

    Notes
    -----
    Memory is bounded by the requested regions, in chunks of about 1024 px. A file without pyramid is
    read whole, chunk by chunk, by :func:`ragst_sd.pp.tile_grid` and :func:`ragst_sd.pp.embed_tiles`.

    References
    ----------
    .. [Goode2013] Goode et al., OpenSlide: a vendor-neutral software foundation for digital pathology,
       J. Pathol. Inform. 4 (2013).

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_slide("slide.tif")  # or svs, ndpi, mrxs, ...
    >>> sdata.attrs["ragst"]["image_mpp"]["he"]
    0.5
    >>> rg.pp.tile_grid(sdata, image_key="he", tile_px=64, mpp=1.0)
    """
    require_type(path, (str, PathLike), "path")
    require_type(image_key, str, "image_key")
    require_positive(mpp, "mpp", optional=True)
    require_positive(value_max, "value_max", optional=True)
    path = existing(path, "`path`:", "Pass a slide file (svs, ndpi, tif, ...).")
    # Regions are read later, perhaps from another working directory.
    slide = open_slide(path.resolve(), value_max, as_stored=True)
    mpp = _resolution(slide.mpp, path.name) if mpp is None else float(mpp)
    sdata = SpatialData(images={image_key: pyramid_element(slide.levels)})
    if mpp is not None:
        keep_image_mpp(sdata, image_key, mpp)
    size, at = slide.levels[0].shape[:0:-1], "" if mpp is None else f", {mpp:.4g} um per px"
    logger.info("Slide %r by %s: %d x %d px, %d levels%s.", path.name, slide.reader, *size, len(slide.levels), at)
    return sdata


def pyramid_element(levels: Sequence[da.Array]) -> DataTree:
    """A multiscale SpatialData image of the levels as they are, in the frame "global".

    Not through `Image2DModel.parse`, which makes levels of its own by whole factors: those of a slide file are rounded.

    Parameters
    ----------
    levels
        Arrays (c, y, x) of RGB pixels, finest first.
    """
    full = levels[0].shape[1:]
    names = ["r", "g", "b"]
    finest = Image2DModel.parse(levels[0], dims=("c", "y", "x"), c_coords=names).rename("image")
    scales = {"scale0": Dataset({"image": finest})}
    for k, level in enumerate(levels[1:], start=1):
        # Centres of pixels, in pixels of the finest level.
        y, x = ((np.arange(n) + 0.5) * size / n for n, size in zip(level.shape[1:], full, strict=True))
        pixels = DataArray(level, dims=("c", "y", "x"), coords={"c": names, "y": y, "x": x}, name="image")
        scales[f"scale{k}"] = Dataset({"image": pixels})
    element = DataTree.from_dict(scales)
    set_transformation(element, Identity(), "global")
    Image2DModel().validate(element)
    return element


def _resolution(stated: tuple[float, float] | None, name: str) -> float | None:
    todo = "Pass `mpp=`, or use `rg.pp.set_image_mpp`."
    if stated is None:
        logger.warning("Slide %r does not state its microns per pixel. %s", name, todo)
        return None
    low, high = _PLAUSIBLE_UM
    if not all(low <= value <= high for value in stated):
        says = "Slide %r states %.4g x %.4g microns per pixel, which no microscope has: passed over. %s"
        logger.warning(says, name, *stated, todo)
        return None
    x, y = stated
    if abs(x - y) > _ANISOTROPY * max(x, y):
        raise ValueError(
            f"The pixels of slide {name!r} are not square: {x:.4g} x {y:.4g} microns. Tiles would be stretched: "
            "resample the slide, or pass `mpp=` if the file is wrong."
        )
    return (x + y) / 2
