"""What the learned methods are trained on: variable genes that every panel measured, on one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.training import Training, dense, mean_over_groups, variable_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragst_sd.retrieval.loop import History


class Targets(NamedTuple):
    """Genes to train on, and their values at some rows."""

    genes: np.ndarray
    """(t,) indices, ascending."""
    values: np.ndarray
    """(r, t) centred within sections, divided by `sd`."""
    sd: np.ndarray
    """(t,) spread within sections."""


def measured_everywhere(training: Training, method: str) -> np.ndarray:
    """Indices of the genes that every panel measured.

    Raises
    ------
    ValueError
        If there is none.
    """
    genes = np.flatnonzero(training.measured.all(axis=0))
    if not len(genes):
        msg = (
            f"Method {method!r} learns from genes that every panel measured, and the {len(training.measured)} panels of "
            "this reference share none. Use method='knn', or leave out the panel that differs."
        )
        raise ValueError(msg)
    return genes


def standardised_targets(training: Training, rows: np.ndarray, n_genes: int, method: str) -> Targets:
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
        msg = f"Method {method!r} has nothing to learn: none of the {len(genes)} genes tried varies within a section."
        raise ValueError(msg)
    return Targets(genes[varies], values[:, varies] / sd[varies], sd[varies])


def centred_within_sections(values: Any, sections: np.ndarray) -> np.ndarray:
    """(n, g) values minus the mean of their section."""
    out = np.array(values, dtype=np.float64)
    for section in np.unique(sections):
        rows = sections == section
        out[rows] -= out[rows].mean(axis=0)
    return out


def one_group(training: Training, rows: np.ndarray, genes: np.ndarray | slice = slice(None)) -> Training:
    """Some rows and genes as a single group: for fits whose choices are made, so that nothing is held out any more."""
    return Training(
        embedding=training.embedding[rows],
        values=training.values[rows][:, genes],
        panels=training.panels[rows],
        measured=training.measured[:, genes],
        folds=np.zeros(len(rows), dtype=int),
        sections=training.sections[rows],
    )


def held_out_splits(folds: np.ndarray, at_most: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows held out), one fold in turn; of many folds some that are spread evenly over their codes."""
    splits = []
    for fold in np.unique(folds):
        inner, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(inner) >= 3 and len(held) >= 3:
            splits.append((inner, held))
    chosen = np.unique(np.linspace(0, len(splits) - 1, min(at_most, len(splits))).round().astype(int))
    return [splits[i] for i in chosen]


def best_step(histories: Sequence[History], default: int) -> tuple[int, float]:
    """Steps at which the mean held-out score is best, and that score; `default` and NaN where nothing was scored."""
    curves = [history.scores for history in histories if history.scores]
    length = min((len(curve) for curve in curves), default=0)
    if not length:
        return default, float("nan")
    mean = mean_over_groups([[score for _, score in curve[:length]] for curve in curves], length)
    if not np.isfinite(mean).any():
        return default, float("nan")
    best = int(np.nanargmax(mean))
    return curves[0][best][0], float(mean[best])
