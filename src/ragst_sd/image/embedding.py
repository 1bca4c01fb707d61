"""Embed tiles around points of an image at one or several fields of view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.image.frames import FieldOfView, plan_field
from ragst_sd.image.tiles import iter_tiles, padded_fraction, window_starts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


@dataclass(frozen=True)
class Pyramid:
    """Pixels of an image, finest level first."""

    levels: tuple[Any, ...]
    """Arrays (c, y, x) that slice and turn into numpy."""
    chunks: tuple[tuple[int, int], ...]
    """Storage chunk (height, width) of each level."""
    value_max: float
    """Pixel value of full brightness."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each level."""
        return [(int(level.shape[1]), int(level.shape[2])) for level in self.levels]

    def inside(self, centers: np.ndarray) -> np.ndarray:
        """Which (n, 2) centres (x, y), in level-0 pixels, lie on the image."""
        height, width = self.shapes[0]
        return (centers[:, 0] >= 0) & (centers[:, 0] < width) & (centers[:, 1] >= 0) & (centers[:, 1] < height)


def plan_fields(
    pyramid: Pyramid, *, tile_px: int, mpp: float | None, image_mpp: float | None, context: Sequence[float]
) -> list[FieldOfView]:
    """One field of view per entry of `context` (see `ragst_sd.image.frames.plan_field`)."""
    return [
        plan_field(pyramid.shapes, tile_px=tile_px, mpp=mpp, image_mpp=image_mpp, multiple=multiple)
        for multiple in context
    ]


def tile_padding(pyramid: Pyramid, centers: np.ndarray, field: FieldOfView) -> np.ndarray:
    """Share of each tile that lies outside the image; 1 where the centre does."""
    height, width = pyramid.shapes[field.level]
    inside, fraction = pyramid.inside(centers), np.ones(len(centers))
    fraction[inside] = padded_fraction(window_starts(centers[inside], field), field.window_px, height, width)
    return fraction


def embed_centers(
    pyramid: Pyramid,
    centers: np.ndarray,
    fields: Sequence[FieldOfView],
    encoder: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    advance: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Embed the tiles around `centers`, fields of view side by side.

    Parameters
    ----------
    pyramid
        The image.
    centers
        (n, 2) centres (x, y) in level-0 pixels.
    fields
        Fields of view; their embeddings are concatenated in this order.
    encoder
        Maps a uint8 tensor (b, 3, h, w) to a tensor (b, d).
    batch_size
        Tiles encoded at once.
    num_workers
        Threads that read ahead.
    advance
        Called with the number of tiles done after each batch.

    Returns
    -------
    float32 (n, d * len(fields)); rows of centres that lie outside the image are NaN.

    Raises
    ------
    ValueError
        If the encoder returns NaN or infinite values.
    """
    inside = np.flatnonzero(pyramid.inside(centers))
    out: np.ndarray | None = None
    for position, field in enumerate(fields):
        batches = iter_tiles(
            pyramid.levels[field.level],
            centers[inside],
            field,
            chunk=pyramid.chunks[field.level],
            value_max=pyramid.value_max,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        for index, tiles in batches:
            values = encoder(tiles).numpy()
            if not np.isfinite(values).all():
                bad = int((~np.isfinite(values).all(axis=1)).sum())
                msg = (
                    f"The encoder returned NaN or infinite values for {bad} of {len(values)} tiles of a batch "
                    f"(field of view {position + 1} of {len(fields)}). Check its weights and `mean` and `std`, "
                    "or pass `amp=False` if reduced precision overflows."
                )
                raise ValueError(msg)
            width = values.shape[1]
            if out is None:
                out = np.full((len(centers), width * len(fields)), np.nan, dtype=np.float32)
            out[inside[index], position * width : (position + 1) * width] = values
            if advance is not None:
                advance(len(index))
    if out is None:
        msg = f"None of the {len(centers)} centres lies on the image."
        raise ValueError(msg)
    return out
