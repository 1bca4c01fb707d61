"""Sums over a bank that respect what was measured, and the score that choices are made by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank


def dense(values: Any) -> np.ndarray:
    """A block of profiles as float64."""
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def reference_mean(training: Bank, rows: np.ndarray | None = None) -> np.ndarray:
    """(g,) mean of each gene over the rows (all, or some) that measured it; NaN where none did."""
    values, panels = training.values, training.panels
    if rows is not None:
        values, panels = values[rows], panels[rows]
    total = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel()
    count = np.bincount(panels, minlength=len(training.measured)) @ training.measured
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def variable_genes(values: Any, rows: np.ndarray, genes: np.ndarray, n: int) -> np.ndarray:
    """The `n` genes (of `genes`) with the largest variance over `rows`, in the order of their index."""
    variance = gene_variance(values[rows])
    order = np.lexsort((genes, -variance[genes]))
    return np.sort(genes[order[:n]])


def gene_variance(values: Any) -> np.ndarray:
    """(g,) variance of each gene over all rows."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = values.multiply(values) if hasattr(values, "multiply") else values * values
    return np.asarray(square.mean(axis=0)).ravel() - mean**2


def mean_over_groups(scores: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """(width,) mean over held-out groups; a group on which nothing can be scored does not count.

    NaN where none is left.
    """
    lines = np.asarray(scores, dtype=np.float64).reshape(-1, width)
    finite = np.isfinite(lines)
    total = np.where(finite, lines, 0.0).sum(axis=0)
    return np.divide(total, finite.sum(axis=0), out=np.full(width, np.nan), where=finite.any(axis=0))


def within_section_pearson(predicted: np.ndarray, truth: np.ndarray, sections: np.ndarray) -> float:
    """Pearson of each gene within each section, averaged over genes that vary, then over sections."""
    scores = []
    for section in np.unique(sections):
        rows = sections == section
        if rows.sum() < 3:
            continue
        a = predicted[rows] - predicted[rows].mean(axis=0)
        b = truth[rows] - truth[rows].mean(axis=0)
        norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
        varies = (b**2).sum(axis=0) > 0
        correlation = np.divide((a * b).sum(axis=0), norm, out=np.zeros(len(norm)), where=norm > 1e-12)
        if varies.any():
            scores.append(correlation[varies].mean())
    return float(np.mean(scores)) if scores else float("nan")
