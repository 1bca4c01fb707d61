"""Frames: affines between elements, microns per pixel, and the pyramid level that suits a field of view.

Coordinates follow the convention of raster images: pixel ``i`` covers ``[i, i + 1)``, its centre lies at ``i + 0.5``.
Affines are 3 x 3 matrices that act on ``(x, y, 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# H0 / Hk of a pyramid is rarely a whole number (odd heights), so a level may miss its nominal factor by a little.
_LEVEL_TOLERANCE = 1.01
_MAX_ANISOTROPY = 0.01


class LevelGrid(NamedTuple):
    """Where the pixels of a pyramid level lie, in pixels of the finest level."""

    scale: tuple[float, float]
    """Width and height of a pixel."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Where (x, y) the first pixel begins."""

    @property
    def is_square(self) -> bool:
        """Whether a square window on the level is a square of the image."""
        return abs(self.scale[0] - self.scale[1]) <= _MAX_ANISOTROPY * max(self.scale)


@dataclass(frozen=True)
class FieldOfView:
    """A square field of view, and where in the pyramid to read it."""

    level: int
    """Index of the pyramid level, 0 is the finest."""
    grid: LevelGrid
    """Where the pixels of that level lie."""
    window_px: int
    """Edge of the window to read, in pixels of that level."""
    tile_px: int
    """Edge of the tile that comes out."""
    upsampling: float
    """Pixels of the tile per pixel of the finest level; above 1 the tile is enlarged."""


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move (n, 2) points by a 3 x 3 affine."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def similarity_scale(matrix: np.ndarray) -> float:
    """Length of one unit after the affine, for affines made of scale, rotation and flip.

    Parameters
    ----------
    matrix
        3 x 3 affine on (x, y, 1).

    Returns
    -------
    The common scale of both axes.

    Raises
    ------
    ValueError
        If the affine shears, is singular, or scales its axes differently by more than 1 %: a square tile on the image
        would then not be a square of tissue.
    """
    linear = np.asarray(matrix, dtype=float)[:2, :2]
    scale_x, scale_y = np.linalg.norm(linear, axis=0)
    apart, skew = abs(scale_x - scale_y), abs(linear[:, 0] @ linear[:, 1])
    is_square = scale_x > 0 and apart <= _MAX_ANISOTROPY * max(scale_x, scale_y)
    if not (is_square and skew <= _MAX_ANISOTROPY * scale_x * scale_y):
        raise ValueError(
            f"The transformation between shapes and image, {linear.tolist()}, scales x by {scale_x:.5g} and y by "
            f"{scale_y:.5g}, or shears: a square tile would not be square on the tissue. Scales that differ by "
            f"{_MAX_ANISOTROPY:.0%} at most, rotation, flip and translation are supported. Resample the image to "
            "square pixels, or correct the transformation with `spatialdata.transformations.set_transformation`."
        )
    return float(np.sqrt(scale_x * scale_y))


def plan_field(
    grids: Sequence[LevelGrid], *, tile_px: int, mpp: float | None, image_mpp: float | None, multiple: float
) -> FieldOfView:
    """Choose the pyramid level and window for a field of view.

    The tile covers ``tile_px * mpp * multiple`` microns. It is read from the coarsest level that is still at least as
    fine as the tile, so that nothing is read that resampling would throw away. Levels that shrink one axis more
    than the other are passed over.

    Parameters
    ----------
    grids
        Where the pixels of each pyramid level lie, finest first.
    tile_px
        Edge of the tile in pixels.
    mpp
        Microns per pixel of the tile; `None` means the image's own pixels.
    image_mpp
        Microns per pixel of the finest level; needed unless `mpp` is `None`.
    multiple
        Field of view as a multiple of the tile.

    Raises
    ------
    ValueError
        If `mpp` is given and `image_mpp` is not.
    """
    if mpp is not None and image_mpp is None:
        raise ValueError("`mpp` needs the microns per pixel of the image.")
    # Width of a pixel of the tile, in pixels of the finest level.
    width = multiple if mpp is None or image_mpp is None else mpp / image_mpp * multiple
    coarsest = width * _LEVEL_TOLERANCE
    fitting = [k for k, grid in enumerate(grids) if grid.is_square and max(grid.scale) <= coarsest]
    level = max(fitting, key=lambda k: grids[k].scale) if fitting else 0
    window = max(1, round(tile_px * width / float(np.mean(grids[level].scale))))
    return FieldOfView(level=level, grid=grids[level], window_px=window, tile_px=tile_px, upsampling=1.0 / width)
