"""What the methods of both tasks work on, and what they give: a bank, a query, a selection of rows, an answer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ragst_sd.retrieval.eligibility import Eligibility
    from ragst_sd.retrieval.search import Candidates


@dataclass(frozen=True)
class Run:
    """How a fit is carried out, whatever the method."""

    options: Any = None
    """Options of the method."""
    rng: int = 0
    device: str = "cpu"
    amp: bool = False
    """Whether matrix products may be taken in bfloat16."""
    progress: bool = False
    n_neighbors: int = 50
    n_candidates: int = 50


@dataclass(frozen=True)
class Bank:
    """Measured rows of a reference as arrays.

    A fit needs them in the order of their ids, so that sums do not depend on the order in the reference.
    """

    embedding: Any
    """(m, d) embeddings; standardised in a fit."""
    values: Any
    """(m, g) measured profiles, numpy, scipy CSR, or dask for rows on disk; zero where not measured."""
    panels: np.ndarray
    """(m,) panel of each row."""
    measured: np.ndarray
    """(panels, g) mask."""
    folds: np.ndarray | None
    """(m,) codes of the groups that inner cross-validation holds out (donors wherever there are two)."""
    sections: np.ndarray
    """(m,) codes of the sections."""
    donors: np.ndarray | None = None
    """(m,) codes of the donors; rows of one donor never serve each other as neighbours."""
    state: np.ndarray | None = None
    """(m, s) state of each row (tissue around it, organ, technology), for gates that look at it."""
    types: np.ndarray | None = None
    """(m, t) fractions of cell types, NaN for rows without."""
    key: Any = None
    """(m, q) rows as they are compared: principal components while a method is fitted, then rows in phi-space."""
    ids: np.ndarray | None = None
    """(m,) names, which decide between equal distances."""
    genes: Any = None
    """(g,) names, a pandas index."""
    obs: Any = None
    """(m, ...) labels of the rows, a data frame."""
    var: Any = None
    """(g, ...) what is known of the genes, a data frame."""
    header: Any = None
    """The header of the reference."""
    fit: Any = None
    """Its fit; `None` before."""
    digests: Any = None
    """(m,) digest of the content of each row, where all of it was read."""

    def __len__(self) -> int:
        return len(self.panels)

    @property
    def lazy(self) -> bool:
        """Whether the rows lie on disk."""
        return hasattr(self.values, "dask")

    @property
    def states(self) -> np.ndarray:
        """The state of each row; (m, 0) where none was given."""
        return np.zeros((len(self), 0)) if self.state is None else self.state

    @property
    def groups(self) -> np.ndarray:
        """(m, e) codes of the groups whose rows are not neighbours of each other in training."""
        several = self.donors is not None and self.donors.max(initial=0) > 0
        return np.stack([self.folds, self.donors] if several else [self.folds], axis=1)

    @cached_property
    def order(self) -> np.ndarray:
        """(m,) rank of each row's id."""
        return np.arange(len(self)) if self.ids is None else np.argsort(np.argsort(self.ids, kind="stable"))

    @cached_property
    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one section and panel: the code of each row's group, and (groups, 2) section and panel of each group."""
        pairs = np.stack([self.sections, self.panels], axis=1)
        groups, codes = np.unique(pairs, axis=0, return_inverse=True)
        return codes.ravel(), groups

    def gene_patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Genes that were measured by the same panels: (rows of these panels, gene indices). Genes of no row are left out."""
        patterns, inverse = np.unique(self.measured.T, axis=0, return_inverse=True)
        rows = [np.flatnonzero(pattern[self.panels]) for pattern in patterns]
        return [(own, np.flatnonzero(inverse.ravel() == i)) for i, own in enumerate(rows) if len(own)]

    def at_rows(self, rows: np.ndarray) -> Bank:
        """The bank of some rows, in the order given."""
        parts: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if value is None or name in ("measured", "genes", "var", "header", "fit"):
                continue
            if name == "digests":
                parts[name] = [value[row] for row in rows]
            else:
                parts[name] = value.iloc[rows] if hasattr(value, "iloc") else value[rows]
        return replace(self, **parts)

    def at_genes(self, genes: np.ndarray) -> Bank:
        """The bank of some genes by position; values on disk stay whole until their rows are read."""
        if np.array_equal(genes, np.arange(self.measured.shape[1])):
            return self
        return replace(
            self,
            values=self.values if self.lazy else self.values[:, genes],
            measured=self.measured[:, genes],
            genes=None if self.genes is None else self.genes[genes],
            var=None if self.var is None else self.var.iloc[genes],
        )

    def level(self, shifts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(patterns, genes) mean shift over the rows that may be used, of those that measured each gene.

        Evidence is put back on the mean of these rows. The mean of the whole reference would bring in what must stay out:
        the query's own donor, or rows that `where` rejects.

        Parameters
        ----------
        shifts
            (sections, genes).
        rows
            (patterns, groups) number of eligible rows of each of the groups of `levels`.
        """
        _, groups = self.levels
        votes = self.measured[groups[:, 1]].astype(np.float64)
        total = rows @ votes
        return np.divide(rows @ (votes * shifts[groups[:, 0]]), total, out=np.zeros(total.shape), where=total > 0)


@dataclass(frozen=True)
class Query:
    """Queries in phi-space, the rows that stage 1 found for them, and how many of these are to be cited."""

    key: np.ndarray
    """(n, q) queries in phi-space."""
    candidates: Candidates
    """Rows of the bank, nearest first."""
    state: np.ndarray
    """(n, s) state of the queries; s may be 0."""
    n_neighbors: int = 50


@dataclass(frozen=True)
class Selection:
    """Rows that predictions rest on, for every query; nothing of the size of queries x genes."""

    key: np.ndarray
    """(n, q) queries in phi-space."""
    rows: np.ndarray
    """(n, k) cited rows of the bank, -1 padded; all -1 for methods that cite nobody."""
    weights: np.ndarray
    """(n, k), which add up to one, or are all zero."""
    distances: np.ndarray
    """(n, k); NaN for none."""
    nearest: np.ndarray | None = None
    """(n, k) nearest rows, cited or not."""
    level: np.ndarray | None = None
    """(n,) queries with the same code may use the same rows."""
    distance: np.ndarray | None = None
    """(n,) mean distance to the nearest rows in phi-space."""
    unlike: np.ndarray | None = None
    """(n,) distance in appearance over its threshold."""

    def some(self, queries: slice | np.ndarray) -> Selection:
        """The same for some of the queries."""
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: value[queries] for name, value in parts.items() if value is not None})


class Answer(NamedTuple):
    """What is predicted for some queries, (n, g) each."""

    evidence: np.ndarray
    adjustment: np.ndarray
    average: np.ndarray | None = None
    """Weighted average of the cited rows before their sections are brought to one level."""


def eligible_counts(eligibility: Eligibility, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(patterns, groups) eligible rows of each group, for queries with the same ones, and the pattern of each query."""
    first, pattern = eligibility.patterns()
    counts = [np.bincount(codes[mask], minlength=codes.max() + 1) for mask in eligibility.mask(first, slice(None))]
    return np.stack(counts), pattern
