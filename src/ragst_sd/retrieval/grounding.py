"""How far a query lies from the reference, on the scale of held-out rows of the reference itself."""

from __future__ import annotations

import numpy as np

_QUANTILES = 1001
_CLIP = 10.0
# Share of held-out reference rows that may be called out of reference.
FLAGGED = 0.05


def neighbourhood_distance(distances: np.ndarray) -> np.ndarray:
    """Mean distance of each query to its candidates (NaN ones left out); NaN without candidates."""
    present = ~np.isnan(distances)
    count = present.sum(axis=1)
    total = np.where(present, distances, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(distances), np.nan), where=count > 0)


def calibrate_distances(held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles of the distances of held-out rows, and the threshold that calls 5 % of them out of reference."""
    finite = held_out[np.isfinite(held_out)]
    if not len(finite):
        return {"distance_quantiles": np.full(_QUANTILES, np.nan), "distance_threshold": np.float64(np.nan)}
    quantiles = np.quantile(finite, np.linspace(0, 1, _QUANTILES))
    return {
        "distance_quantiles": quantiles,
        "distance_threshold": np.float64(np.quantile(finite, 1 - FLAGGED)),
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
