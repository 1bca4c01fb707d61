"""What the learned methods are trained on: variable genes that every panel measured, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.loop import History
from ragst_sd.retrieval.training import dense, mean_over_groups, variable_genes


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
    splits = []
    for fold in np.unique(folds[folds >= 0]):
        near = False if beside is None else beside[:, fold]
        splits.append((np.flatnonzero((folds != fold) & ~np.asarray(near)), np.flatnonzero(folds == fold)))
    splits = [split for split in splits if min(map(len, split)) >= 3]
    most = len(splits) if beside is not None or at_most is None else min(at_most, len(splits))
    return [splits[i] for i in np.unique(np.linspace(0, len(splits) - 1, most).round().astype(int))]


def mean_curve(histories: Sequence[History]) -> np.ndarray:
    """(scores, 2) steps taken and mean held-out score, as far as all runs that were scored at all were scored."""
    curves = [np.asarray(history.scores) for history in histories if history.scores]
    length = min(map(len, curves), default=0)
    if not length:
        return np.zeros((0, 2))
    return np.stack(
        [curves[0][:length, 0], mean_over_groups([curve[:length, 1].tolist() for curve in curves], length)], axis=1
    )


def best_step(histories: Sequence[History], default: int) -> tuple[int, float]:
    """Steps at which the mean held-out score is best, and that score; `default` and NaN where nothing was scored."""
    curve = mean_curve(histories)
    if not np.isfinite(curve[:, 1]).any():
        return default, float("nan")
    step, score = curve[np.nanargmax(curve[:, 1])]
    return int(step), float(score)
