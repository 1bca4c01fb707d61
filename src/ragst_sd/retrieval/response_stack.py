r"""Smoothers of responses: every part of a prediction as a signed sum over measured rows, and what may be cited of it.

.. math:: \Delta(p, c) = \bar\Delta_c + \kappa_p \sum_j D_j \frac{\Delta_j - \bar\Delta_{c(j)}}{\kappa_j}, \qquad
          D = \sum_i \pi_i D^{(i)}

Perturbations are compared by views: their embedding, and the mean of their responses in other contexts, each row
relative to the mean of its context, on principal components. A view has a Gaussian kernel of unit vectors, as wide as
their median distance; k is their sum. Parts are

- `kernel_ridge`, :math:`k (K + \alpha \lambda I)^{-1}` with :math:`\lambda` the mean eigenvalue of K;
- `knn`, the nearest rows by :math:`\phi`, what kernel ridge predicts for a row that is left out, with weights
  :math:`\cos(\phi_p, \phi_j)^s`. Perturbations that were measured in other contexts only stand beside the rows of
  this one, their responses moved by the map of `moved`;
- `learned`, kernel ridge in :math:`\phi`;
- `ridge`, linear in the embedding;
- `moved`, a linear map from the responses in other contexts, and `copy`, these responses as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query
from ragst_sd.retrieval.gate import normalised
from ragst_sd.retrieval.response_phi import doses, spanned
from ragst_sd.retrieval.responses import familiar, grouped, relative
from ragst_sd.retrieval.search import unit_rows

MEASURED = 2
"""Kind of the queries that were measured in another context; the others have measured relatives (1) or none (0)."""
PARTS = ("knn", "learned", "kernel_ridge", "ridge", "moved", "copy")
# With fewer held-out rows of a kind than this, what was chosen on all of them serves.
MIN_KIND = 6
# Principal components of responses that are looked at, and that are predicted.
_COMPONENTS = 100
_LEAST_ROWS = 3
_AT_ONCE = 512
_TINY = 1e-12


class Settings(NamedTuple):
    """What the parts are made with."""

    beta: float = 1.0
    """Weight of the embedding's kernel beside that of responses in other contexts."""
    alpha: float = 1.0
    """Penalty of `kernel_ridge`."""
    again: float = 1.0
    """Penalty of `learned`."""
    power: float = 3.0
    """The s of `knn`."""
    linear: float = 1.0
    """Penalty of `ridge` and `moved`."""


@dataclass(frozen=True)
class Lesson:
    """Queries of one context that may use the same rows, and what these rows teach."""

    queries: np.ndarray
    allowed: np.ndarray
    """(a,) rows that may be used."""
    here: np.ndarray
    """(n,) places in `allowed` of those that teach: of the context, or all where it has none."""
    gram: np.ndarray
    """(n, n) products of their relative responses."""
    views: tuple[np.ndarray, np.ndarray]
    """(n + q + e, d) embeddings and (n + q + e, c) responses in other contexts: of rows here, of the queries, and of
    perturbations that were measured elsewhere only; zero for none."""
    elsewhere: np.ndarray
    """(n + q + e, a) shares of the rows in other contexts that responses elsewhere are the mean of."""

    known: dict[tuple[int, float], np.ndarray] = field(default_factory=dict)
    """Cosines that were asked for before."""

    @property
    def asked(self) -> slice:
        """Lines of the queries, between those of rows here and of perturbations elsewhere."""
        return slice(len(self.here), len(self.here) + len(self.queries))

    @property
    def measured(self) -> np.ndarray:
        """(q,) whether a query was measured in another context, as rows that teach were."""
        known = np.asarray(self.views[1].any(axis=1))
        return np.asarray(known[self.asked] & (known[: len(self.here)].sum() >= _LEAST_ROWS))

    @cached_property
    def reach(self) -> np.ndarray:
        """(q, 1) how far rows say anything of a query: of one that was measured nowhere, what they span of it."""
        keys = unit_rows(self.views[0])
        return np.where(self.measured, 1.0, spanned(keys[: len(self.here)], keys[self.asked]))[:, None]

    @cached_property
    def kernels(self) -> list[np.ndarray]:
        """(n + q + e, n) Gaussian kernels of the two views."""
        return [self._gaussian(unit_rows(view)) for view in self.views]

    @cached_property
    def axes(self) -> np.ndarray:
        """(n, r) leading axes of the relative responses, in terms of rows."""
        return _leading(self.gram)[1]

    def smooth(self, kernel: np.ndarray, alpha: float) -> np.ndarray:
        """(n + q + e, n) kernel ridge; a row here is left out of what is said of it."""
        n = len(self.here)
        mean = kernel[:n].mean(axis=0)
        centred = kernel - kernel.mean(axis=1, keepdims=True) - mean + mean.mean()
        scale = np.trace(centred[:n]) / n
        out = np.zeros_like(kernel)
        if scale > _TINY:
            out = centred @ np.linalg.inv(centred[:n] + alpha * scale * np.eye(n))
            itself = np.minimum(np.diag(out), 1 - 1e-6)
            out[:n] = (out[:n] - np.diag(np.diag(out))) / (1 - itself)[:, None]
        return out

    def joined(self, kind: int, beta: float) -> np.ndarray:
        """(n + q + e, n) sum of the kernels of the views that queries of a kind have."""
        return self.kernels[1] + beta * self.kernels[0] if kind else self.kernels[0]

    def linear(self, kind: int, alpha: float) -> np.ndarray:
        """(n + q + e, n) ridge on one view, the responses in other contexts or the embedding."""
        view = self.views[1] if kind else unit_rows(self.views[0])
        return self.smooth(view @ view[: len(self.here)].T, alpha)

    def like(self, kind: int, beta: float) -> np.ndarray:
        """(n + q + e, n + q + e) cosines of predicted responses."""
        if (kind, beta) not in self.known:
            smooth = self.smooth(self.joined(kind, beta), 1.0)
            products = smooth @ self.gram @ smooth.T
            size = np.sqrt(np.maximum(np.diag(products), _TINY))
            there = size > 2 * np.sqrt(_TINY)
            self.known[kind, beta] = np.where(there[:, None] & there, products / size[:, None] / size, 0.0)
        return self.known[kind, beta]

    def placed(self, smooth: np.ndarray) -> np.ndarray:
        """(q, a) of (q, n) coefficients."""
        out = np.zeros((len(smooth), len(self.allowed)))
        out[:, self.here] = smooth
        return out

    def spread(self, smooth: np.ndarray) -> np.ndarray:
        """(q, a) of (q, n) coefficients, their sums taken on the leading axes of responses."""
        return self.placed(smooth @ self.axes @ self.axes.T)

    def _gaussian(self, view: np.ndarray) -> np.ndarray:
        n = len(self.here)
        there = np.asarray(view.any(axis=1))
        if there[:n].sum() < _LEAST_ROWS:
            return np.zeros((len(view), n))
        return _bell(2 - 2 * view @ view[:n].T, there, there[:n])


def lessons(bank: Bank, query: Query) -> Iterator[Lesson]:
    """Queries by context and by the rows that they may use."""
    products, last = bank.values @ bank.values.T, np.zeros(0, dtype=np.int64)
    for group in grouped(bank, query, _AT_ONCE):
        allowed, here = group.allowed, group.here
        if not np.array_equal(allowed, last):
            last, (gram, scores) = allowed, _scores(bank, allowed, products)
        views = group.key, group.elsewhere @ scores
        yield Lesson(group.queries, allowed, here, gram[np.ix_(here, here)], views, group.elsewhere)


def _scores(bank: Bank, allowed: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, a) products of relative responses, and (a, c) their scores on principal components."""
    dose, sections = doses(bank.screen.perturbed)[allowed], bank.sections[allowed]
    gram = relative(relative(products[np.ix_(allowed, allowed)], sections).T, sections) / dose[:, None] / dose
    values, axes = _leading(gram)
    return gram, axes * np.sqrt(np.maximum(values, 0))


def _leading(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of a matrix, and their vectors."""
    from scipy.linalg import eigh

    n = len(gram)
    values, axes = eigh(gram, subset_by_index=(max(0, n - _COMPONENTS), n - 1))
    return values, axes


def part(lesson: Lesson, name: str, kind: int, settings: Settings, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """(q, a) coefficients of the relative responses of the rows that may be used; see `PARTS`.

    And (q, a) weights of the rows that are cited for it: those whose responses it reads one by one.
    """
    n, asked = len(lesson.here), lesson.asked
    elsewhere = lesson.elsewhere[asked]
    nobody = np.zeros_like(elsewhere)
    if name == "kernel_ridge":
        return lesson.placed(lesson.smooth(lesson.joined(kind, settings.beta), settings.alpha)[asked]), nobody
    if name in ("ridge", "moved"):
        moved = lesson.spread(lesson.linear(kind, settings.linear)[asked])
        return moved, elsewhere if name == "moved" else nobody
    if name == "copy":
        return elsewhere, elsewhere
    likeness = lesson.like(kind, settings.beta)
    if name == "learned":
        there = np.diag(likeness) > 0.5
        kernel = _bell(2 - 2 * likeness[:, :n], there, np.ones(n, dtype=bool))
        return lesson.spread(lesson.smooth(kernel, settings.again)[asked]), nobody
    weights = nearest(lesson, likeness, settings.power, n_neighbors, kind)
    here, beyond = lesson.placed(weights[:, :n]), weights[:, n:]
    if not beyond.any():
        return here, here
    moved = lesson.spread(beyond @ lesson.linear(1, settings.linear)[asked.stop :])
    return here + moved, here + beyond @ lesson.elsewhere[asked.stop :]


def _bell(squared: np.ndarray, there: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Gaussian of (r, n) squared distances, as wide as their median among some of the n rows; zero for none."""
    squared = np.maximum(squared, 0)
    between = squared[: len(among)][np.ix_(among, among)][np.triu_indices(among.sum(), 1)]
    width = float(np.median(between)) if len(between) else 0.0
    return np.exp(-squared / (width or 1.0)) * there[:, None] * there[: len(among)]


def nearest(lesson: Lesson, likeness: np.ndarray, power: float, k: int, kind: int) -> np.ndarray:
    """(q, n + e) weights of the `k` rows here, and of perturbations elsewhere, that are most like each query."""
    n, asked = len(lesson.here), lesson.asked
    known = np.r_[:n, asked.stop : len(likeness)] if kind else np.arange(n)
    likeness_of = np.maximum(likeness[asked][:, known], 0)
    if kind:
        # Its own response elsewhere has parts of its own.
        likeness_of[:, n:][lesson.elsewhere[asked] @ lesson.elsewhere[asked.stop :].T > 0] = 0
    order = np.argsort(-likeness_of, axis=1, kind="stable")[:, :k]
    weights = np.zeros_like(likeness_of)
    np.put_along_axis(weights, order, np.take_along_axis(likeness_of, order, axis=1) ** power, axis=1)
    return normalised(weights)


@dataclass(frozen=True)
class Stacked:
    """What a stack answers, as sums over the rows of the bank."""

    coefficients: np.ndarray
    """(q, m) of the responses as they are: the sum is what is added to the mean of the pool."""
    cited: np.ndarray
    """(q, m) of the rows that retrieval reads, at least zero."""
    measured: np.ndarray
    """(q,) whether each query was measured in another context."""

    def some(self, queries: np.ndarray) -> Stacked:
        """The same for some of the queries."""
        return Stacked(self.coefficients[queries], self.cited[queries], self.measured[queries])


def stack(bank: Bank, query: Query, settings: tuple[Settings, ...], shares: np.ndarray, n_neighbors: int) -> Stacked:
    """Parts by the settings and the shares (3, parts) of the kind of each query, see `MEASURED`."""
    nothing, shape = np.zeros(len(query), dtype=bool), (len(query), len(bank))
    out = Stacked(np.zeros(shape), np.zeros(shape), nothing)
    dose_of_rows = doses(bank.screen.perturbed)
    for lesson in lessons(bank, query):
        total, cited = (np.zeros((len(lesson.queries), len(lesson.allowed))) for _ in range(2))
        out.measured[lesson.queries] = lesson.measured
        kinds = np.where(lesson.measured, MEASURED, familiar(bank, query.some(lesson.queries)))
        for kind in np.unique(kinds).tolist():
            at, known = kinds == kind, int(kind == MEASURED)
            for name, share in zip(PARTS, shares[kind], strict=True):
                if share:
                    coefficients, weights = part(lesson, name, known, settings[kind], n_neighbors)
                    trust = share * lesson.reach[at]
                    total[at] += trust * coefficients[at]
                    cited[at] += trust * weights[at]
        dose = doses(query.perturbed)[lesson.queries, None] / dose_of_rows[lesson.allowed]
        place = np.ix_(lesson.queries, lesson.allowed)
        out.coefficients[place] = relative((total * dose).T, bank.sections[lesson.allowed]).T
        out.cited[place] = cited
    return out
