"""Vectors of tiles, averaged over fields of view around other places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK = 4096


def pool_tiles(
    vectors: np.ndarray, tiles: np.ndarray, places: np.ndarray, *, edge: float, context: Sequence[float]
) -> np.ndarray:
    """Mean of the tiles in each field of view around each place, weighted by area.

    A tile stands for the square of edge `h` around its centre, the smaller of its own edge and the distance to the next
    tile, so that overlapping tiles do not count twice and a tile that lies on a place is taken alone. Field of view `f`
    is the square of edge `(f - 1) * edge + h`: what tiles within it have seen is `f * edge` wide.

    Parameters
    ----------
    vectors
        (m, d) float32.
    tiles
        (m, 2) their centres.
    places
        (n, 2) in the same unit.
    edge
        Of a tile.
    context
        Fields of view as multiples of the tile, 1 or larger.

    Returns
    -------
    (n, d * fields) float32; NaN where no tile covers the place.
    """
    from scipy.sparse import csr_array
    from scipy.spatial import KDTree

    tree = KDTree(tiles)
    # In this metric "within half an edge" is the tile itself.
    distance, nearest = tree.query(places, p=np.inf)
    spacing = tree.query(tiles, k=2, p=np.inf)[0][:, -1] if len(tiles) > 1 else np.array([np.inf])
    spacing = spacing[spacing > 0]
    h = min(edge, float(np.median(spacing))) if len(spacing) else edge
    pooled = np.full((len(places), len(context) * vectors.shape[1]), np.nan, np.float32)
    covered = np.flatnonzero(distance <= edge / 2 + 1e-6 * edge)
    for rows in np.split(covered, range(_BLOCK, len(covered), _BLOCK)):
        around, parts = KDTree(places[rows]), []
        for field in context:
            width = (field - 1) * edge + h
            pairs = around.sparse_distance_matrix(tree, (width + h) / 2, p=np.inf, output_type="ndarray")
            i, k = pairs["i"], pairs["j"]
            offset = np.abs(places[rows[i]] - tiles[k])
            area = np.clip((width + h) / 2 - offset, 0, h).prod(axis=1) / h**2
            total = np.bincount(i, area, minlength=len(rows))
            # Between overlapping tiles at the rim, where none of these squares reaches.
            uncovered = np.flatnonzero(total < 1e-6)
            i, k = np.append(i, uncovered), np.append(k, nearest[rows[uncovered]])
            weights = np.append(area / np.maximum(total[pairs["i"]], 1e-6), np.ones(len(uncovered), np.float32))
            parts.append(csr_array((weights.astype(np.float32), (i, k)), shape=(len(rows), len(tiles))) @ vectors)
        pooled[rows] = np.concatenate(parts, axis=1)
    return pooled
