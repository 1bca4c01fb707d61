"""The pitch of an array of spots."""

from __future__ import annotations

import numpy as np

_LATTICE_NEIGHBORS = 4


def spot_pitch(xy: np.ndarray) -> float:
    """Distance between neighbouring spots: the median over the four nearest of each.

    The nearest alone would be too short, as the least of several jittered distances.

    Raises
    ------
    ValueError
        If there are fewer than two distinct (x, y) centres.
    """
    from scipy.spatial import KDTree

    points = np.unique(xy, axis=0)
    if len(points) < 2:
        msg = f"The spot pitch needs at least two distinct centres, found {len(points)}. Give the resolution instead."
        raise ValueError(msg)
    distances, _ = KDTree(points).query(points, k=min(_LATTICE_NEIGHBORS + 1, len(points)))
    return float(np.median(distances[:, 1:]))
