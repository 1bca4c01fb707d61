"""How far a query lies from the reference, on the scale of held-out rows of the reference itself."""

from __future__ import annotations

from typing import Any

import numpy as np

_QUANTILES = 1001
_CLIP = 10.0
# Share of held-out reference rows that may be called out of reference for their distance in phi-space alone.
FLAGGED = 0.02


def neighbours_to_compare(n_neighbors: int, eligible: np.ndarray, n_rows: int) -> np.ndarray:
    """(n,) neighbours to take where only some of all rows are eligible: the same share of them.

    The nearest 50 of half as many rows lie farther away than the nearest 50 of all; the nearest 25 do not.
    """
    return np.maximum(1, np.round(n_neighbors * np.asarray(eligible) / max(1, n_rows)).astype(np.int64))


def neighbourhood_distance(distances: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean distance of each query to its first `count` candidates (NaN ones left out); NaN without candidates."""
    present = ~np.isnan(distances) & (np.arange(distances.shape[1]) < count[:, None])
    found = present.sum(axis=1)
    total = np.where(present, distances, 0.0).sum(axis=1)
    return np.divide(total, found, out=np.full(len(distances), np.nan), where=found > 0)


def calibrate_distances(held_out: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Quantiles of the distances of held-out rows, every group counting alike, and the threshold for rows out of reference."""
    finite = np.isfinite(held_out)
    if not finite.any():
        return {"distance_quantiles": np.full(_QUANTILES, np.nan), "distance_threshold": np.float64(np.nan)}
    values, codes = held_out[finite], np.unique(groups[finite], axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(values, kind="stable")
    weights = (1 / np.bincount(codes))[codes][order]
    # The middle of each row's share; the ends are the smallest and largest distance.
    place = (np.cumsum(weights) - weights / 2) / weights.sum()
    quantiles = np.interp(np.linspace(0, 1, _QUANTILES), place, values[order])
    return {
        "distance_quantiles": quantiles,
        "distance_threshold": np.float64(np.interp(1 - FLAGGED, place, values[order])),
    }


def distance_percentile(distance: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Percentile (0 to 100) of each distance among the held-out rows of the reference; NaN stays NaN."""
    percentile = np.searchsorted(quantiles, distance, side="right") / len(quantiles) * 100
    return np.where(np.isfinite(distance) & np.isfinite(quantiles).all(), percentile, np.nan)


def section_distance(mean: np.ndarray, means: np.ndarray, stds: np.ndarray) -> float:
    r"""How far a whole section lies from others, before its own mean and spread are taken out.

    .. math:: \sqrt{\mathrm{mean}_f\; \min(|\mu_f - \bar\mu_f| / s_f, 10)^2}

    with the section's mean :math:`\mu`, the mean :math:`\bar\mu` of the other sections' means, and their pooled
    spread within sections s, over features f that vary.
    """
    spread = np.sqrt((stds**2).mean(axis=0))
    varies = spread > 1e-9
    shift = np.abs(mean - means.mean(axis=0))[varies] / spread[varies]
    return float(np.sqrt((np.minimum(shift, _CLIP) ** 2).mean())) if varies.any() else float("nan")


def largest_section_distance(means: np.ndarray, stds: np.ndarray) -> float:
    """The largest distance of a section of the reference from its other sections; NaN with fewer than two."""
    if len(means) < 2:
        return float("nan")
    others = [np.arange(len(means)) != i for i in range(len(means))]
    return max(section_distance(means[i], means[rest], stds[rest]) for i, rest in enumerate(others))
