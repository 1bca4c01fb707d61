"""What the methods of both tasks work on, and what they give: a bank, a query, a selection of rows, an answer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


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
    metric: str = "euclidean"
    """Of the distances in phi-space, `"euclidean"` or `"cosine"`."""
    held_out: str = "group"
    """What a group of rows is that is held out to choose settings, for instance a donor: said while it is."""


@dataclass(frozen=True)
class Cells:
    """Samples of the cells that responses were measured from."""

    controls: np.ndarray
    """(n, g) expression."""
    contexts: np.ndarray
    """(n,) code of the context of each control."""
    treated: np.ndarray
    """(t, g) expression."""
    rows: np.ndarray
    """(t,) row of the bank of each perturbed cell."""


@dataclass(frozen=True)
class Screen:
    """What a bank of responses to perturbations has besides."""

    halves: tuple[np.ndarray, np.ndarray]
    """(m, g) each: the responses against one half of the controls, so that one can be predicted from the other.

    Both are the responses themselves where no cells were given: what is chosen is then chosen on held-out perturbations
    alone.
    """
    perturbed: tuple[tuple[str, ...], ...]
    """Perturbed genes of each row, sorted."""
    states: np.ndarray
    """(contexts, g) mean expression of the controls of each context: the cell state; without cells the mean response of
    its rows."""
    reliability: np.ndarray
    """(m,) agreement of two halves of the cells; 1 where responses were given without it."""
    metric: str = "cosine"
    errors: Any = None
    """(m, g) standard errors; `None` where responses were given without them."""
    from_cells: bool = True
    """Whether responses were measured from cells here; otherwise they were given, and there are no controls."""
    cells: Any = None
    """Cells, for methods that learn from them."""

    def at_rows(self, rows: np.ndarray) -> Screen:
        """That of some rows."""
        first, second = (half[rows] for half in self.halves)
        cells = self.cells
        if cells is not None:
            place = np.full(len(self.perturbed), -1)
            place[rows] = np.arange(len(rows))
            there = place[cells.rows] >= 0
            cells = replace(cells, treated=cells.treated[there], rows=place[cells.rows[there]])
        return replace(
            self,
            halves=(first, second),
            perturbed=tuple(self.perturbed[row] for row in rows),
            reliability=self.reliability[rows],
            errors=None if self.errors is None else self.errors[rows],
            cells=cells,
        )


@dataclass(frozen=True)
class Bank:
    """Measured rows of a reference as arrays: profiles of spots, or mean responses to a perturbation in a context.

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
    folds: Any
    """(m,) codes of the groups that inner cross-validation holds out (donors wherever there are two); -1 for none."""
    sections: np.ndarray
    """(m,) codes of the sections; of the contexts of responses."""
    donors: Any = None
    """(m,) codes of the donors; rows of one donor never serve each other as neighbours."""
    state: np.ndarray | None = None
    """(m, s) state of each row (tissue around it, organ, technology), for gates that look at it."""
    types: np.ndarray | None = None
    """(m, t) fractions of cell types, NaN for rows without."""
    key: Any = None
    """(m, q) rows as they are compared: principal components while a method is fitted, then rows in phi-space."""
    regression_key: Any = None
    """(m, q) features of the rows in the regression of a stack."""
    raw: Any = None
    """(m, d) embeddings as they were made, where `embedding` holds them standardised."""
    ids: Any = None
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
    screen: Any = None
    """Of responses only."""
    beside: np.ndarray | None = None
    """(m, folds) rows that are left out together with each fold, where folds are parts of sections."""

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
        """(m, e) codes; in training, rows that share one are not neighbours of each other.

        They are folds and donors. Of a single donor they are folds, or sections if folds are parts of these.
        """
        if self.donors is not None and self.donors.max(initial=0) > 0:
            return np.stack([self.folds, self.donors], axis=1)
        blocks = self.beside is not None and self.sections.max(initial=0) > 0
        return (self.sections if blocks else self.folds)[:, None]

    @cached_property
    def order(self) -> np.ndarray:
        """(m,) rank of each row's id, which decides between equal distances."""
        return np.arange(len(self)) if self.ids is None else np.argsort(np.argsort(self.ids, kind="stable"))

    @cached_property
    def section_panels(self) -> tuple[np.ndarray, np.ndarray]:
        """Groups of rows of one section and panel: (m,) code of each row, and (groups, 2) section and panel."""
        n_panels = len(self.measured)
        groups, codes = np.unique(self.sections * n_panels + self.panels, return_inverse=True)
        return codes, np.stack(np.divmod(groups, n_panels), axis=1)

    def gene_patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Genes that were measured by the same panels: (rows of these panels, gene indices).

        Genes of no row are left out.
        """
        patterns, inverse = np.unique(self.measured.T, axis=0, return_inverse=True)
        rows = [np.flatnonzero(pattern[self.panels]) for pattern in patterns]
        genes = [np.flatnonzero(inverse.ravel() == i) for i in range(len(rows))]
        return [(of_panels, measured) for of_panels, measured in zip(rows, genes, strict=True) if len(of_panels)]

    def at_rows(self, rows: np.ndarray) -> Bank:
        """The bank of some rows, in the order given."""
        parts: dict[str, Any] = {}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None or name in ("measured", "genes", "var", "header", "fit"):
                continue
            if name == "digests":
                parts[name] = [value[row] for row in rows]
            elif name == "screen":
                parts[name] = value.at_rows(rows)
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

        So the mean of these rows relative to that of the reference, on which evidence is put back. The mean of the
        whole reference would bring in what must stay out: the query's own donor, or rows that `where` rejects.

        Parameters
        ----------
        shifts
            (sections, genes).
        rows
            (patterns, groups) number of eligible rows of each of the groups of `section_panels`.
        """
        _, groups = self.section_panels
        votes = self.measured[groups[:, 1]].astype(np.float64)
        total = rows @ votes
        return np.divide(rows @ (votes * shifts[groups[:, 0]]), total, out=np.zeros(total.shape), where=total > 0)


@dataclass(frozen=True)
class Query:
    """What is asked for: spots in phi-space, or perturbations, each in one context."""

    key: np.ndarray
    """(n, q) queries in phi-space; embeddings of perturbations."""
    candidates: Any = None
    """Of spots: rows of the bank, nearest first."""
    state: Any = None
    """(n, s) state of the queries; s may be 0. Of perturbations (n, g) mean expression of the cells asked about;
    `None` is that of their context in the bank."""
    n_neighbors: int = 50
    """Rows to cite at most."""
    perturbed: tuple[tuple[str, ...], ...] = ()
    """Perturbed genes of each query, sorted."""
    contexts: Any = None
    """(n,) code of the context of each perturbation in the bank, -1 for a new one."""
    eligible: Any = None
    """(n, m) rows that each perturbation may use: never the own perturbation in its context."""
    worked: Any = None
    """What a method has computed once for all queries (`Method.once`), of which `some` takes its part."""

    def __len__(self) -> int:
        return len(self.key)

    def some(self, queries: np.ndarray) -> Query:
        """Some of the queries."""
        arrays = {name: getattr(self, name) for name in ("key", "state", "contexts", "eligible")}
        parts = {name: value[queries] for name, value in arrays.items() if value is not None}
        parts["worked"] = None if self.worked is None else self.worked.some(queries)
        return replace(self, **parts, perturbed=tuple(self.perturbed[i] for i in queries if self.perturbed))

    def states(self, bank: Bank) -> np.ndarray:
        """(n, g) cell state of each perturbation.

        The mean over contexts for one that is new and of which nothing is known.
        """
        if self.state is not None:
            return np.asarray(self.state)
        of_contexts = bank.screen.states
        known = of_contexts[np.maximum(self.contexts, 0)]
        return np.where(self.contexts[:, None] >= 0, known, of_contexts.mean(axis=0))

    def pool(self, bank: Bank) -> np.ndarray:
        """(n, m) eligible rows of the query's own context; of all contexts where it has none."""
        here = self.eligible & (self.contexts[:, None] == bank.sections)
        return np.asarray(np.where(here.any(axis=1, keepdims=True), here, self.eligible))


@dataclass(frozen=True)
class Selection:
    """Rows that predictions rest on, for every query; nothing of the size of queries x genes."""

    key: np.ndarray
    """(n, q) queries in phi-space."""
    rows: np.ndarray
    """(n, k) cited rows of the bank, -1 padded; all -1 for methods that cite no rows."""
    weights: np.ndarray
    """(n, k), which add up to one, or are all zero."""
    distances: np.ndarray
    """(n, k); NaN for none."""
    nearest: Any = None
    """(n, k) nearest rows, cited or not."""
    pattern: Any = None
    """(n,) pattern of the rows that each query may use: of two queries with one code these are the same."""
    features: Any = None
    """(n, q) features of the queries in the regression of a stack."""
    mean_distance: Any = None
    """(n,) mean distance to the nearest rows in phi-space."""
    appearance_distance: Any = None
    """(n,) distance in appearance over its threshold."""
    query: Any = None
    """Of perturbations: what was asked for."""
    response: Any = None
    """(n, g) what selecting has already predicted, of methods that do both at once."""

    def some(self, queries: slice | np.ndarray) -> Selection:
        """The same for some of the queries."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "query"}
        parts = {name: array[queries] for name, array in arrays.items() if array is not None}
        if self.query is not None:
            parts["query"] = self.query.some(np.arange(len(self.rows))[queries])
        return replace(self, **parts)


class Answer(NamedTuple):
    """What is predicted for some queries, (n, g) each."""

    evidence: np.ndarray
    adjustment: np.ndarray
    average: np.ndarray | None = None
    """Weighted average of the cited rows before their sections are brought to one level."""
    shift: np.ndarray | None = None
    """Weighted average of the shifts of their sections, which is taken off it."""
    explained: np.ndarray | None = None
    """(n,) share of a perturbation's embedding that the usable rows span, by which all beside the mean is scaled."""
