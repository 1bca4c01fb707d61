"""What methods learn from: means of what was measured, genes on one scale, groups to hold out, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def section_shifts(training: Bank) -> np.ndarray:
    """(sections, g) mean of each section minus the mean of the reference.

    Zero where a section did not measure a gene.
    """
    mean = reference_mean(training)
    shifts = np.zeros((int(training.sections.max()) + 1, training.values.shape[1]))
    for section in np.unique(training.sections):
        of_section = reference_mean(training, np.flatnonzero(training.sections == section))
        shifts[section] = np.nan_to_num(of_section - mean)
    return shifts


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


class Targets(NamedTuple):
    """Genes to train on, and their values at some rows."""

    genes: np.ndarray
    """(t,) indices, ascending."""
    values: np.ndarray
    """(r, t) centred within sections, divided by `sd`."""
    sd: np.ndarray
    """(t,) spread within sections."""


def measured_everywhere(training: Bank, method: str) -> np.ndarray:
    """Indices of the genes that every panel measured.

    Raises
    ------
    ValueError
        If there is none.
    """
    genes = np.flatnonzero(training.measured.all(axis=0))
    if not len(genes):
        raise ValueError(
            f"Method {method!r} learns from genes that every panel measured, and the {len(training.measured)} panels "
            "of this reference share none. Use method='knn', or leave out the panel that differs."
        )
    return genes


def standardised_targets(training: Bank, rows: np.ndarray, n_genes: int, method: str) -> Targets:
    """The most variable genes over `rows`, centred within sections and divided by the spread that is left.

    Raises
    ------
    ValueError
        If no gene that every panel measured varies within a section.
    """
    genes = variable_genes(training.values, rows, measured_everywhere(training, method), n_genes)
    values = centred_within_sections(dense(training.values[rows][:, genes]), training.sections[rows])
    sd = values.std(axis=0)
    varies = sd > 1e-9
    if not varies.any():
        raise ValueError(
            f"Method {method!r} has nothing to learn: none of the {len(genes)} genes tried varies within a section."
        )
    return Targets(genes[varies], values[:, varies] / sd[varies], sd[varies])


def centred_within_sections(values: Any, sections: np.ndarray) -> np.ndarray:
    """(n, g) values minus the mean of their section."""
    out = np.array(values, dtype=np.float64)
    for section in np.unique(sections):
        rows = sections == section
        out[rows] -= out[rows].mean(axis=0)
    return out


def held_out_splits(training: Bank, at_most: int | None = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows held out), one fold in turn; of many folds some that are spread evenly over their codes.

    Parameters
    ----------
    at_most
        Folds to hold out; `None` for all. Parts of sections are all held out, so that sections are scored as a whole.
    """
    folds, beside = training.folds, training.beside

    def split(fold: int) -> tuple[np.ndarray, np.ndarray]:
        near = False if beside is None else beside[:, fold]
        return np.flatnonzero((folds != fold) & ~np.asarray(near)), np.flatnonzero(folds == fold)

    # Of very many folds, the rows of those that are held out are all that fits into memory.
    usable = [fold for fold in np.unique(folds[folds >= 0]) if min(map(len, split(fold))) >= 3]
    most = len(usable) if beside is not None or at_most is None else min(at_most, len(usable))
    return [split(usable[i]) for i in np.unique(np.linspace(0, len(usable) - 1, most).round().astype(int))]
