"""Metrics of predicted responses, named as in cell-eval where it has them."""

from __future__ import annotations

import numpy as np

from ragst_sd.reference.responses import row_correlation

DISCRIMINATION = ("discrimination_score_l1", "discrimination_score_l2", "discrimination_score_cosine")
OVERLAPS = tuple(f"{kind}_at_{k}" for kind in ("overlap", "precision") for k in ("N", "50", "100"))
FALSE_DISCOVERY_RATE = 0.05


def mean_metrics(
    predicted: np.ndarray,
    measured: np.ndarray,
    predicted_delta: np.ndarray,
    measured_delta: np.ndarray,
) -> dict[str, np.ndarray]:
    """Errors of mean profiles and of mean responses, and the correlation of responses, one value per line of (n, g) arrays."""
    return {
        "pearson_delta": row_correlation(predicted_delta, measured_delta),
        "mae": np.abs(predicted - measured).mean(axis=1),
        "mse": ((predicted - measured) ** 2).mean(axis=1),
        "mae_delta": np.abs(predicted_delta - measured_delta).mean(axis=1),
        "mse_delta": ((predicted_delta - measured_delta) ** 2).mean(axis=1),
    }


def discrimination_score(
    predicted: np.ndarray, measured: np.ndarray, own: np.ndarray, excluded: list[np.ndarray], metric: str
) -> np.ndarray:
    """One minus the share of measured responses that are nearer to a prediction than its own.

    Parameters
    ----------
    predicted
        (q, g) predicted responses.
    measured
        (m, g) measured responses of all perturbations of the context.
    own
        (q,) line of `measured` that each prediction is of.
    excluded
        For each prediction the genes to leave out: the perturbed ones.
    metric
        `"l1"`, `"l2"` or `"cosine"`.
    """
    out = np.empty(len(predicted))
    for i, one in enumerate(predicted):
        kept = np.setdiff1d(np.arange(measured.shape[1]), excluded[i])
        distance = _distances(one[kept], measured[:, kept], metric)
        # Ties count half: a prediction that is as far from all of them is in the middle, wherever its own one stands.
        nearer = (distance < distance[own[i]]).sum() + 0.5 * ((distance == distance[own[i]]).sum() - 1)
        out[i] = 1 - nearer / len(measured)
    return out


def _distances(one: np.ndarray, others: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        scale = np.linalg.norm(others, axis=1) * np.linalg.norm(one)
        return 1 - np.divide(others @ one, scale, out=np.zeros(len(others)), where=scale > 0)
    return np.linalg.norm(others - one, ord=int(metric[1]), axis=1)


def differential_expression(cells: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means and false discovery rate of each gene, by the rank-sum test of Mann and Whitney."""
    from scipy.stats import false_discovery_control, mannwhitneyu

    varies = np.ptp(np.concatenate([cells, controls]), axis=0) > 0
    p = np.ones(cells.shape[1])
    if varies.any():
        p[varies] = mannwhitneyu(cells[:, varies], controls[:, varies], axis=0, method="asymptotic").pvalue
    return cells.mean(axis=0) - controls.mean(axis=0), false_discovery_control(p)


def overlap(predicted: tuple[np.ndarray, np.ndarray], measured: tuple[np.ndarray, np.ndarray], name: str) -> float:
    """Share of differentially expressed genes found in both.

    Genes with a false discovery rate under 5 % are ranked by the absolute difference of means. `overlap_at_k` asks how
    many of the k first measured ones are among the k first predicted ones; `precision_at_k` the other way round. k is at
    most the number of measured (overlap) or predicted (precision) genes, and all of them for N.
    """
    kind, _, k = name.partition("_at_")
    ranked = [np.flatnonzero(fdr < FALSE_DISCOVERY_RATE) for _, fdr in (measured, predicted)]
    ranked = [
        genes[np.argsort(-np.abs(difference[genes]), kind="stable")]
        for genes, (difference, _) in zip(ranked, (measured, predicted), strict=True)
    ]
    available = len(ranked[0] if kind == "overlap" else ranked[1])
    depth = available if k == "N" else min(int(k), available)
    return len(np.intersect1d(ranked[0][:depth], ranked[1][:depth])) / depth if depth else 0.0


def direction_match(predicted: np.ndarray, measured: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of the measured differentially expressed genes whose predicted difference has the same sign; NaN without any."""
    difference, fdr = measured
    significant = fdr < FALSE_DISCOVERY_RATE
    if not significant.any():
        return float("nan")
    return float((np.sign(predicted[significant]) == np.sign(difference[significant])).mean())


def ceiling(reliability: np.ndarray) -> np.ndarray:
    r"""Largest correlation with a response of which two halves correlate by r: :math:`\sqrt{2 r / (1 + r)}`.

    The response of all cells has the reliability 2 r / (1 + r) (Spearman and Brown); the response without noise
    correlates with it by the root of that.
    """
    positive = np.maximum(reliability, 0)
    return np.sqrt(2 * positive / (1 + positive))
