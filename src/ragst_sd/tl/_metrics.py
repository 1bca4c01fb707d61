"""Metrics of one section, gene by gene, on (spots, genes) arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def varies(values: np.ndarray) -> np.ndarray:
    """Columns that vary by more than the rounding of their values."""
    spread = np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=0))
    return spread > 1e-6 * np.maximum(1.0, np.abs(values).max(axis=0, initial=0.0))


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation over spots; NaN where the truth does not vary, 0 where only the prediction does not."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    spread_a, spread_b = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    known = varies(truth)
    out = np.divide((a * b).sum(axis=0), spread_a * spread_b, out=np.zeros(a.shape[1]), where=known & varies(predicted))
    out[~known] = np.nan
    return out


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman correlation over spots, ties given their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted, axis=0), rankdata(truth, axis=0))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root mean squared error over spots."""
    return np.sqrt(((predicted - truth) ** 2).mean(axis=0))


def variance_kept(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Variance of the prediction over the variance of the truth; NaN where the truth does not vary."""
    spread = truth.var(axis=0)
    return np.divide(predicted.var(axis=0), spread, out=np.full(len(spread), np.nan), where=varies(truth))


def finite_mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN if there are none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


METRICS = {"pearson": pearson, "spearman": spearman, "rmse": rmse, "variance_kept": variance_kept}


def score(
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray, expected: np.ndarray, finite: np.ndarray
) -> np.ndarray:
    """A metric of every gene over the spots that have a prediction of it; NaN below two spots."""
    out = np.full(values.shape[1], np.nan)
    complete = finite.all(axis=0)
    if len(values) > 1 and complete.any():
        out[complete] = metric(values[:, complete], expected[:, complete])
    for gene in np.flatnonzero(~complete & (finite.sum(axis=0) > 1)):
        rows = finite[:, gene]
        out[gene] = metric(values[rows, gene : gene + 1], expected[rows, gene : gene + 1])[0]
    return out
