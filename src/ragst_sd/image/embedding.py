"""The image whose tiles are embedded, and their fields of view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ragst_sd.image.colours import Colours, thinned
from ragst_sd.image.frames import FieldOfView, LevelGrid, plan_field
from ragst_sd.image.tiles import iter_tiles, padded_fraction, window_starts


@dataclass(frozen=True)
class Pyramid:
    """Pixels of an image, finest level first."""

    levels: tuple[Any, ...]
    """Arrays (c, y, x) that slice and turn into numpy."""
    chunks: tuple[tuple[int, int], ...]
    """Storage chunk (height, width) of each level."""
    colours: Colours = field(default_factory=Colours)
    """What its numbers mean."""
    grids: tuple[LevelGrid, ...] = ()
    """Where the pixels of each level lie; left out, all levels cover the same."""

    def __post_init__(self) -> None:
        if not self.grids:
            height, width = self.shapes[0] if self.levels else (0, 0)
            object.__setattr__(self, "grids", tuple(LevelGrid((width / w, height / h)) for h, w in self.shapes))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each level."""
        return [(int(level.shape[1]), int(level.shape[2])) for level in self.levels]

    def overview(self, edge_px: int) -> np.ndarray:
        """uint8 RGB (3, h, w) of at most `edge_px`: the finest level that is so small, or a thinned-out larger one."""
        fitting = [k for k, shape in enumerate(self.shapes) if max(shape) <= edge_px]
        return self.colours.to_rgb(thinned(self.levels[fitting[0] if fitting else -1], edge_px))

    def inside(self, centers: np.ndarray) -> np.ndarray:
        """Which (n, 2) centres (x, y), in level-0 pixels, lie on the image."""
        height, width = self.shapes[0]
        return (centers[:, 0] >= 0) & (centers[:, 0] < width) & (centers[:, 1] >= 0) & (centers[:, 1] < height)

    def tiles(
        self, centers: np.ndarray, field: FieldOfView, **reading: int
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Tiles around centres, as :func:`ragst_sd.image.tiles.iter_tiles` reads them."""
        level, chunk = self.levels[field.level], self.chunks[field.level]
        return iter_tiles(level, centers, field, chunk=chunk, colours=self.colours, **reading)


def plan_fields(
    pyramid: Pyramid, *, tile_px: int, mpp: float | None, image_mpp: float | None, context: Sequence[float]
) -> list[FieldOfView]:
    """A field of view for each multiple of the tile in `context`, planned by `ragst_sd.image.frames.plan_field`."""
    return [
        plan_field(pyramid.grids, tile_px=tile_px, mpp=mpp, image_mpp=image_mpp, multiple=multiple)
        for multiple in context
    ]


def tiles_at(
    pyramid: Pyramid, centers: np.ndarray, tile_px: int, *, mpp: float, image_mpp: float | None, edge: int | None = None
) -> np.ndarray:
    """(n, edge, edge, 3) uint8 pictures of what tiles cover; white where a centre is off the image.

    A tile has `tile_px` pixels of `mpp`, or of the image where that is NaN. Its picture has `edge` pixels, which cover
    the same tissue: fewer are larger.
    """
    edge = tile_px if edge is None else edge
    larger = tile_px / edge
    if np.isnan(mpp):
        (field,) = plan_fields(pyramid, tile_px=edge, mpp=None, image_mpp=None, context=(larger,))
    else:
        (field,) = plan_fields(pyramid, tile_px=edge, mpp=mpp * larger, image_mpp=image_mpp, context=(1.0,))
    out = np.full((len(centers), edge, edge, 3), 255, dtype=np.uint8)
    inside = np.flatnonzero(pyramid.inside(centers))
    for index, tiles in pyramid.tiles(centers[inside], field, batch_size=256):
        out[inside[index]] = tiles.permute(0, 2, 3, 1).numpy()
    return out


def tile_padding(pyramid: Pyramid, centers: np.ndarray, field: FieldOfView) -> np.ndarray:
    """Share of each tile that lies outside the image; 1 where the centre does."""
    height, width = pyramid.shapes[field.level]
    inside, fraction = pyramid.inside(centers), np.ones(len(centers))
    fraction[inside] = padded_fraction(window_starts(centers[inside], field), field.window_px, height, width)
    return fraction
