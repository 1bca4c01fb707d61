"""Square tiles out of large images: windows, reflection at the edge, and a reader that goes chunk by chunk.

Tiles are cut in a sweep over the storage chunks (`ragst_sd.image.sweep`): each chunk is read once, so the cost follows
the area that is read and hardly the number of tiles, and memory is bounded by the chunks that one row of windows spans.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ragst_sd.image.sweep import Sweep, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ragst_sd.image.colours import Colours
    from ragst_sd.image.frames import FieldOfView

_RESIZE_BYTES = 2**26


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
    resized = F.interpolate(
        tiles.float(), size=(tile_px, tile_px), mode="bilinear", antialias=True, align_corners=False
    )
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
    units, first, last = sweep.uses(order)
    per_cut = batch_size if window == field.tile_px else max(1, min(batch_size, _RESIZE_BYTES // (3 * window * window)))

    def read(unit: tuple[int, int]) -> np.ndarray:
        rows, columns = sweep.pixels(unit)
        return colours.to_rgb(np.asarray(level[:, rows, columns]))

    held: dict[tuple[int, int], np.ndarray] = {}
    n_read = 0
    drops: dict[int, list[tuple[int, int]]] = {}
    reading = _read_ahead(units, read, num_workers)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        parts = []
        for at in range(begin, begin + len(batch), per_cut):
            part = order[at : min(at + per_cut, begin + len(batch))]
            windows = np.empty((len(part), 3, window, window), dtype=np.uint8)
            for position, index in enumerate(part, start=at):
                while n_read < len(units) and first[n_read] <= position:
                    held[units[n_read]] = next(reading)
                    drops.setdefault(int(last[n_read]), []).append(units[n_read])
                    n_read += 1
                cut(held, sweep, sweep.starts[index], windows[position - at])
                for unit in drops.pop(position, ()):
                    del held[unit]
            parts.append(resize_tiles(windows, field.tile_px))
        yield batch, parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_ahead(
    units: Sequence[tuple[int, int]], read: Callable[[tuple[int, int]], np.ndarray], num_workers: int
) -> Iterator[np.ndarray]:
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
