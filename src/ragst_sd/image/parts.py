"""The work of embedding in parts, which can be kept when a run is interrupted and handed out to other machines."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.image.prefetch import in_background
from ragst_sd.image.streaming import embed_batches, pin
from ragst_sd.image.tiles import iter_tiles, storage_order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import torch

    from ragst_sd.image.embedding import Pyramid
    from ragst_sd.image.frames import FieldOfView

_BATCHES_PER_PART = 8


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
    if len(inside) == 0:
        msg = f"None of the {len(centers)} centres lies on the image."
        raise ValueError(msg)
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
        batches = iter_tiles(
            pyramid.levels[field.level],
            centers[np.concatenate([part.rows for part in todo])],
            field,
            chunk=pyramid.chunks[field.level],
            colours=pyramid.colours,
            batch_size=batch_size,
            num_workers=num_workers,
        )
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
