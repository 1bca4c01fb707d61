"""Slide files as lazy pyramids: OpenSlide for what it knows, tifffile for other TIFFs (OME pyramids, strips)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import openslide
import tifffile
from dask.base import tokenize

from ragst_sd.image.colours import RGBA, Colours, read_colours
from ragst_sd.io._tiff_mpp import ome_image, tiff_mpp

logger = logging.getLogger(__name__)

_CHUNK_PX = 1024
_OPEN_FILES = 8
# Pixels of 16 bit often hold fewer; smaller depths are what they say.
_DEEP_BITS = 16
_JPEG = (6, 7)
_ASSOCIATED, _UNASSOCIATED = 1, 2


@dataclass(frozen=True)
class SlideFile:
    """What a slide file holds."""

    levels: list[da.Array]
    """Lazy arrays (c, y, x) of RGB pixels, finest first."""
    mpp: tuple[float, float] | None
    """Microns per pixel in x and y, where the file states them."""
    reader: str
    """What reads it: `openslide (<vendor>)` or `tifffile`."""


@dataclass(frozen=True)
class LevelPixels:
    """One level, RGB (3, y, x): slicing it reads that region and nothing else.

    Holds the path and no open file, so that it can be sent to other processes; files are opened once per process.
    """

    path: str
    stamp: int
    level: int
    stored_shape: tuple[int, int, int]
    stored_dtype: np.dtype
    read: Callable[..., np.ndarray]
    colours: Colours | None = None
    """What the stored pixels mean; `None` leaves them as they are."""

    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.stored_shape if self.colours is None else (3, *self.stored_shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.stored_dtype if self.colours is None else np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        channels, rows, columns = key
        (y0, y1, down), (x0, x1, right) = rows.indices(self.shape[1]), columns.indices(self.shape[2])
        pixels = self.read(self.path, self.stamp, self.level, x0, y0, x1 - x0, y1 - y0)
        pixels = np.moveaxis(pixels, -1, 0)[:, ::down, ::right]
        return (pixels if self.colours is None else self.colours.to_rgb(pixels))[channels]


def open_slide(path: Path, value_max: float | None = None, *, as_stored: bool = False) -> SlideFile:
    """Levels and resolution of a slide file; see :func:`check_upright` for `as_stored`.

    Raises
    ------
    ValueError
        If it can be read neither by OpenSlide nor as a TIFF, holds no RGB picture, or is to be turned.
    """
    stamp = path.stat().st_mtime_ns
    vendor = openslide.OpenSlide.detect_format(str(path))
    try:
        # OpenSlide takes an OME pyramid for a plain TIFF of one level, and its positions on coarser levels of plain
        # TIFFs are off by parts of a pixel.
        if vendor in (None, "generic-tiff"):
            return open_tiff(path, value_max, as_stored=as_stored)
        return _from_openslide(path, stamp, vendor)
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error


def check_upright(orientation: int, what: str, stored: str, *, as_stored: bool) -> None:
    """Refuse a picture with a flag to be shown rotated or mirrored, or warn that its pixels are read as stored.

    Parameters
    ----------
    orientation
        Of its tag; 1 is as it is stored.
    stored
        What gives its pixels as they are stored.
    as_stored
        Whether that is how it is wanted: if no spots come with it, or if these are known to be of the stored pixels.
    """
    if orientation <= 1:
        return
    says = f"{what} has a flag to be shown rotated or mirrored (orientation {orientation})."
    if as_stored:
        logger.warning(
            "%s Its pixels are read as stored, so coordinates and annotations that were made on the picture as shown "
            "do not match.",
            says,
        )
        return
    raise ValueError(
        f"{says} Some tools follow it and others do not, so it is unclear whether the coordinates refer to the stored "
        "or to the shown picture. Save the right pixels without a flag, or pass them to `rg.io.read_st`: "
        f"`{stored}` as stored, or `np.asarray(ImageOps.exif_transpose(Image.open(path)))` as shown (with PIL)."
    )


def _damaged(path: Path | str, error: object) -> ValueError:
    return ValueError(f"Slide {str(path)!r} is damaged or incomplete ({error}). Copy or download it again.")


def _from_openslide(path: Path, stamp: int, vendor: str) -> SlideFile:
    slide = _opened(str(path), stamp)
    levels = []
    for k, (width, height) in enumerate(slide.level_dimensions):
        tile = [int(slide.properties.get(f"openslide.level[{k}].tile-{edge}", 0)) for edge in ("height", "width")]
        # Parts of a slide that were not scanned are transparent.
        colours = Colours(alpha=3)
        pixels = LevelPixels(str(path), stamp, k, (4, height, width), np.dtype(np.uint8), _read_openslide, colours)
        levels.append(_lazy(pixels, (tile[0], tile[1])))
    stated = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    mpp = None if None in stated else (float(stated[0]), float(stated[1]))
    return SlideFile(levels, mpp, f"openslide ({vendor})")


def _lazy(pixels: LevelPixels, segment: tuple[int, int]) -> da.Array:
    """A level in chunks of whole tiles or strips of the file, (height, width), so that none is decoded twice."""
    area = _CHUNK_PX**2
    height, width = (
        min(edge, size) if edge else _CHUNK_PX for edge, size in zip(segment, pixels.shape[1:], strict=True)
    )
    if height < _CHUNK_PX and width < _CHUNK_PX:
        height, width = height * (_CHUNK_PX // height), width * (_CHUNK_PX // width)
    else:
        height *= max(1, area // (height * width))
    name = f"slide-{tokenize(pixels.path, pixels.stamp, pixels.level, pixels.colours)}"
    meta = np.empty((0, 0, 0), pixels.dtype)
    return da.from_array(pixels, chunks=(pixels.shape[0], height, width), name=name, meta=meta, fancy=False)


# The stamp makes a file that was replaced another one.
@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, stamp: int) -> Any:
    return openslide.OpenSlide(path)


def _read_openslide(path: str, stamp: int, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    slide = _opened(path, stamp)
    downsample = slide.level_downsamples[level]
    corner = round(x * downsample), round(y * downsample)
    try:
        region = np.asarray(slide.read_region(corner, level, (width, height)))
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error
    return region


def open_tiff(path: Path, value_max: float | None = None, *, as_stored: bool = False) -> SlideFile:
    """The largest colour picture of a TIFF, with its coarser levels."""
    stamp = path.stat().st_mtime_ns
    try:
        with tifffile.TiffFile(path) as tiff:
            chosen = _colour_series(tiff, path)
            series = tiff.series[chosen]
            page: Any = series.keyframe
            mpp, named = tiff_mpp(tiff, chosen), _channel_names(tiff, chosen)
            levels = [_raw_level(path, stamp, chosen, k, level) for k, level in enumerate(series.levels)]
            others = [f"{other.name!r} {other.shape}" for k, other in enumerate(tiff.series) if k != chosen]
            if others:
                logger.info("%r: the largest picture, %s, is read; not %s.", path.name, series.shape, ", ".join(others))
            end = max(offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True))
            if any(page.parent is not tiff for level in series.levels for page in level.pages if page is not None):
                raise ValueError(f"The channels of {str(path)!r} lie in several files. Write them to one, as RGB.")
            has_gaps = 0 in series.levels[-1].keyframe.databytecounts
            if end > tiff.filehandle.size:
                raise _damaged(path, f"its pixels end at byte {end}, the file at {tiff.filehandle.size}")
    except (tifffile.TiffFileError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be decoded: it is no slide that OpenSlide knows and no TIFF ({error}). Pass an svs, "
            "ndpi, mrxs, scn, bif or TIFF file; plain jpg and png pictures of sections are read with `rg.io.read_st`."
        ) from error
    orientation = int(page.tags.valueof("Orientation", default=1))
    check_upright(orientation, f"Image {path.name!r}", "tifffile.imread(path)", as_stored=as_stored)
    photometric = _photometric(page)
    alpha = next((int(kind) for kind in page.extrasamples if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    if photometric == "rgb":
        named = list(RGBA) if alpha is not None else []
    elif len(named) != levels[0][0].shape[0]:
        named = []
    bits = page.bitspersample
    if value_max is None and page.dtype.kind == "u" and isinstance(bits, int) and bits < _DEEP_BITS:
        value_max = float(2**bits - 1)
    coarsest = _lazy(*levels[-1])
    if has_gaps and page.dtype.kind in "ui":
        # White where a tile was left out, which says nothing of the others.
        coarsest = coarsest * (coarsest != np.iinfo(page.dtype).max)
    about: dict[str, Any] = {"photometric": photometric, "premultiplied": alpha == _ASSOCIATED, "names": named}
    colours = read_colours(coarsest, value_max=value_max, what=f"Image {path.name!r}", **about)
    lazy = [_lazy(replace(pixels, colours=colours), segment) for pixels, segment in levels]
    return SlideFile(lazy, mpp, "tifffile")


def _colour_series(tiff: Any, path: Path | str) -> int:
    """Position of the largest picture with colour channels and no other axis."""
    sizes = [
        {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis in "YX" or size > 1}
        for series in tiff.series
    ]
    colour = [k for k, size in enumerate(sizes) if len(size) == 3 and {size.get("S"), size.get("C")} & {3, 4}]
    if not colour:
        axes, shape, stored = tiff.series[0].axes, tiff.series[0].shape, _photometric(tiff.series[0].keyframe)
        raise ValueError(
            f"The first picture of {str(path)!r} has axes {axes}, shape {shape} and samples stored as "
            f"{stored!r}; RGB is needed. Fluorescence and grey pictures cannot be embedded as H&E; of a stack of "
            "planes or times, write the one in focus to a file of its own."
        )
    return max(colour, key=lambda k: sizes[k]["Y"] * sizes[k]["X"])


def _photometric(page: Any) -> str:
    """What the samples of a page are once they are decoded: JPEG stores RGB as YCbCr."""
    stored = str(getattr(page.photometric, "name", page.photometric)).lower()
    return "rgb" if stored == "ycbcr" and page.compression in _JPEG else stored


def _channel_names(tiff: Any, series: int) -> list[str]:
    described = ome_image(tiff, series)
    channels = [] if described is None else described.findall("{*}Pixels/{*}Channel")
    names = [channel.get("Name", "") for channel in channels]
    # "C:0", "Channel 1": numbers, which name nothing.
    return [] if all(re.fullmatch(r"(c|ch|channel)?[\s:_-]*[\d:]*", name, re.IGNORECASE) for name in names) else names


def _raw_level(path: Path, stamp: int, series: int, k: int, level: Any) -> tuple[LevelPixels, tuple[int, int]]:
    """Stored pixels of a level, and the (height, width) of what is decoded at once; 0 where any part can be read."""
    size, page = dict(zip(level.axes, level.shape, strict=True)), level.keyframe
    shape = (size["S"] if size.get("S", 1) > 1 else size.get("C", 1), size["Y"], size["X"])
    if level.dataoffset is not None:
        return LevelPixels(str(path), stamp, k, shape, page.dtype, partial(_read_mapped, series, level.axes)), (0, 0)
    pixels = LevelPixels(str(path), stamp, k, shape, page.dtype, _read_tiff)
    return pixels, (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)


@lru_cache(maxsize=_OPEN_FILES)
def _opened_tiff(path: str, stamp: int) -> list[tuple[list[tuple[int, int]], Any, Callable[..., Any]]]:
    """Per level: place and size of each tile or strip, the page that describes them, how to decode them."""
    levels: list[tuple[list[tuple[int, int]], Any, Callable[..., Any]]] = []
    # All that has to be read for this is read now, and the file is closed.
    with tifffile.TiffFile(path) as tiff:
        for level in tiff.series[_colour_series(tiff, path)].levels:
            page, pages = level.keyframe, [page for page in level.pages if page is not None]
            segments = [place for page in pages for place in zip(page.dataoffsets, page.databytecounts, strict=True)]
            levels.append((segments, page, partial(page.decode, jpegtables=page.jpegtables)))
    return levels


def _read_mapped(
    series: int, axes: str, path: str, stamp: int, level: int, x: int, y: int, width: int, height: int
) -> np.ndarray:
    """A window of pixels that lie in the file as they are, one after the other: strips, stacks of ImageJ."""
    pixels: np.ndarray = tifffile.memmap(path, series=series, level=level, mode="r")
    order = [axes.index(axis) for axis in "YX"]
    rest = [k for k in range(len(axes)) if k not in order]
    pixels = pixels.transpose(*order, *rest)[y : y + height, x : x + width]
    # Other axes than that of the channels have length one.
    return np.array(pixels.reshape(*pixels.shape[:2], -1), pixels.dtype.newbyteorder("="))


def _read_tiff(path: str, stamp: int, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Tiles (or strips) under a window, decoded one by one.

    Not through the zarr store of tifffile, which builds on inner parts of zarr: few releases of the two go together.
    """
    segments, page, decode = _opened_tiff(path, stamp)[level]
    rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
    touched_rows = range(y // rows, -(-(y + height) // rows))
    touched_columns = range(x // columns, -(-(x + width) // columns))
    # Channels lie side by side in a pixel, or else in planes of a page or on pages of their own.
    planes = max(1, len(segments) // (across * down))
    depth = 1 if planes > 1 else page.samplesperpixel
    white = np.iinfo(page.dtype).max if page.dtype.kind in "iu" else np.nan
    out = np.full((height, width, planes * depth), white, page.dtype)
    try:
        with Path(path).open("rb") as file:
            for plane, row, column in product(range(planes), touched_rows, touched_columns):
                index = row * across + column
                offset, n_bytes = segments[plane * across * down + index]
                if not n_bytes:  # a tile that was left out is background
                    continue
                file.seek(offset)
                tile, _, size = decode(file.read(n_bytes), index)
                top, left = row * rows, column * columns
                y0, y1 = max(y, top), min(y + height, top + size[1])
                x0, x1 = max(x, left), min(x + width, left + size[2])
                pixels = tile[0, y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y : y1 - y, x0 - x : x1 - x, plane : plane + depth] = pixels[..., :depth]
    except (RuntimeError, ValueError, OSError) as error:  # codecs have errors of their own, all of these kinds
        raise _damaged(path, error) from error
    return out
