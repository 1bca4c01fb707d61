"""How spots lie: the pitch of their array, whether two lists of centres are in one order, and whose spots they are."""

from __future__ import annotations

import logging

import numpy as np
from anndata import AnnData
from scipy.spatial import KDTree

from ragst_sd import _keys

logger = logging.getLogger(__name__)

_LATTICE_NEIGHBORS = 4
_FEWEST = 10
# Share of the variance of centres that an affine map from the same centres in other units leaves; another order leaves
# nearly all of it, alignments that bend the tissue little.
_OTHER_ORDER = 0.1
# Share of spots whose nearest neighbour is of another donor. On slides of several donors it is next to nothing.
_AMONG_OTHERS = 0.1
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


def in_other_order(xy: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lists of centres, in any units and frames, cannot be of the same spots in the same order."""
    known = np.isfinite(xy).all(axis=1) & np.isfinite(other).all(axis=1)
    xy, other = xy[known], other[known]
    # Positions that nobody filled in are all alike.
    if len(xy) < _FEWEST or not (variance := xy.var(axis=0).sum()) or not np.ptp(other, axis=0).any():
        return False
    from_other = np.column_stack([other - other.mean(axis=0), np.ones(len(other))])
    left = xy - from_other @ np.linalg.lstsq(from_other, xy, rcond=None)[0]
    return bool(left.var(axis=0).sum() > _OTHER_ORDER * variance)


def warn_of_other_order(table: AnnData, xy: np.ndarray, where: str) -> None:
    """Warn if the positions of a table and the shapes that it annotates do not agree on which row is which spot."""
    places = np.asarray(table.obsm[_keys.SPATIAL]) if _keys.SPATIAL in table.obsm else np.zeros((0, 2))
    if len(places) == len(xy) and in_other_order(xy, places[:, :2].astype(float)):
        logger.warning(
            "%s: by `obsm[%r]` the spots lie elsewhere than the shapes that `obs` names for them. If `obs` alone was "
            "sorted or replaced, the expression is now that of other spots: read the table again, and reorder the "
            "whole of it (`table[order].copy()`).",
            where,
            _keys.SPATIAL,
        )


def share_among_others(xy: np.ndarray, donors: np.ndarray) -> float:
    """Share of spots whose nearest neighbour is of another donor.

    0 where positions are unknown, or where no more spots are so than on a slide that holds several donors.
    """
    known = np.isfinite(xy).all(axis=1)
    xy, donors = xy[known], donors[known]
    if len(xy) < _FEWEST or len(set(donors)) < 2:
        return 0.0
    nearest = KDTree(xy).query(xy, k=2)[1][:, 1]
    share = float((donors != donors[nearest]).mean())
    return share if share > _AMONG_OTHERS else 0.0
