"""Reading a plain H&E picture: RGB pixels from files and arrays, and the pyramid they are kept in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import dask.array as da
import numpy as np
from imagecodecs import png_decode
from PIL import Image
from spatialdata.models import Image2DModel
from xarray import DataArray, DataTree

from ragst_sd._validate import require_type
from ragst_sd.image.colours import RGBA, read_colours, require_rgb
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._readable import existing_file
from ragst_sd.io._slide_file import check_upright, open_tiff

_PICTURES = (".jpg", ".jpeg", ".png")
_TIFFS = (".tif", ".tiff", ".btf")
_SINGLE_SCALE_PX = 1500
_CHUNK_PX = 512
_ORIENTATION = 274

_pixel_limit = threading.Lock()


def read_rgb(
    image: str | PathLike[str] | np.ndarray, value_max: float | None = None, *, as_stored: bool = False
) -> np.ndarray:
    """Pixels of a picture as a (3, height, width) uint8 array.

    Transparent pixels are laid onto white; pixels of other depths are brought to 8 bit.

    Parameters
    ----------
    image
        Path of a jpg, png or tif, or an array with axes y, x, c.
    value_max
        Value of full brightness, where it is known.
    as_stored
        As in :func:`check_upright`.
    """
    require_type(image, (str, PathLike, np.ndarray), "image", "Pass a path, or an array with axes y, x, c.")
    if isinstance(image, np.ndarray):
        return _to_rgb(image, "The array given as `image`", value_max)
    todo = "Slide files are read with `rg.io.read_slide`; convert other pictures, or pass their pixels."
    path = existing_file(image, "image", (*_PICTURES, *_TIFFS), todo)
    what = f"Image {path.name!r}"
    if path.suffix.lower() in _TIFFS:
        return open_tiff(path, value_max, as_stored=as_stored).levels[0].compute()
    return _to_rgb(_read_picture(path, what, as_stored=as_stored), what, value_max)


def image_element(pixels: np.ndarray) -> DataArray | DataTree:
    """A SpatialData image in the frame "global": one scale when small, else a pyramid of 512-px chunks.

    The coarser levels are block means and are kept in memory: computed on demand, each of them would be made from the
    full resolution again and again.
    """
    levels = [pixels]
    if max(pixels.shape[1:]) > _SINGLE_SCALE_PX:
        while max(levels[-1].shape[1:]) > 2 * _CHUNK_PX:
            levels.append(_halve(levels[-1]))
    lazy = [da.from_array(level, chunks=(3, _CHUNK_PX, _CHUNK_PX), name=False) for level in levels]
    if len(lazy) > 1:
        return pyramid_element(lazy)
    return Image2DModel.parse(lazy[0], dims=("c", "y", "x"), c_coords=["r", "g", "b"])


def _halve(pixels: np.ndarray) -> np.ndarray:
    height, width = (size // 2 * 2 for size in pixels.shape[1:])
    total = np.full((pixels.shape[0], height // 2, width // 2), 2, np.uint16)
    for row, column in np.ndindex(2, 2):
        total += pixels[:, row:height:2, column:width:2]
    return (total >> 2).astype(np.uint8)


@contextmanager
def _without_pixel_limit() -> Iterator[None]:
    # Pillow's limit guards servers against pictures sent by strangers; whole slides exceed it as a matter of course.
    # It is one for all threads, some of which may read pictures at the same time.
    with _pixel_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _read_picture(path: Path, what: str, *, as_stored: bool) -> np.ndarray:
    with _without_pixel_limit():
        try:
            with Image.open(path) as picture:
                is_deep = picture.mode in ("RGB", "RGBA") and "16" in str([tile[3] for tile in picture.tile])
                orientation = picture.getexif().get(_ORIENTATION, 1)
                check_upright(orientation, what, "np.asarray(Image.open(path))", as_stored=as_stored)
                if picture.mode == "CMYK":
                    require_rgb("cmyk", what)
                if picture.mode == "P":
                    return np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB"))
                # Pillow keeps the upper 8 bits, in which a picture of 12 bits is black.
                return png_decode(path.read_bytes()) if is_deep else np.asarray(picture)
        except OSError as error:
            raise ValueError(
                f"Image {str(path)!r} cannot be decoded ({error}): it is damaged or incomplete, or its content is no "
                f"{path.suffix} picture."
            ) from error


def _to_rgb(pixels: np.ndarray, what: str, value_max: float | None) -> np.ndarray:
    shape = "x".join(str(size) for size in pixels.shape)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 2)):
        raise ValueError(f"{what} is grey ({shape} pixels); H&E in colour is needed. Pass the RGB original.")
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or 0 in pixels.shape:
        planar = pixels.ndim == 3 and pixels.shape[0] in (3, 4)
        todo = " Its channels come first: pass `np.moveaxis(image, 0, -1)`." if planar else " Pass an RGB picture."
        raise ValueError(f"{what} has the shape {shape}; expected y, x, c with 3 (RGB) or 4 (RGBA) channels.{todo}")
    pixels = np.moveaxis(pixels, -1, 0)
    return read_colours(pixels, names=RGBA[: len(pixels)], value_max=value_max, what=what).to_rgb(pixels)
