"""Methods that others are compared with: means of near, random, own or single perturbations, and regressions on the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.gate import distance_gate, uniform_gate
from ragst_sd.retrieval.options import choice, count, numbers, positive, switch
from ragst_sd.retrieval.responses import candidates, cite, cite_nobody, distances_to, patterns, pool_mean
from ragst_sd.retrieval.search import Candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ragst_sd.retrieval.responses import Answer, Asked, Bank

_MAX_FOLDS = 20


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class NearestOptions:
    r"""Options of `knn` for responses.

    Parameters
    ----------
    weighting
        `"distance"`: weights fall with distance, :math:`w_j \propto \exp(-s\,d_j^2/d_K^2)`; or `"uniform"`.
    sharpness
        The s of it.
    within_context
        Take neighbours from the query's context only, where it has any.
    """

    weighting: str = choice("distance", "distance", "uniform")
    sharpness: float = positive(2.0)
    within_context: bool = switch(default=True)


@dataclass(frozen=True)
class EqualOptions:
    """Options of `naive_rag` and `random_rag`.

    Parameters
    ----------
    weighting
        `"uniform"`.
    within_context
        Take rows from the query's context only, where it has any.
    """

    weighting: str = choice("uniform", "uniform")
    within_context: bool = switch(default=True)


@dataclass(frozen=True)
class ResponseRidgeOptions:
    """Options of `ridge` for responses.

    Parameters
    ----------
    alphas
        Penalties to choose from, on held-out perturbations and the other half of the controls.
    """

    alphas: tuple[float, ...] = numbers(tuple(float(alpha) for alpha in np.logspace(-2, 3, 16)))


@dataclass(frozen=True)
class BilinearOptions:
    """Options of `bilinear`.

    Parameters
    ----------
    rank
        Principal components of the genes.
    alpha
        Penalty.
    """

    rank: int = count(10)
    alpha: float = positive(0.1)


def nothing(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """No response."""
    return cite_nobody(np.zeros((len(asked.key), bank.values.shape[1])))


def mean(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """Mean of the responses that may be used."""
    return cite_nobody(pool_mean(bank, asked))


def nearest(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int, *, how: str = "nearest") -> Answer:
    """Weighted mean of the responses of the perturbations nearest in the embedding, or of random ones."""
    masks = asked.pool(bank) if parameters["within_context"] else asked.eligible
    found = candidates(bank, asked, masks, k, how=how)
    if parameters["weighting"] == "uniform":
        return cite(bank, found, uniform_gate(found.distances))
    return cite(bank, found, distance_gate(found.distances, float(parameters["sharpness"])))


def same_perturbation(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """Mean of the responses to the same perturbation in other contexts."""
    return _equal(bank, asked, _own_elsewhere)


def lacks_same(bank: Bank, asked: Asked) -> list[str]:
    """Why a query has no response in another context; empty where it has."""
    return [
        "" if len(_own_elsewhere(bank, asked, i)) else "no other context of the reference measured it"
        for i in range(len(asked.key))
    ]


def context_additive(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    r"""Mean response of the context plus the deviation of the perturbation from the mean elsewhere.

    .. math:: \bar\Delta_c + \frac{1}{|C|} \sum_{c' \in C} (\Delta_{pc'} - \bar\Delta_{c'})
    """
    answer = _equal(bank, asked, _own_elsewhere)
    for i in range(len(asked.key)):
        here = asked.eligible[i] & (bank.contexts == asked.contexts[i])
        elsewhere = [
            bank.mean_of(np.flatnonzero(asked.eligible[i] & (bank.contexts == bank.contexts[row])))
            for row in _own_elsewhere(bank, asked, i)
        ]
        answer.adjustment[i] = bank.mean_of(np.flatnonzero(here)) - np.mean(elsewhere, axis=0)
    return answer


def lacks_context_additive(bank: Bank, asked: Asked) -> list[str]:
    """Why a query has no deviation or its context no mean; empty where both are there."""
    reasons = lacks_same(bank, asked)
    for i in range(len(reasons)):
        if not reasons[i] and not (asked.eligible[i] & (bank.contexts == asked.contexts[i])).any():
            reasons[i] = "its context has no row that may be used"
    return reasons


def additive(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """Sum of the responses to the genes of a combination. Evidence is their mean, the rest adjustment."""
    answer = _equal(bank, asked, lambda bank, asked, i: np.concatenate(_singles(bank, asked, i)))
    for i, genes in enumerate(asked.genes):
        parts = _singles(bank, asked, i)
        shares = np.concatenate([np.full(len(rows), 1 / (len(parts) * len(rows))) for rows in parts])
        answer.weights[i, : len(shares)] = shares
        answer.evidence[i] = shares @ bank.values[answer.rows[i, : len(shares)]]
        answer.adjustment[i] = (len(genes) - 1) * answer.evidence[i]
    return answer


def lacks_singles(bank: Bank, asked: Asked) -> list[str]:
    """Why a query is no sum of measured singles; empty where it is."""
    reasons = []
    for i, genes in enumerate(asked.genes):
        lacking = [gene for gene, rows in zip(genes, _singles(bank, asked, i), strict=True) if not len(rows)]
        reason = f"no row of {', '.join(map(repr, lacking))} alone may be used" if lacking else ""
        reasons.append("a single gene, so there is nothing to add up" if len(genes) < 2 else reason)
    return reasons


def _own_elsewhere(bank: Bank, asked: Asked, i: int) -> np.ndarray:
    same = np.array([genes == asked.genes[i] for genes in bank.genes], dtype=bool)
    return np.flatnonzero(asked.eligible[i] & same & (bank.contexts != asked.contexts[i]))


def _singles(bank: Bank, asked: Asked, i: int) -> list[np.ndarray]:
    """Rows of each gene of a combination alone: in the query's context, or in all where it has none of its own."""
    pool = asked.pool(bank)[i]
    return [
        np.flatnonzero(pool & np.array([genes == (gene,) for genes in bank.genes], dtype=bool))
        for gene in asked.genes[i]
    ]


def _equal(bank: Bank, asked: Asked, rows_of: Callable[[Bank, Asked, int], np.ndarray]) -> Answer:
    """Equal weights for the rows that `rows_of` names."""
    each = [rows_of(bank, asked, i) for i in range(len(asked.key))]
    width = max(1, *(len(rows) for rows in each)) if each else 1
    rows = np.full((len(each), width), -1, dtype=np.int64)
    for i, own in enumerate(each):
        rows[i, : len(own)] = own
    distances = distances_to(bank, asked, rows)
    return cite(bank, Candidates(rows, distances), uniform_gate(distances))


def ridge(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    r"""Ridge regression on the embedding e, within contexts.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W, \qquad W = (E^\top E + \alpha I)^{-1} E^\top Y

    with E and Y taken relative to the mean of their context. Solved for each query on the rows that it may use.
    """
    alpha = float(parameters["alpha"])
    return _regress(bank, asked, lambda e, y: _solve(e, y, alpha))


def bilinear(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    r"""Bilinear regression through `rank` principal components G of the genes.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W G^\top, \qquad
              W = (E^\top E + \alpha I)^{-1} E^\top Y G (G^\top G + \alpha I)^{-1}
    """
    alpha, rank = float(parameters["alpha"]), int(parameters["rank"])

    def solution(e: np.ndarray, y: np.ndarray) -> np.ndarray:
        _, s, axes = np.linalg.svd(y, full_matrices=False)
        g = axes[:rank].T * s[:rank]
        return _solve(e, y, alpha) @ g @ np.linalg.solve(g.T @ g + alpha * np.eye(g.shape[1]), g.T)

    return _regress(bank, asked, solution)


def choose_alpha(bank: Bank, alphas: Sequence[float]) -> float:
    """Penalty with the least squared error on held-out perturbations.

    Coefficients come from responses against one half of the controls and are scored against the other: the noise of
    shared controls would be predicted as if it were an effect.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    if len(grid) == 1:
        return float(grid[0])
    groups, folds = np.unique(bank.folds, return_inverse=True)
    folds = folds % min(len(groups), _MAX_FOLDS)
    error = np.zeros(len(grid))
    for learned, truth in (bank.halves, bank.halves[::-1]):
        for fold in np.unique(folds):
            training, held = folds != fold, folds == fold
            held &= np.isin(bank.contexts, bank.contexts[training])
            if not held.any():
                continue
            e, y, means = _centred(bank.key, learned, bank.contexts, np.flatnonzero(training))
            left, s, axes = np.linalg.svd(e, full_matrices=False)
            at = np.array([means[0][code] for code in bank.contexts[held].tolist()])
            level = np.array([means[1][code] for code in bank.contexts[held].tolist()])
            scores, rotated = (bank.key[held] - at) @ axes.T, left.T @ y
            for i, alpha in enumerate(grid):
                predicted = level + (scores * (s / (s**2 + alpha))) @ rotated
                error[i] += ((predicted - truth[held]) ** 2).sum()
    return float(grid[int(np.argmin(error))])


def _regress(bank: Bank, asked: Asked, solution: Any) -> Answer:
    evidence = np.zeros((len(asked.key), bank.values.shape[1]))
    adjustment = np.zeros_like(evidence)
    for queries, rows in patterns(asked.eligible):
        e, y, (keys, levels) = _centred(bank.key, bank.values, bank.contexts, rows)
        coefficients = solution(e, y)
        everywhere = bank.key[rows].mean(axis=0), bank.values[rows].mean(axis=0)
        for i in queries:
            code = int(asked.contexts[i])
            centre, level = (keys[code], levels[code]) if code in keys else everywhere
            evidence[i], adjustment[i] = level, (asked.key[i] - centre) @ coefficients
    return cite_nobody(evidence, adjustment)


def _centred(
    key: np.ndarray, values: np.ndarray, contexts: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[dict[int, np.ndarray], dict[int, np.ndarray]]]:
    """Embeddings and responses of some rows relative to the means of their contexts, and these means."""
    e, y, codes = key[rows], values[rows], contexts[rows]
    keys = {int(code): e[codes == code].mean(axis=0) for code in np.unique(codes)}
    levels = {int(code): y[codes == code].mean(axis=0) for code in np.unique(codes)}
    return (
        e - np.array([keys[code] for code in codes.tolist()]),
        y - np.array([levels[code] for code in codes.tolist()]),
        (keys, levels),
    )


def _solve(e: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """Ridge coefficients (d, g), in whichever of rows and components there are fewer."""
    if len(e) < e.shape[1]:
        return e.T @ np.linalg.solve(e @ e.T + alpha * np.eye(len(e)), y)
    return np.linalg.solve(e.T @ e + alpha * np.eye(e.shape[1]), e.T @ y)
