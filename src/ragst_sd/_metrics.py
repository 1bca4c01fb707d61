"""Metrics of one section, gene by gene, on (spots, genes) arrays; and scores averaged by held-out group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ragst_sd._validate import require_choice

# Ratios: one gene that hardly varies in the truth would outweigh all others in a mean.
_MEDIAN = ("variance_kept",)
# Genes whose values are compared at once: some arrays of them stay in the cache of a processor.
_BLOCK_GENES = 64


def varies(values: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Columns that vary by more than the rounding of their values; `spread` is the length of the centred ones."""
    if spread is None:
        spread = np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=0))
    largest = np.maximum(values.max(axis=0, initial=0.0), -values.min(axis=0, initial=0.0))
    return spread > 1e-6 * np.maximum(1.0, largest)


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation over spots; NaN where the truth does not vary, 0 where only the prediction does not."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    spread_a, spread_b = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    known = varies(truth, spread_b)
    both = known & varies(predicted, spread_a)
    out = np.divide((a * b).sum(axis=0), spread_a * spread_b, out=np.zeros(a.shape[1]), where=both)
    out[~known] = np.nan
    return out


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman correlation over spots, ties given their mean rank."""
    return pearson(rankdata(predicted, axis=0), rankdata(truth, axis=0))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root mean squared error over spots."""
    return np.sqrt(((predicted - truth) ** 2).mean(axis=0))


def mae(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute error over spots."""
    return np.asarray(np.abs(predicted - truth).mean(axis=0))


def variance_kept(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Variance of the prediction over the variance of the truth; NaN where the truth does not vary."""
    spread = truth.var(axis=0)
    return np.divide(predicted.var(axis=0), spread, out=np.full(len(spread), np.nan), where=varies(truth))


def finite_mean(values: Any, axis: int | None = None) -> Any:
    """Mean of the finite values, of all or along an axis; NaN where there are none."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    total, n = np.where(finite, values, 0.0).sum(axis=axis), finite.sum(axis=axis)
    return np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)[()]


def relative_spread(spread: np.ndarray) -> np.ndarray:
    """(spots,) how far (spots, genes) spreads lie over what is usual for the gene, mean over genes that have one."""
    usual = finite_mean(spread, axis=0)
    return finite_mean(spread / np.where(usual > 0, usual, np.nan), axis=1)


METRICS = {"pearson": pearson, "spearman": spearman, "rmse": rmse, "variance_kept": variance_kept, "mae": mae}
# What is given if nobody asks for anything.
DEFAULT_METRICS = ("pearson", "spearman", "rmse", "variance_kept")
# In the unit of the prediction; the smaller, the better.
ERRORS = ("rmse", "mae")


def score(
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray, expected: np.ndarray, finite: np.ndarray
) -> np.ndarray:
    """A metric of every gene over the spots that have a prediction of it; NaN below two spots."""
    complete = finite.all(axis=0)
    if len(values) > 1 and complete.all():
        return metric(values, expected)
    out = np.full(values.shape[1], np.nan)
    if len(values) > 1 and complete.any():
        out[complete] = metric(values[:, complete], expected[:, complete])
    for gene in np.flatnonzero(~complete & (finite.sum(axis=0) > 1)):
        rows = finite[:, gene]
        out[gene] = metric(values[rows, gene : gene + 1], expected[rows, gene : gene + 1])[0]
    return out


def by_genes(function: Callable[..., dict[str, np.ndarray]], *matrices: Any) -> dict[str, np.ndarray]:
    """Numbers of every gene, by name: `function` of some genes at a time of (spots, genes) matrices, also sparse ones.

    It is given float64 arrays in which the values of a gene lie beside each other. Memory is that of a few genes.
    """
    from ragst_sd.retrieval.threads import on_threads

    by_column = [matrix.tocsc() if hasattr(matrix, "tocsc") else matrix for matrix in matrices]

    def some(start: int) -> dict[str, np.ndarray]:
        parts = (matrix[:, start : start + _BLOCK_GENES] for matrix in by_column)
        return function(
            *(np.asarray(p.toarray() if hasattr(p, "toarray") else p, dtype=np.float64, order="F") for p in parts)
        )

    blocks = on_threads(some, range(0, matrices[0].shape[1], _BLOCK_GENES))
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


def score_genes(names: Iterable[str], values: Any, expected: Any) -> dict[str, np.ndarray]:
    """Metrics of every gene, by name, over the spots that have a prediction of it."""
    chosen = {name: METRICS[name] for name in names}

    def of_genes(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        finite = np.isfinite(predicted)
        return {name: score(metric, predicted, truth, finite) for name, metric in chosen.items()}

    return by_genes(of_genes, values, expected)


def group_means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One number per unit, method (number of training donors) and held-out group: over genes, then over its sections.

    Genes are averaged (`variance_kept`: their median), without those where the metric is not defined.
    """
    require_choice(metric, list(dict.fromkeys(scores["metric"])), "metric")
    of_metric = scores[scores["metric"] == metric]
    keys = ["unit", "method", *["n_donors"] * ("n_donors" in scores), "fold"]
    sections = of_metric.groupby([*keys, "sample"], sort=False)["value"]
    of_sections = sections.median() if metric in _MEDIAN else sections.mean()
    return of_sections.groupby(level=keys, sort=False).mean().reset_index()
