"""Square tiles out of large images: windows, reflection at the edge, and a reader that goes chunk by chunk.

Tiles are cut in a sweep over the storage chunks: each chunk is read once, so the cost follows the area that is read and
hardly the number of tiles, and memory is bounded by the chunks that one row of windows spans. Chunks are joined to
units of about a megapixel. The image is cut into bands of unit columns, so narrow that the rows of units which a window
spans fit into memory; each band is swept from top to bottom, tiles sorted by the lowest row of units that they touch. A
unit is read when the first tile needs it and dropped after the last one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ragst_sd.image.colours import Colours
from ragst_sd.image.frames import FieldOfView

_RESIZE_BYTES = 2**26
_UNIT_PX = 1024**2
_BAND_BYTES = 2**28
_CHANNELS = 4
Pair = tuple[int, int]
Unit = tuple[int, int, int]
"""Band, row and column of what is read at once."""
Units = dict[Pair, np.ndarray]
"""Pixels by row and column."""


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Mirror indices into ``[0, size)`` without repeating the edge pixel, however far outside they lie."""
    if size == 1:
        return np.zeros_like(index)
    folded = np.mod(index, 2 * size - 2)
    return np.where(folded < size, folded, 2 * size - 2 - folded)


def reach(start: np.ndarray, window: int, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one pixel (x, y) that each window touches, reflection included."""
    end = start + window
    # What hangs over an edge is mirrored at it.
    low, high = np.minimum(start, 2 * size - 1 - end), np.maximum(end, 1 - start)
    return np.maximum(low, 0), np.minimum(high, size)


def unit_shape(shape: tuple[int, int], chunk: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what is read at once: whole chunks, joined along the shorter edge up to about a megapixel."""
    height, width = min(chunk[0], shape[0]), min(chunk[1], shape[1])
    while 2 * height * width <= _UNIT_PX:
        if (height <= width or width >= shape[1]) and height < shape[0]:
            height = min(2 * height, -(-shape[0] // chunk[0]) * chunk[0])
        elif width < shape[1]:
            width = min(2 * width, -(-shape[1] // chunk[1]) * chunk[1])
        else:
            break
    return height, width


@dataclass(frozen=True)
class Sweep:
    """Windows on one level of an image, and the units of chunks that they touch."""

    shape: tuple[int, int]
    """(height, width) of the level."""
    unit: tuple[int, int]
    """(height, width) of a unit."""
    window: int
    """Edge of the windows."""
    starts: np.ndarray
    """(n, 2) first pixel (x, y) of each window."""
    low: np.ndarray
    """(n, 2) first unit (column, row) that each window touches."""
    high: np.ndarray
    """(n, 2) last unit (column, row) that each window touches."""

    @classmethod
    def over(cls, starts: np.ndarray, window: int, shape: tuple[int, int], chunk: tuple[int, int]) -> Sweep:
        """Plan for windows that start at `starts` on a level of `shape` in chunks of `chunk` (height, width)."""
        unit = unit_shape(shape, chunk)
        (first, end), edges = reach(starts, window, np.array(shape[::-1])), np.array(unit[::-1])
        return cls(shape, unit, window, starts, first // edges, (end - 1) // edges)

    @property
    def band(self) -> int:
        """Unit columns of a band."""
        rows = -(-self.window // self.unit[0]) + 1
        # One more column than fits would be read for the windows that hang over the edge of the band.
        return max(1, _BAND_BYTES // (rows * self.unit[0] * self.unit[1] * _CHANNELS) - 1)

    def order(self) -> np.ndarray:
        """Indices of the windows in the order of the sweep; it depends on each window alone, ties keep their order."""
        return np.lexsort((self.starts[:, 0], self.low[:, 0], self.high[:, 1], self.low[:, 0] // self.band))

    def touched(self, index: int) -> Iterator[Unit]:
        """Units that a window touches: band, row and column, as nothing is kept from one band to the next."""
        (left, top), (right, bottom) = self.low[index].tolist(), self.high[index].tolist()
        return product([left // self.band], range(top, bottom + 1), range(left, right + 1))

    def last_uses(self, order: np.ndarray) -> dict[Unit, int]:
        """Units in the order of their first use, and the position in `order` of their last."""
        return {unit: position for position, index in enumerate(order) for unit in self.touched(index)}

    def pixels(self, unit: Unit) -> tuple[slice, slice]:
        """Rows and columns of the level that a unit covers."""
        top, left = unit[1] * self.unit[0], unit[2] * self.unit[1]
        return slice(top, min(top + self.unit[0], self.shape[0])), slice(left, min(left + self.unit[1], self.shape[1]))


def gather(units: Units, sweep: Sweep, rows: Pair, columns: Pair, out: np.ndarray) -> None:
    """Copy the pixels of a region (first and last-plus-one row and column) from the units it lies in to `out`."""
    height, width = sweep.unit
    for r in range(rows[0] // height, (rows[1] - 1) // height + 1):
        top, bottom = max(rows[0], r * height), min(rows[1], (r + 1) * height)
        for c in range(columns[0] // width, (columns[1] - 1) // width + 1):
            left, right = max(columns[0], c * width), min(columns[1], (c + 1) * width)
            out[:, top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = units[r, c][
                :, top - r * height : bottom - r * height, left - c * width : right - c * width
            ]


def cut(units: Units, sweep: Sweep, start: Iterable[int], out: np.ndarray) -> None:
    """Copy one window, mirrored at the edge of the image, into `out` (3, window, window)."""
    x, y = (int(value) for value in start)
    window, (height, width) = sweep.window, sweep.shape
    if x >= 0 and y >= 0 and x + window <= width and y + window <= height:
        gather(units, sweep, (y, y + window), (x, x + window), out)
        return
    rows, columns = (reflect(np.arange(first, first + window), size) for first, size in ((y, height), (x, width)))
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    region = np.empty((3, bottom - top, right - left), dtype=np.uint8)
    gather(units, sweep, (int(top), int(bottom)), (int(left), int(right)), region)
    out[...] = region[:, (rows - top)[:, None], (columns - left)[None, :]]


def window_starts(centers: np.ndarray, field: FieldOfView) -> np.ndarray:
    """First (x, y) pixel of each window at the field's level, for centres in level-0 pixels."""
    scale, offset = field.grid
    return np.rint((centers - offset) / scale - field.window_px / 2).astype(np.int64)


def padded_fraction(starts: np.ndarray, window: int, height: int, width: int) -> np.ndarray:
    """Share of each window that lies outside the image."""
    size = np.array([width, height])
    inside = np.clip(np.minimum(starts + window, size) - np.maximum(starts, 0), 0, None)
    return 1.0 - inside.prod(axis=1) / window**2


def resize_tiles(windows: np.ndarray, tile_px: int) -> torch.Tensor:
    """Resample uint8 windows (n, 3, w, w) to (n, 3, tile_px, tile_px), bilinear with antialiasing."""
    tiles = torch.from_numpy(windows)
    if windows.shape[-1] == tile_px:
        return tiles
    size = (tile_px, tile_px)
    resized = F.interpolate(tiles.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def storage_order(
    centers: np.ndarray, field: FieldOfView, shape: tuple[int, int], chunk: tuple[int, int]
) -> np.ndarray:
    """Indices of the tiles in the order in which `iter_tiles` yields them.

    Parameters
    ----------
    centers
        (n, 2) centres (x, y) in level-0 pixels.
    field
        The field of view.
    shape, chunk
        (height, width) of its level and of the storage chunks.

    Returns
    -------
    Indices into `centers`. The place of a tile relative to another does not depend on the rest.
    """
    return Sweep.over(window_starts(centers, field), field.window_px, shape, chunk).order()


def iter_tiles(
    level: Any,
    centers: np.ndarray,
    field: FieldOfView,
    *,
    chunk: tuple[int, int],
    colours: Colours,
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Read tiles in storage order.

    Parameters
    ----------
    level
        Array (c, y, x) of the field's pyramid level; anything that slices and turns into numpy (numpy, zarr, dask).
    centers
        (n, 2) centres (x, y) in level-0 pixels; all of them inside the image.
    field
        The field of view.
    chunk
        (height, width) of the storage chunks of `level`.
    colours
        What its numbers mean.
    batch_size
        Number of tiles in a batch; the last one may have fewer.
    num_workers
        Threads that read chunks ahead; 0 reads in the calling thread.

    Yields
    ------
    Indices into `centers`, and the tiles as a uint8 tensor (b, 3, tile_px, tile_px). Every index comes exactly once.
    """
    shape = (int(level.shape[1]), int(level.shape[2]))
    window = field.window_px
    sweep = Sweep.over(window_starts(centers, field), window, shape, chunk)
    order = sweep.order()
    last_uses = sweep.last_uses(order)
    # Windows that are cut and resized together: wide ones fill the memory long before a batch is full.
    per_cut = batch_size if window == field.tile_px else max(1, min(batch_size, _RESIZE_BYTES // (3 * window * window)))

    def read(unit: Unit) -> np.ndarray:
        rows, columns = sweep.pixels(unit)
        return colours.to_rgb(np.asarray(level[:, rows, columns]))

    held: Units = {}
    reading = _read_ahead(last_uses, read, num_workers)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        parts = []
        for at in range(begin, begin + len(batch), per_cut):
            part = order[at : min(at + per_cut, begin + len(batch))]
            windows = np.empty((len(part), 3, window, window), dtype=np.uint8)
            for position, index in enumerate(part, start=at):
                touched = list(sweep.touched(index))
                for unit in touched:
                    if unit[1:] not in held:
                        held[unit[1:]] = next(reading)
                cut(held, sweep, sweep.starts[index], windows[position - at])
                for unit in touched:
                    if last_uses[unit] == position:
                        del held[unit[1:]]
            parts.append(resize_tiles(windows, field.tile_px))
        yield batch, parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_ahead(units: Iterable[Unit], read: Callable[[Unit], np.ndarray], num_workers: int) -> Iterator[np.ndarray]:
    if num_workers == 0:
        yield from map(read, units)
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="ragst-read") as pool:
        queue: deque = deque()
        try:
            for unit in units:
                queue.append(pool.submit(read, unit))
                # One unit per thread in flight, and one that waits, bound the memory whatever the size of the image.
                if len(queue) > num_workers:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()
