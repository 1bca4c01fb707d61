"""Conformal intervals: scores of held-out spots, and the quantile of them that a new group stays below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNITS = ("donor", "section", "spot")


@dataclass(frozen=True)
class IntervalRule:
    """How limits around predictions at one level are made, and what the predicted table says about them."""

    level: float
    unit: str
    levels: np.ndarray
    units: np.ndarray
    quantiles: np.ndarray
    """(genes, L) of the scores at each of the levels."""
    quantile: np.ndarray
    """(genes,) at this level."""
    floor: np.ndarray
    """(genes,) smallest spread that is believed: see :func:`interval_scale`."""
    far: float
    """Distance from which on intervals widen: see :func:`interval_scale`."""


def interval_scale(disagreement: np.ndarray, floor: np.ndarray, distance: np.ndarray, far: float) -> np.ndarray:
    r"""What a score is measured in, and half an interval is a multiple of.

    .. math:: \sigma_{ig} = \sqrt{s_{ig}^2 + f_g^2}\; \max(1, d_i / d_0)

    Parameters
    ----------
    disagreement
        (n, g) spread s of what the cited rows bring.
    floor
        (g,) smallest spread f that is believed: rows that agree by chance are no certainty.
    distance
        (n,) distance d to the nearest rows.
    far
        Distance :math:`d_0` beyond which a spot is further away than held-out rows are; without one (NaN) no interval
        widens.

    Returns
    -------
    float32 (n, g).
    """
    stretch = np.maximum(1.0, distance / far) if np.isfinite(far) and far > 0 else np.ones(len(distance))
    spread = np.sqrt(np.square(disagreement, dtype=np.float32) + np.square(floor).astype(np.float32))
    return (spread * stretch[:, None].astype(np.float32)).astype(np.float32, copy=False)


def rank_of(n: int | np.ndarray, level: float) -> np.ndarray:
    """Rank, among n exchangeable scores, of the one that a further score stays below with probability `level`."""
    # 10 x 0.9 is 9 and not a rounding error more.
    return np.ceil(np.asarray((np.asarray(n) + 1) * level) - 1e-9).astype(np.int64)


def attainable(n: int | np.ndarray, level: float) -> np.ndarray:
    """Whether n exchangeable scores are enough for a level: n is at least ceil(1 / (1 - level)) - 1."""
    return rank_of(n, level) <= n


def spot_threshold(scores: np.ndarray, level: float) -> np.ndarray:
    """(g,) conformal quantile of (n, g) scores, all spots exchangeable; NaN scores are left out, too few give NaN."""
    ordered = np.sort(scores, axis=0)
    count = np.isfinite(ordered).sum(axis=0)
    rank = rank_of(count, level)
    columns = np.arange(scores.shape[1])
    picked = ordered[np.clip(rank - 1, 0, len(ordered) - 1), columns]
    return np.where((count > 0) & attainable(count, level), picked, np.nan)


def group_threshold(scores: np.ndarray, groups: np.ndarray, level: float) -> np.ndarray:
    r"""Quantile of scores that spots of a new group stay below, if groups are exchangeable and spots in them are not.

    Draw one spot from each of the K groups. The r-th smallest of their scores, r = ceil((K + 1) level), is above the
    score of a spot of a further group with probability r / (K + 1), at least `level`, exactly and for any K that allows
    it (Lee, Barber & Willett 2023; Dunn, Wasserman & Ramdas 2022). To depend on no draw, the threshold is one quantile
    of that r-th smallest score over all draws, in closed form: the smallest t with

    .. math:: P\Big(\sum_k B_k \ge r\Big) \ge q, \qquad B_k \sim \mathrm{Bernoulli}(F_k(t)),
              \qquad q = P(\mathrm{Binomial}(K, \mathit{level}) \ge r)

    with the share :math:`F_k(t)` of the scores of group k that are at most t. This q gives `level` where groups do not
    differ (then t is the quantile of all scores), and r / (K + 1) where they differ by so much that spots within a
    group are one; the median over draws, q = 1/2, gives more than was asked for (0.926 for 0.9 and nine groups that do
    not differ). For any groups between, Markov's inequality leaves a coverage of 1 - (1 - r / (K + 1)) / q.

    Parameters
    ----------
    scores
        (n, g); NaN ones are left out, and groups without any score of a gene with them.
    groups
        (n,) group of each row.
    level
        Wanted coverage.

    Returns
    -------
    (g,); NaN for genes that too few groups scored (see :func:`attainable`).
    """
    from scipy.stats import binom

    codes = np.unique(groups, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    scores = scores[order]
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    size = np.add.reduceat(np.isfinite(scores), starts, axis=0, dtype=np.int64)
    present = size > 0
    n_groups = present.sum(axis=0)
    rank = rank_of(n_groups, level)
    wanted = binom.sf(rank - 1, n_groups, level)

    ordered = np.sort(scores, axis=0)
    columns = np.arange(scores.shape[1])
    low, high = np.zeros(scores.shape[1], dtype=np.int64), np.maximum(size.sum(axis=0) - 1, 0)
    while (low < high).any():
        middle = (low + high) // 2
        below = np.add.reduceat(scores <= ordered[middle, columns], starts, axis=0, dtype=np.int64)
        share = np.divide(below, size, out=np.zeros(size.shape), where=present)
        enough = _at_least(share, rank) >= wanted - 1e-12
        high = np.where(enough, middle, high)
        low = np.where(enough, low, np.minimum(middle + 1, high))
    return np.where((n_groups > 0) & attainable(n_groups, level), ordered[high, columns], np.nan)


def _at_least(probability: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(g,) probability that of K independent events, (K, g), at least `rank` happen."""
    k, g = probability.shape
    # counts[j] is the probability of j events so far; a group that cannot happen changes nothing.
    counts = np.zeros((k + 1, g))
    counts[0] = 1.0
    for happens in probability:
        counts[1:] = counts[1:] * (1 - happens) + counts[:-1] * happens
        counts[0] *= 1 - happens
    tail = np.cumsum(counts[::-1], axis=0)[::-1]
    return tail[np.clip(rank, 0, k), np.arange(g)]


def limits_around(
    rule: IntervalRule,
    prediction: np.ndarray,
    disagreement: np.ndarray,
    distance: np.ndarray,
    appearance_distance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, genes) float32 lower and upper limits around predictions.

    Parameters
    ----------
    distance, appearance_distance
        (n,) distance in phi-space, and that in appearance over its threshold.
    """
    scale = interval_scale(disagreement, rule.floor, distance, rule.far)
    # Tissue that looks unlike every section is no better known than tissue far away in phi-space.
    wider = np.maximum(1.0, np.nan_to_num(appearance_distance, nan=1.0))[:, None]
    half = rule.quantile * scale * wider.astype(np.float32)
    prediction = prediction.astype(np.float32)
    # Expression is not negative; a prediction may be.
    return np.maximum(prediction - half, np.minimum(prediction, 0)), prediction + half
