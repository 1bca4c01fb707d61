"""Metrics of one section, gene by gene, on (spots, genes) arrays; and scores averaged by held-out group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._validate import require_choice

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

# Ratios: one gene that hardly varies in the truth would outweigh all others in a mean.
_MEDIAN = ("variance_kept",)


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


def group_means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One number per unit, method and held-out group: over genes, then over the sections of the group.

    Genes are averaged (`variance_kept`: their median), without those where the metric is not defined.
    """
    require_choice(metric, list(dict.fromkeys(scores["metric"])), "metric")
    own = scores[scores["metric"] == metric]
    keys = ["unit", "method", "fold"]
    sections = own.groupby([*keys, "sample"], sort=False)["value"]
    of_sections = sections.median() if metric in _MEDIAN else sections.mean()
    return of_sections.groupby(level=keys, sort=False).mean().reset_index()


def by_donor(scores: pd.DataFrame, metric: str = "pearson", *, baseline: str | None = None) -> pd.DataFrame:
    """Summary of a metric with held-out groups (donors) as the unit.

    Parameters
    ----------
    scores
        Made by :func:`ragst_sd.tl.cross_validate`.
    metric
        Metric to summarise; see `group_means`.
    baseline
        Method to compare with.

    Returns
    -------
    One line per unit and method: `mean` over groups, its standard error `se`, their number `n`, and with a baseline
    `difference`, the mean of the differences to it within groups, with the limits `low` and `high` of Student's
    t-interval at 95 % over groups. Below three groups there is no interval (NaN), below two no standard error.
    """
    import pandas as pd
    from scipy.stats import t

    means = group_means(scores, metric)
    if baseline is not None:
        require_choice(baseline, list(dict.fromkeys(means["method"])), "baseline")
    lines = []
    for (unit, method), own in means.groupby(["unit", "method"], sort=False):
        values = own.set_index("fold")["value"].dropna()
        line = {"unit": unit, "method": method, "mean": values.mean(), "se": values.sem(), "n": len(values)}
        if baseline is not None:
            other = means[(means["unit"] == unit) & (means["method"] == baseline)].set_index("fold")["value"]
            differences = (values - other.reindex(values.index)).dropna()
            mean, n = differences.mean(), len(differences)
            half = t.ppf(0.975, n - 1) * differences.sem() if n > 2 else np.nan
            line |= {"difference": mean, "low": mean - half, "high": mean + half}
        lines.append(line)
    return pd.DataFrame(lines)
