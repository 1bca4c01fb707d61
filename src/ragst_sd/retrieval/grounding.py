"""How far a query lies from the reference, on the scale of held-out rows of the reference itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ragst_sd.retrieval import appearance
from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.evidence import effective_n
from ragst_sd.retrieval.search import search

_QUANTILES = 1001
_CLIP = 10.0
# Share of held-out reference rows that may be called out of reference for their distance in phi-space alone.
FLAGGED = 0.02
# Above this share of spots that look unlike every section of the reference, the section as a whole is called unlike.
MOST_UNLIKE = 0.5


class Grounding(NamedTuple):
    """How well grounded each query is, (n,) each."""

    effective_n: np.ndarray
    """Effective number of cited rows; NaN where none is cited."""
    n_donors: np.ndarray
    """Donors of the rows that the prediction rests on."""
    distance: np.ndarray
    """Mean distance in phi-space to the nearest rows, as many as in the calibration of distances."""
    distance_percentile: np.ndarray
    """Percentile of it among the held-out rows of the reference."""
    out_of_reference: np.ndarray
    """Whether a distance is larger than what the fit calibrated."""
    appearance_distance: Any
    """Distance of the raw embedding, where given, to the nearest section over the calibrated threshold."""


def grounding_of(
    bank: Bank,
    selection: Selection,
    *,
    used: np.ndarray,
    distance: np.ndarray,
    eligibility: Eligibility,
    raw: np.ndarray | None = None,
) -> Grounding:
    """How well grounded predictions are.

    Parameters
    ----------
    used
        (n, k) rows that the prediction rests on, -1 for none; for methods that cite no rows the nearest ones.
    distance
        (n,) of :func:`distance_in_phi`.
    raw
        (n, d) embeddings as they were made; without them only distances in phi-space are judged.
    """
    fit, appearance_distance = bank.fit, None
    threshold = float(fit.distance_threshold)
    out_of_reference = np.isfinite(threshold) & (distance > threshold)
    if raw is not None:
        known, pattern = fit.appearance, eligibility.patterns()[1]
        may_use = (eligibility.count_by(bank.sections) > 0)[pattern]
        apart = appearance.appearance_distance(raw, np.asarray(known["means"]), known, may_use)
        appearance_distance = apart / float(known["threshold"])
        out_of_reference = out_of_reference | (appearance_distance > 1)
    return Grounding(
        effective_n=effective_n(selection.weights),
        n_donors=_n_distinct(used, np.asarray(bank.donors)),
        distance=distance,
        distance_percentile=distance_percentile(distance, np.asarray(fit.distance_quantiles)),
        out_of_reference=out_of_reference,
        appearance_distance=appearance_distance,
    )


def _n_distinct(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number of distinct groups among the rows of each query, -1 left out."""
    codes = np.sort(np.where(rows >= 0, groups[np.maximum(rows, 0)], -1), axis=1)
    new = np.diff(codes, axis=1, prepend=-1) != 0
    return (new & (codes >= 0)).sum(axis=1)


def distance_in_phi(fit: Any, nearby: np.ndarray, eligibility: Eligibility) -> np.ndarray:
    """(n,) mean of (n, k) distances to the nearest rows, over as many as in the calibration, however many are cited."""
    # Rows that `where` rejects are no smaller choice of the same tissue, but another reference.
    n_allowed = int(eligibility.allowed.sum())
    return neighbourhood_distance(nearby, neighbours_to_compare(fit.n_neighbors, eligibility.count(), n_allowed))


def calibrate_grounding(
    queries: np.ndarray, key: np.ndarray, groups: np.ndarray, n_neighbors: int, metric: str
) -> dict[str, Any]:
    """The calibration of distances: how far rows, as held-out queries, lie from rows of other groups."""
    eligibility = Eligibility(groups, groups, np.ones(len(key), dtype=bool))
    count = neighbours_to_compare(n_neighbors, eligibility.count(), len(key))
    nearby = search(queries, key, int(count.max()), eligibility=eligibility, metric=metric)
    return calibrate_distances(neighbourhood_distance(nearby.distances, count), groups)


def neighbours_to_compare(n_neighbors: int, eligible: np.ndarray, n_rows: int) -> np.ndarray:
    """(n,) neighbours to take where only some of all rows are eligible: the same share of them.

    The nearest 50 of half as many rows lie farther away than the nearest 50 of all; the nearest 25 do not.
    """
    return np.maximum(1, np.round(n_neighbors * np.asarray(eligible) / max(1, n_rows)).astype(np.int64))


def neighbourhood_distance(distances: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean distance of each query to its first `count` candidates (NaN ones left out); NaN without candidates."""
    present = ~np.isnan(distances) & (np.arange(distances.shape[1]) < count[:, None])
    n_present = present.sum(axis=1)
    total = np.where(present, distances, 0.0).sum(axis=1)
    return np.divide(total, n_present, out=np.full(len(distances), np.nan), where=n_present > 0)


def calibrate_distances(held_out: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Quantiles of held-out rows' distances, each group counting alike, and the threshold for rows out of reference."""
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


def unlike_share(appearance_distance: np.ndarray) -> float:
    """Share of spots that look unlike every section of the reference; NaN where that could not be told."""
    known = np.isfinite(appearance_distance)
    return float((appearance_distance[known] > 1).mean()) if known.any() else float("nan")


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
