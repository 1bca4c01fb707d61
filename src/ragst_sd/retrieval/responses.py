r"""What methods that predict responses to perturbations work on, and what they give back.

.. math:: \Delta(p, c) = \sum_j w_j \Delta_j + \text{adjustment}

with :math:`\Delta_j` the measured responses of cited rows. Weights sum to one, or are all zero where nothing is cited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ragst_sd.retrieval.search import Candidates, Eligibility, find_candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_COMPONENTS = 128


@dataclass(frozen=True)
class Cells:
    """Samples of the cells that a bank was measured from."""

    controls: np.ndarray
    """(n, g) expression."""
    contexts: np.ndarray
    """(n,) code of the context of each control."""
    treated: np.ndarray
    """(t, g) expression."""
    rows: np.ndarray
    """(t,) row of the bank of each perturbed cell."""


@dataclass(frozen=True)
class Bank:
    """Measured rows, one per perturbation and context."""

    key: np.ndarray
    """(m, d) embeddings of the perturbations."""
    values: np.ndarray
    """(m, g) mean responses, float64."""
    halves: tuple[np.ndarray, np.ndarray]
    """(m, g) each: the responses against one half of the controls, so that one can be predicted from the other."""
    genes: tuple[tuple[str, ...], ...]
    """Perturbed genes of each row, sorted."""
    contexts: np.ndarray
    """(m,) code of the context."""
    folds: np.ndarray
    """(m,) groups that are held out whole when something is chosen: perturbations."""
    order: np.ndarray
    """(m,) rank of each row's name, which decides between equal distances."""
    state: np.ndarray
    """(contexts, g) mean expression of the controls of each context: the cell state."""
    reliability: np.ndarray
    """(m,) agreement of two halves of the cells."""
    metric: str = "cosine"
    cells: Cells | None = None
    """Cells, for methods that learn from them."""

    def mean_of(self, rows: np.ndarray) -> np.ndarray:
        """(g,) mean response of some rows."""
        return self.values[rows].mean(axis=0)


@dataclass(frozen=True)
class Asked:
    """Perturbations asked for, each in one context."""

    key: np.ndarray
    """(q, d) embeddings."""
    genes: tuple[tuple[str, ...], ...]
    """Perturbed genes, sorted."""
    contexts: np.ndarray
    """(q,) code of the context in the bank, -1 for a new one."""
    eligible: np.ndarray
    """(q, m) rows that may be used: never the own perturbation in its context."""
    state: np.ndarray | None = None
    """(q, g) mean expression of the cells asked about; `None` is the state of their context in the bank."""

    def states(self, bank: Bank) -> np.ndarray:
        """(q, g) cell state of each query; the mean over contexts for one that is new and of which nothing is known."""
        if self.state is not None:
            return self.state
        known = bank.state[np.maximum(self.contexts, 0)]
        return np.where(self.contexts[:, None] >= 0, known, bank.state.mean(axis=0))

    def pool(self, bank: Bank) -> np.ndarray:
        """(q, m) eligible rows of the query's own context; of all contexts where it has none."""
        own = self.eligible & (self.contexts[:, None] == bank.contexts)
        return np.where(own.any(axis=1, keepdims=True), own, self.eligible)


class Answer(NamedTuple):
    """Predicted responses and what they rest on."""

    rows: np.ndarray
    """(q, k) rows of the bank, -1 padded."""
    weights: np.ndarray
    """(q, k) weights, which sum to one or are all zero."""
    distances: np.ndarray
    """(q, k) distances between embeddings; NaN where no row is cited."""
    evidence: np.ndarray
    """(q, g) weighted mean of the cited responses; where nobody is cited what the method starts from."""
    adjustment: np.ndarray
    """(q, g) what is added to it."""
    explained: np.ndarray | None = None
    """(q,) share of the embedding that the usable rows span, by which all beside the mean is scaled; `None` if the method does not."""


def take_queries(asked: Asked, at: np.ndarray) -> Asked:
    """Some of the queries."""
    return replace(
        asked,
        key=asked.key[at],
        genes=tuple(asked.genes[i] for i in at),
        contexts=asked.contexts[at],
        eligible=asked.eligible[at],
        state=None if asked.state is None else asked.state[at],
    )


def patterns(masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Queries that may use the same rows, and these rows."""
    distinct, inverse = np.unique(masks, axis=0, return_inverse=True)
    for code, mask in enumerate(distinct):
        yield np.flatnonzero(inverse.ravel() == code), np.flatnonzero(mask)


def candidates(bank: Bank, asked: Asked, masks: np.ndarray, k: int, *, how: str = "nearest") -> Candidates:
    """Stage 1: the `k` nearest rows of each query's mask, or as many random ones."""
    found = np.full((len(asked.key), k), -1, dtype=np.int64)
    for queries, rows in patterns(masks):
        everything = Eligibility.everything(len(queries), len(bank.key))
        eligibility = replace(everything, allowed=np.isin(np.arange(len(bank.key)), rows))
        part = find_candidates(
            asked.key[queries],
            bank.key,
            k,
            eligibility=eligibility,
            how=how,
            tie_order=bank.order,
            metric=bank.metric,
            backend="exact",
        )
        found[queries] = part.rows
    return Candidates(found, distances_to(bank, asked, found))


def distances_to(bank: Bank, asked: Asked, rows: np.ndarray) -> np.ndarray:
    """(q, k) distances between the embeddings of queries and rows; NaN for -1."""
    key, others = asked.key[:, None, :], bank.key[np.maximum(rows, 0)]
    if bank.metric == "cosine":
        length = np.linalg.norm(key, axis=2) * np.linalg.norm(others, axis=2)
        distances = 1 - (key * others).sum(axis=2) / np.where(length > 0, length, 1.0)
    else:
        distances = np.linalg.norm(key - others, axis=2)
    return np.where(rows >= 0, distances, np.nan)


def cite(bank: Bank, found: Candidates, weights: np.ndarray, adjustment: np.ndarray | None = None) -> Answer:
    """Answer from weighted rows: evidence is their weighted mean."""
    weights = np.where(found.rows >= 0, weights, 0.0)
    evidence = np.einsum("qk,qkg->qg", weights, bank.values[np.maximum(found.rows, 0)])
    rows = np.where(weights > 0, found.rows, -1)
    distances = np.where(weights > 0, found.distances, np.nan)
    return Answer(rows, weights, distances, evidence, np.zeros_like(evidence) if adjustment is None else adjustment)


def cite_nobody(evidence: np.ndarray, adjustment: np.ndarray | None = None) -> Answer:
    """Answer of a method without neighbours."""
    n = len(evidence)
    adjustment = np.zeros_like(evidence) if adjustment is None else adjustment
    return Answer(np.full((n, 1), -1), np.zeros((n, 1)), np.full((n, 1), np.nan), evidence, adjustment)


def shortened(answer: Answer, k: int) -> Answer:
    """Cited rows first, at most `k` of them."""
    order = np.argsort(-answer.weights, axis=1, kind="stable")[:, :k]
    rows, weights, distances = (np.take_along_axis(part, order, axis=1) for part in answer[:3])
    return answer._replace(rows=rows, weights=weights, distances=distances)


def pool_mean(bank: Bank, asked: Asked) -> np.ndarray:
    """(q, g) mean response of each query's pool."""
    out = np.zeros((len(asked.key), bank.values.shape[1]))
    for queries, rows in patterns(asked.pool(bank)):
        out[queries] = bank.mean_of(rows)
    return out


def closed_rows(bank: Bank) -> np.ndarray:
    """(m, m) rows that each row may not use: its own perturbation in any context, and combinations that hold it.

    So a row is as new to the rest as a perturbation that nobody has measured. A combination may use its parts.
    """
    genes = [set(one) for one in bank.genes]
    holds = np.array([[mine <= other for other in genes] for mine in genes], dtype=bool)
    return holds | (bank.folds[:, None] == bank.folds[None, :])


def ask_rows(bank: Bank, rows: np.ndarray, closed: np.ndarray) -> Asked:
    """Rows of the bank as queries."""
    return Asked(bank.key[rows], tuple(bank.genes[row] for row in rows), bank.contexts[rows], ~closed[rows])


def shape_halves(bank: Bank) -> tuple[Bank, Bank]:
    """The bank with the responses against either half of the controls, without their mean over genes, in few axes.

    The axes keep inner products of such responses, up to what more than 128 of them would add: correlations over genes
    are cosines among few numbers.
    """
    centred = [half - half.mean(axis=1, keepdims=True) for half in bank.halves]
    _, size, axes = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    kept = max(1, int((size > 1e-9 * max(float(size[0]), 1e-300)).sum()))
    axes = axes[: min(kept, _MAX_COMPONENTS)].T
    values = [half @ axes for half in centred]
    first, second = (replace(bank, values=one, halves=(values[0], values[1])) for one in values)
    return first, second


def familiar(bank: Bank, asked: Asked) -> np.ndarray:
    """(q,) whether a gene of the query is perturbed in a row that it may use."""
    shares = [[not set(genes).isdisjoint(other) for other in bank.genes] for genes in asked.genes]
    return (np.array(shares, dtype=bool) & asked.eligible).any(axis=1)
