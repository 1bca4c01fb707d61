"""Square tiles out of large images: windows, reflection at the edge, and a reader that goes block by block.

Tiles are sorted by the storage chunks they lie in and each block of chunks is read once, so the cost follows the area
that is read and never the number of tiles, and memory is bounded by one block.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragst_sd.image.frames import FieldOfView

_BLOCK_PX = 2048
_RESIZE_BYTES = 2**26


class Block(NamedTuple):
    """Tiles that are cut from one region of the image."""

    tiles: np.ndarray
    """Indices of the tiles."""
    y0: int
    y1: int
    x0: int
    x1: int


def window_starts(centers: np.ndarray, field: FieldOfView) -> np.ndarray:
    """First (x, y) pixel of each window at the field's level, for centres in level-0 pixels."""
    return np.rint(centers / field.downsample - field.window_px / 2).astype(np.int64)


def padded_fraction(starts: np.ndarray, window: int, height: int, width: int) -> np.ndarray:
    """Share of each window that lies outside the image."""
    size = np.array([width, height])
    inside = np.clip(np.minimum(starts + window, size) - np.maximum(starts, 0), 0, None)
    return 1.0 - inside.prod(axis=1) / window**2


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Mirror indices into ``[0, size)`` without repeating the edge pixel, however far outside they lie."""
    if size == 1:
        return np.zeros_like(index)
    folded = np.mod(index, 2 * size - 2)
    return np.where(folded < size, folded, 2 * size - 2 - folded)


def _reach(start: np.ndarray, window: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one pixel that each window touches along one axis, reflection included."""
    low, high = start.copy(), start + window
    for i in np.flatnonzero((start < 0) | (start + window > size)):
        touched = reflect(np.arange(start[i], start[i] + window), size)
        low[i], high[i] = touched.min(), touched.max() + 1
    return low, high


def _block_edge(chunk: int) -> int:
    """Edge of the region read at once: whole chunks, about `_BLOCK_PX`, never less than one chunk."""
    return chunk * max(1, _BLOCK_PX // chunk)


def group_by_block(starts: np.ndarray, window: int, shape: tuple[int, int], chunk: tuple[int, int]) -> list[Block]:
    """Group windows by the block of storage chunks that holds their centre.

    Parameters
    ----------
    starts
        (n, 2) first pixel (x, y) of each window.
    window
        Edge of the windows.
    shape, chunk
        (height, width) of the level and of its storage chunks.

    Returns
    -------
    Blocks in reading order, each with the smallest region that holds all its windows.
    """
    height, width = shape
    low_x, high_x = _reach(starts[:, 0], window, width)
    low_y, high_y = _reach(starts[:, 1], window, height)
    centre = starts + window // 2
    row = np.clip(centre[:, 1], 0, height - 1) // _block_edge(chunk[0])
    column = np.clip(centre[:, 0], 0, width - 1) // _block_edge(chunk[1])
    order = np.lexsort((centre[:, 0], centre[:, 1], column, row))
    keys = np.stack([row, column], axis=1)[order]
    cuts = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    return [
        Block(part, int(low_y[part].min()), int(high_y[part].max()), int(low_x[part].min()), int(high_x[part].max()))
        for part in np.split(order, cuts)
        if len(part)
    ]


def as_rgb_uint8(pixels: np.ndarray, value_max: float) -> np.ndarray:
    """RGB or RGBA pixels (c, h, w) of any range as uint8 RGB; transparent pixels are laid on white."""
    if pixels.shape[0] == 4:
        alpha = pixels[3:].astype(np.float32) / value_max
        pixels = pixels[:3] * alpha + value_max * (1 - alpha)
    else:
        pixels = pixels[:3]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    return np.clip(np.rint(pixels.astype(np.float32) * (255.0 / value_max)), 0, 255).astype(np.uint8)


def resize_tiles(windows: np.ndarray, tile_px: int) -> torch.Tensor:
    """Resample uint8 windows (n, 3, w, w) to (n, 3, tile_px, tile_px), bilinear with antialiasing."""
    tiles = torch.from_numpy(windows)
    if windows.shape[-1] == tile_px:
        return tiles
    resized = F.interpolate(
        tiles.float(), size=(tile_px, tile_px), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _cut(pixels: np.ndarray, block: Block, start: np.ndarray, window: int, shape: tuple[int, int]) -> np.ndarray:
    x, y = int(start[0]), int(start[1])
    height, width = shape
    if x >= 0 and y >= 0 and x + window <= width and y + window <= height:
        return pixels[:, y - block.y0 : y - block.y0 + window, x - block.x0 : x - block.x0 + window]
    rows = reflect(np.arange(y, y + window), height) - block.y0
    columns = reflect(np.arange(x, x + window), width) - block.x0
    return pixels[:, rows[:, None], columns[None, :]]


def iter_tiles(
    level: Any,
    centers: np.ndarray,
    field: FieldOfView,
    *,
    chunk: tuple[int, int],
    value_max: float,
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
    value_max
        Pixel value of full brightness (255, 65535 or 1).
    batch_size
        Largest number of tiles in one batch.
    num_workers
        Threads that read blocks ahead; 0 reads in the calling thread.

    Yields
    ------
    Indices into `centers`, and the tiles as a uint8 tensor (b, 3, tile_px, tile_px). Every index comes exactly once.
    """
    shape = (int(level.shape[1]), int(level.shape[2]))
    window = field.window_px
    starts = window_starts(centers, field)
    per_cut = max(1, min(batch_size, _RESIZE_BYTES // (3 * window * window)))

    def read(block: Block) -> np.ndarray:
        return as_rgb_uint8(np.asarray(level[:, block.y0 : block.y1, block.x0 : block.x1]), value_max)

    waiting: list[tuple[np.ndarray, torch.Tensor]] = []
    n_waiting = 0
    for block, pixels in _read_ahead(group_by_block(starts, window, shape, chunk), read, num_workers):
        for first in range(0, len(block.tiles), per_cut):
            part = block.tiles[first : first + per_cut]
            windows = np.stack([_cut(pixels, block, starts[i], window, shape) for i in part])
            waiting.append((part, resize_tiles(windows, field.tile_px)))
            n_waiting += len(part)
            while n_waiting >= batch_size:
                index, tiles = _join(waiting)
                yield index[:batch_size], tiles[:batch_size]
                waiting, n_waiting = [(index[batch_size:], tiles[batch_size:])], n_waiting - batch_size
    if n_waiting:
        yield _join(waiting)


def _join(parts: list[tuple[np.ndarray, torch.Tensor]]) -> tuple[np.ndarray, torch.Tensor]:
    return np.concatenate([index for index, _ in parts]), torch.cat([tiles for _, tiles in parts])


def _read_ahead(blocks: list[Block], read: Any, num_workers: int) -> Iterator[tuple[Block, np.ndarray]]:
    if num_workers == 0:
        for block in blocks:
            yield block, read(block)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        queue: deque = deque()
        upcoming = iter(blocks)
        for block in upcoming:
            queue.append((block, pool.submit(read, block)))
            # One block per thread in flight bounds the memory whatever the size of the image.
            if len(queue) > num_workers:
                ready, pixels = queue.popleft()
                yield ready, pixels.result()
        while queue:
            ready, pixels = queue.popleft()
            yield ready, pixels.result()
