"""Slide files as lazy pyramids: OpenSlide for what it knows, tifffile for other TIFFs (OME pyramids, strips)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.io._st_image import on_white

if TYPE_CHECKING:
    from collections.abc import Callable

    import dask.array as da

_CHUNK_PX = 1024
_STRIP_ROWS = 256
_UM_PER_CM, _UM_PER_INCH = 1e4, 25_400.0
_OPEN_FILES = 8
_PLANES = 2


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
    """One level, (c, y, x): slicing it reads that region and nothing else.

    Holds the path and no open file, so that it can be sent to other processes; files are opened once per process.
    """

    path: str
    stamp: int
    level: int
    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[..., np.ndarray]

    ndim = 3

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        channels, rows, columns = key
        (y0, y1, _), (x0, x1, _) = rows.indices(self.shape[1]), columns.indices(self.shape[2])
        pixels = self.read(self.path, self.stamp, self.level, x0, y0, x1 - x0, y1 - y0)
        return np.moveaxis(pixels, -1, 0)[channels]


def open_slide(path: Path) -> SlideFile:
    """Levels and resolution of a slide file.

    Raises
    ------
    ValueError
        If it can be read neither by OpenSlide nor as a TIFF, or holds no RGB picture.
    """
    import openslide

    stamp = path.stat().st_mtime_ns
    vendor = openslide.OpenSlide.detect_format(str(path))
    try:
        # OpenSlide takes an OME pyramid for a plain TIFF of one level, and its positions on coarser levels of plain TIFFs
        # are off by parts of a pixel.
        return _from_tiff(path, stamp) if vendor in (None, "generic-tiff") else _from_openslide(path, stamp, vendor)
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path | str, error: object) -> ValueError:
    return ValueError(f"Slide {str(path)!r} is damaged or incomplete ({error}). Copy or download it again.")


def _from_openslide(path: Path, stamp: int, vendor: str) -> SlideFile:
    slide = _opened(str(path), stamp)
    levels = []
    for k, (width, height) in enumerate(slide.level_dimensions):
        tile = int(slide.properties.get(f"openslide.level[{k}].tile-width", 0))
        pixels = LevelPixels(str(path), stamp, k, (3, height, width), np.dtype(np.uint8), _read_openslide)
        levels.append(_lazy(pixels, tile))
    stated = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    mpp = None if None in stated else (float(stated[0]), float(stated[1]))
    return SlideFile(levels, mpp, f"openslide ({vendor})")


def _lazy(pixels: LevelPixels, tile: int, *, strips: bool = False) -> da.Array:
    import dask.array as da
    from dask.base import tokenize

    # Whole tiles (or strips) of the file, so that none is decoded for two chunks.
    edge = tile * (_CHUNK_PX // tile) if 0 < tile <= _CHUNK_PX else _CHUNK_PX
    name = f"slide-{tokenize(pixels.path, pixels.stamp, pixels.level)}"
    meta = np.empty((0, 0, 0), pixels.dtype)
    window = (_STRIP_ROWS, pixels.shape[2]) if strips else (edge, edge)
    return da.from_array(pixels, chunks=(pixels.shape[0], *window), name=name, meta=meta, fancy=False)


# The stamp makes a file that was replaced another one.
@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, stamp: int) -> Any:
    import openslide

    return openslide.OpenSlide(path)


def _read_openslide(path: str, stamp: int, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    import openslide

    slide = _opened(path, stamp)
    downsample = slide.level_downsamples[level]
    corner = round(x * downsample), round(y * downsample)
    try:
        region = np.asarray(slide.read_region(corner, level, (width, height)))
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error
    # Parts of a slide that were not scanned are transparent.
    return on_white(region)


def _from_tiff(path: Path, stamp: int) -> SlideFile:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            page: Any = series.keyframe
            axes, mpp = series.axes, _tiff_mpp(tiff)
            shapes = [level.shape for level in series.levels]
            tiles = [level.keyframe.tilewidth if level.keyframe.is_tiled else 0 for level in series.levels]
            end = max(offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True))
            if end > tiff.filehandle.size:
                raise _damaged(path, f"its pixels end at byte {end}, the file at {tiff.filehandle.size}")
    except (tifffile.TiffFileError, IndexError) as error:
        msg = (
            f"{str(path)!r} is no slide that OpenSlide knows and no TIFF ({error}). Pass an svs, ndpi, mrxs, scn, bif or "
            "TIFF file; plain jpg and png pictures of sections are read with `rg.io.read_st`."
        )
        raise ValueError(msg) from error
    sizes = [dict(zip(axes, shape, strict=True)) for shape in shapes]
    if axes not in ("YXS", "SYX", "CYX") or sizes[0][axes.strip("YX")] not in (3, 4):
        msg = (
            f"The first picture of {str(path)!r} has axes {axes} and shape {shapes[0]}; RGB is needed. Fluorescence and "
            "grey pictures cannot be embedded as H&E."
        )
        raise ValueError(msg)
    levels = []
    for k, size in enumerate(sizes):
        pixels = LevelPixels(str(path), stamp, k, (3, size["Y"], size["X"]), page.dtype, _read_tiff)
        levels.append(_lazy(pixels, tiles[k], strips=not tiles[k]))
    return SlideFile(levels, mpp, "tifffile")


@lru_cache(maxsize=_OPEN_FILES)
def _opened_tiff(path: str, stamp: int) -> list[tuple[list[tuple[Any, Any]], Any, Callable[..., Any]]]:
    """Per level: places of the bytes on each page, the page that describes them, how to decode them."""
    import tifffile

    levels: list[tuple[list[tuple[Any, Any]], Any, Callable[..., Any]]] = []
    # All that has to be read for this is read now, and the file is closed.
    with tifffile.TiffFile(path) as tiff:
        for level in tiff.series[0].levels:
            page = level.keyframe
            places = [(page.dataoffsets, page.databytecounts) for page in level.pages if page is not None]
            levels.append((places, page, partial(page.decode, jpegtables=page.jpegtables)))
    return levels


def _read_tiff(path: str, stamp: int, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Tiles (or strips) under a window, decoded one by one.

    Not through the zarr store of tifffile, which builds on inner parts of zarr: few releases of the two go together.
    """
    pages, page, decode = _opened_tiff(path, stamp)[level]
    rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
    touched_rows = range(y // rows, -(-(y + height) // rows))
    touched_columns = range(x // columns, -(-(x + width) // columns))
    # Channels lie side by side in a pixel, in planes of a page, or on pages of their own.
    planes = 3 if len(pages) > 1 or int(page.planarconfig) == _PLANES else 1
    depth = 3 // planes
    out = np.full((height, width, 3), np.iinfo(page.dtype).max, page.dtype)
    try:
        with Path(path).open("rb") as file:
            for plane, row, column in product(range(planes), touched_rows, touched_columns):
                offsets, sizes = pages[plane] if len(pages) > 1 else pages[0]
                index = (0 if len(pages) > 1 else plane * across * down) + row * across + column
                if not sizes[index]:  # a tile that was left out is background
                    continue
                file.seek(offsets[index])
                tile, _, size = decode(file.read(sizes[index]), index)
                top, left = row * rows, column * columns
                y0, y1 = max(y, top), min(y + height, top + size[1])
                x0, x1 = max(x, left), min(x + width, left + size[2])
                pixels = tile[0, y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y : y1 - y, x0 - x : x1 - x, plane : plane + depth] = pixels[..., :depth]
    except (RuntimeError, ValueError, OSError) as error:  # codecs have errors of their own, all of these kinds
        raise _damaged(path, error) from error
    return out


def _tiff_mpp(tiff: Any) -> tuple[float, float] | None:
    """Microns per pixel: OME's physical size, else the resolution tags if they have a unit."""
    import tifffile

    if tiff.is_ome:
        described = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (described[0] if isinstance(described, list) else described)["Pixels"]
        sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
        units = {pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XY"}
        if None not in sizes and units <= {"µm", "um", "μm"}:
            return float(sizes[0]), float(sizes[1])
    tags = tiff.pages[0].tags
    unit = {2: _UM_PER_INCH, 3: _UM_PER_CM}.get(tags.valueof("ResolutionUnit", default=1))
    ratios = [tags.valueof(f"{axis}Resolution", default=(0, 0)) for axis in "XY"]
    if unit is None or not np.all(ratios):
        return None
    return tuple(unit * below / above for above, below in ratios)  # type: ignore[return-value]
