"""The pitch of an array of spots."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

_LATTICE_NEIGHBORS = 4
# Median deviation of the distances from their median. Spots of arrays, placed by hand, reach 0.05; cells start at 0.14.
_ARRAY_SPREAD = 0.12


def spot_pitch(xy: np.ndarray) -> float:
    """Distance between neighbouring spots: the median over the four nearest of each.

    The nearest alone would be too short, as the least of several jittered distances.

    Raises
    ------
    ValueError
        If there are fewer than two distinct (x, y) centres.
    """
    return float(np.median(_distances(xy)))


def array_pitch(xy: np.ndarray, what: str) -> float:
    """The pitch of spots whose distance in microns is known, because they lie on an array.

    Raises
    ------
    ValueError
        If there are fewer than two distinct (x, y) centres, or no regular distance between them, as between cells.
    """
    distances = _distances(xy)
    pitch = float(np.median(distances))
    spread = float(np.median(np.abs(distances - pitch))) / pitch
    if spread > _ARRAY_SPREAD:
        raise ValueError(
            f"{what} do not lie on an array: distances between neighbours differ by {spread:.0%} of their median "
            f"({_ARRAY_SPREAD:.0%} at most). `um_between_centers` is for spots and bins. For cells give the microns "
            "per pixel, or name the spots or bins of the same image."
        )
    return pitch


def _distances(xy: np.ndarray) -> np.ndarray:
    points = np.unique(xy, axis=0)
    if len(points) < 2:
        raise ValueError(
            f"The spot pitch needs at least two distinct centres, found {len(points)}. Give the resolution instead."
        )
    distances, _ = KDTree(points).query(points, k=min(_LATTICE_NEIGHBORS + 1, len(points)))
    return distances[:, 1:]
