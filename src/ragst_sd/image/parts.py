"""The work of embedding in parts, which can be kept when a run is interrupted and handed out to other machines.

Batches of tiles are read ahead in a background thread and go through the encoder without letting a GPU wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar, cast

import numpy as np
import torch

from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.frames import FieldOfView
from ragst_sd.image.tiles import storage_order

_BATCHES_PER_PART = 8
# Batches handed to the device before the first of their results is fetched.
_IN_FLIGHT = 2
_Item = TypeVar("_Item")
_END = object()


@dataclass(frozen=True)
class Part:
    """Tiles of one field of view that are embedded, kept and handed out together: some whole batches."""

    field: int
    """Position of the field of view."""
    rows: np.ndarray
    """Rows of the centres, in storage order."""


def plan_parts(pyramid: Pyramid, centers: np.ndarray, fields: Sequence[FieldOfView], *, batch_size: int) -> list[Part]:
    """Cut the embedding of tiles into parts.

    Batches are the same whether parts are embedded in one go, one by one, or somewhere else: whatever of an encoder's
    rounding depends on the company of a tile stays the same.

    Parameters
    ----------
    pyramid
        The image.
    centers
        (n, 2) centres (x, y) in level-0 pixels; those outside the image belong to no part.
    fields
        Fields of view.
    batch_size
        Tiles encoded at once.

    Returns
    -------
    The parts, field by field.
    """
    inside = np.flatnonzero(pyramid.inside(centers))
    parts = []
    for position, field in enumerate(fields):
        order = storage_order(centers[inside], field, pyramid.shapes[field.level], pyramid.chunks[field.level])
        size = batch_size * _BATCHES_PER_PART
        parts += [Part(position, inside[order[first : first + size]]) for first in range(0, len(order), size)]
    return parts


def embed_parts(
    pyramid: Pyramid,
    centers: np.ndarray,
    fields: Sequence[FieldOfView],
    parts: Sequence[Part],
    encoder: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Generator[np.ndarray, None, None]:
    """Embed parts of `plan_parts`, in order; one part's tiles after the other.

    Parameters
    ----------
    pyramid, centers, fields, batch_size
        As given to `plan_parts`.
    parts
        All parts, or some of them in their order.
    encoder
        Maps a uint8 tensor (b, 3, h, w) to a tensor (b, d).
    num_workers
        Threads that read chunks ahead. With one or more, tiles are also cut and resized in a thread of their own while
        the encoder is busy; 0 does everything in turn in the calling thread.
    advance
        Called with the number of tiles done after each batch.

    Yields
    ------
    float32 (len(part.rows), d) for each part.
    """
    for position, group in groupby(parts, key=lambda part: part.field):
        field, todo = fields[position], list(group)
        around = centers[np.concatenate([part.rows for part in todo])]
        batches = pyramid.tiles(around, field, batch_size=batch_size, num_workers=num_workers)
        staged = ((index, pin(tiles, encoder)) for index, tiles in batches)
        done: list[np.ndarray] = []
        n_done = 0
        with closing(in_background(staged) if num_workers else staged) as source:
            # Rows of a part are in storage order already, so batches come in the order of the parts.
            for index, values in embed_batches(source, encoder):
                done.append(values)
                n_done += len(index)
                if advance is not None:
                    advance(len(index))
                if n_done == len(todo[0].rows):
                    todo.pop(0)
                    yield np.concatenate(done)
                    done, n_done = [], 0


def collect_parts(n_centers: int, n_fields: int, parts: Sequence[Part], values: Sequence[np.ndarray]) -> np.ndarray:
    """Put the embeddings of all parts in place: float32 (n_centers, d * n_fields), NaN where there is no tile."""
    width = values[0].shape[1]
    out = np.full((n_centers, width * n_fields), np.nan, dtype=np.float32)
    for part, rows in zip(parts, values, strict=True):
        out[part.rows, part.field * width : (part.field + 1) * width] = rows
    return out


def in_background(items: Iterable[_Item], *, depth: int = 2) -> Generator[_Item, None, None]:
    """Iterate over `items` in a thread of its own, at most `depth` of them ahead.

    An error in the thread is raised here, at the place in the order where it happened. Leaving the iteration early (an
    error, Ctrl-C, `close`) stops the thread and closes `items`.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ragst-prefetch") as pool:
        # One more than wait is being made.
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(depth + 1))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, iterator, _END))
                yield cast("_Item", item)
        finally:
            for future in waiting:
                future.cancel()
            if hasattr(iterator, "close"):
                pool.submit(iterator.close).result()


def embed_batches(
    batches: Iterable[tuple[np.ndarray, torch.Tensor]], encoder: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embed batches of tiles so that a GPU never waits: the next batch is handed over before a result is fetched.

    Parameters
    ----------
    batches
        Indices, and uint8 tiles (b, 3, h, w).
    encoder
        Maps tiles to a tensor (b, d).

    Yields
    ------
    Indices and float32 (b, d), in order.

    Raises
    ------
    ValueError
        If the encoder returns NaN or infinite values.
    """
    encode = getattr(encoder, "encode", encoder)
    waiting: deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = deque()
    for index, tiles in batches:
        waiting.append((index, _fetch_later(encode(tiles))))
        if len(waiting) >= _IN_FLIGHT:
            ready, fetch = waiting.popleft()
            yield ready, _require_finite(fetch())
    for ready, fetch in waiting:
        yield ready, _require_finite(fetch())


def pin(tiles: torch.Tensor, encoder: object) -> torch.Tensor:
    """Tiles in memory from which a CUDA encoder copies without waiting; as they are for any other encoder."""
    return tiles.pin_memory() if getattr(getattr(encoder, "device", None), "type", "cpu") == "cuda" else tiles


def _fetch_later(vectors: torch.Tensor) -> Callable[[], np.ndarray]:
    """A function that waits for a batch and gives it as an array; the copy from a GPU is queued now."""
    if vectors.device.type != "cuda":
        return vectors.cpu().numpy
    # The copy is queued behind this batch alone; asking for it later does not wait for the batches after it.
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def fetch() -> np.ndarray:
        copied.synchronize()
        return host.numpy().copy()

    return fetch


def _require_finite(values: np.ndarray) -> np.ndarray:
    """The values, or a `ValueError` if some are NaN or infinite."""
    fine = np.isfinite(values).all(axis=1)
    if not fine.all():
        raise ValueError(
            f"The encoder returned NaN or infinite values for {int((~fine).sum())} of {len(values)} tiles of a batch. "
            "Check its weights and `mean` and `std`, or pass `amp=False` if reduced precision overflows."
        )
    return values
