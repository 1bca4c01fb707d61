"""What every method is fitted on, and sums over it that respect what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Run:
    """How a fit is carried out, whatever the method."""

    rng: int = 0
    device: str = "cpu"
    amp: bool = False
    """Whether matrix products may be taken in bfloat16."""
    progress: bool = False
    n_neighbors: int = 50
    n_candidates: int = 50


class Neighbourhood(NamedTuple):
    """Candidates of each query, as a gate sees them."""

    phi: np.ndarray
    """(n, q) queries in phi-space."""
    rows: np.ndarray
    """(n, K) rows of the bank, nearest first, -1 for none."""
    distances: np.ndarray
    """(n, K); NaN for none."""
    bank: np.ndarray
    """(m, q) rows in phi-space."""
    state: np.ndarray
    """(n, s) state of the queries; s may be 0."""


class Cited(NamedTuple):
    """Rows that a prediction rests on."""

    rows: np.ndarray
    """(n, k) rows of the bank; -1 for none, and everywhere for methods that cite nobody."""
    weights: np.ndarray
    """(n, k)."""
    bank: np.ndarray
    """(m, q) rows in phi-space."""


@dataclass(frozen=True)
class Training:
    """Rows of a reference as arrays."""

    embedding: np.ndarray
    """(m, d) standardised embeddings."""
    values: Any
    """(m, g) measured profiles, numpy or scipy CSR; zero where not measured."""
    panels: np.ndarray
    """(m,) panel of each row."""
    measured: np.ndarray
    """(panels, g) mask."""
    folds: np.ndarray
    """(m,) codes of the groups that inner cross-validation holds out (donors wherever there are two)."""
    sections: np.ndarray
    """(m,) codes of the sections."""
    donors: np.ndarray | None = None
    """(m,) codes of the donors where there are several; rows of one donor never serve each other as neighbours."""
    state: np.ndarray | None = None
    """(m, s) state of each row (tissue around it, organ, technology), for gates that look at it."""
    types: np.ndarray | None = None
    """(m, t) fractions of cell types, NaN for rows without, where they are a condition of the search."""

    @property
    def states(self) -> np.ndarray:
        """The state of each row; (m, 0) where none was given."""
        return np.zeros((len(self.embedding), 0)) if self.state is None else self.state

    @property
    def groups(self) -> np.ndarray:
        """(m, e) codes of the groups whose rows are not neighbours of each other in training."""
        return np.stack([self.folds] if self.donors is None else [self.folds, self.donors], axis=1)

    def gene_patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Genes that were measured by the same panels: (rows of these panels, gene indices). Genes of no row are left out."""
        patterns, inverse = np.unique(self.measured.T, axis=0, return_inverse=True)
        rows = [np.flatnonzero(pattern[self.panels]) for pattern in patterns]
        return [(own, np.flatnonzero(inverse.ravel() == i)) for i, own in enumerate(rows) if len(own)]


def dense(values: Any) -> np.ndarray:
    """A block of profiles as float64."""
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def reference_mean(training: Training, rows: np.ndarray | None = None) -> np.ndarray:
    """(g,) mean of each gene over the rows (all, or some) that measured it; NaN where none did."""
    values, panels = training.values, training.panels
    if rows is not None:
        values, panels = values[rows], panels[rows]
    total = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel()
    count = np.bincount(panels, minlength=len(training.measured)) @ training.measured
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def variable_genes(values: Any, rows: np.ndarray, genes: np.ndarray, n: int) -> np.ndarray:
    """The `n` genes (of `genes`) with the largest variance over `rows`, in the order of their index."""
    part = values[rows]
    mean = np.asarray(part.mean(axis=0)).ravel()
    square = part.multiply(part) if hasattr(part, "multiply") else part * part
    variance = np.asarray(square.mean(axis=0)).ravel() - mean**2
    order = np.lexsort((genes, -variance[genes]))
    return np.sort(genes[order[:n]])


def mean_over_groups(scores: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """(width,) mean over held-out groups; a group on which nothing can be scored does not count. NaN where none is left."""
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
