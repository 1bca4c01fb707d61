"""Methods to compare others with: means of near, random, own or single perturbations, regressions on the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.gate import distance_gate
from ragst_sd.retrieval.options import choice, count, numbers, positive, switch
from ragst_sd.retrieval.responses import (
    candidates,
    distances_to,
    mean_response,
    means_at,
    patterns,
    pool_mean,
    relative,
    same_perturbation,
    select,
)
from ragst_sd.retrieval.search import Candidates

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


def nothing(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """No response."""
    zero = np.zeros((len(selection.rows), bank.values.shape[1]))
    return Answer(zero, zero.copy())


def mean(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """Mean of the responses that may be used."""
    level = pool_mean(bank, selection.query)
    return Answer(level, np.zeros_like(level))


def select_nearest(parameters: Mapping[str, Any], bank: Bank, query: Query, *, how: str = "nearest") -> Selection:
    """Perturbations nearest in the embedding, or random ones."""
    masks = query.pool(bank) if parameters["within_context"] else query.eligible
    near = candidates(bank, query, masks, query.n_neighbors, how=how)
    # Equal weights are those that do not fall with distance.
    sharpness = 0.0 if parameters["weighting"] == "uniform" else float(parameters["sharpness"])
    return select(query, near, distance_gate(near.distances, sharpness))


def select_same(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """The same perturbation in other contexts."""
    return _alike(bank, query, [[np.flatnonzero(rows)] for rows in _own_elsewhere(bank, query)])


def lacks_same(bank: Bank, query: Query) -> list[str]:
    """Why a query has no response in another context; empty where it has."""
    known = _own_elsewhere(bank, query).any(axis=1)
    return np.where(known, "", "no other context of the reference measured it").tolist()


def context_additive(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    r"""Mean response of the context plus the deviation of the perturbation from the mean elsewhere.

    .. math:: \bar\Delta_c + \frac{1}{|C|} \sum_{c' \in C} (\Delta_{pc'} - \bar\Delta_{c'})
    """
    query, evidence = selection.query, mean_response(bank, selection)
    adjustment = np.zeros_like(evidence)
    for i, others in enumerate(_own_elsewhere(bank, query)):
        usable = np.flatnonzero(query.eligible[i])
        at = np.array([query.contexts[i], *bank.sections[others]])
        here, *elsewhere = means_at(bank.values[usable], bank.sections[usable], at)
        adjustment[i] = here - np.mean(elsewhere, axis=0)
    return Answer(evidence, adjustment)


def lacks_context_additive(bank: Bank, query: Query) -> list[str]:
    """Why a query has no deviation or its context no mean; empty where both are there."""
    here = (query.eligible & (bank.sections == query.contexts[:, None])).any(axis=1)
    reasons = np.where(here, "", "its context has no row that may be used")
    return [same or str(context) for same, context in zip(lacks_same(bank, query), reasons, strict=True)]


def select_singles(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """The responses to the genes of a combination, each gene alike."""
    return _alike(bank, query, [_singles(bank, query, i) for i in range(len(query))])


def additive(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """Sum of the responses to the genes of a combination. Evidence is their mean, the rest adjustment."""
    evidence = mean_response(bank, selection)
    more = np.array([len(genes) - 1 for genes in selection.query.perturbed])
    return Answer(evidence, more[:, None] * evidence)


def lacks_singles(bank: Bank, query: Query) -> list[str]:
    """Why a query is no sum of measured singles; empty where it is."""
    reasons = []
    for i, genes in enumerate(query.perturbed):
        lacking = [gene for gene, rows in zip(genes, _singles(bank, query, i), strict=True) if not len(rows)]
        reason = f"no row of {', '.join(map(repr, lacking))} alone may be used" if lacking else ""
        reasons.append("a single gene, so there is nothing to add up" if len(genes) < 2 else reason)
    return reasons


def _own_elsewhere(bank: Bank, query: Query) -> np.ndarray:
    """(q, m) rows of the same perturbation in other contexts."""
    return same_perturbation(bank, query) & query.eligible & (query.contexts[:, None] != bank.sections)


def _singles(bank: Bank, query: Query, i: int) -> list[np.ndarray]:
    """Rows of each gene of a combination alone: in the query's context, or in all where it has none of its own."""
    pool = np.flatnonzero(query.pool(bank)[i])
    return [pool[[bank.screen.perturbed[row] == (gene,) for row in pool]] for gene in query.perturbed[i]]


def _alike(bank: Bank, query: Query, parts: list[list[np.ndarray]]) -> Selection:
    """The rows of all parts of each query: parts weigh alike, and so do the rows of a part."""
    width = max((sum(map(len, rows)) for rows in parts), default=0)
    rows, weights = np.full((len(parts), max(1, width)), -1), np.zeros((len(parts), max(1, width)))
    for i, of_query in enumerate(parts):
        cited = np.concatenate(of_query)
        rows[i, : len(cited)] = cited
        shares = [np.full(len(part), 1 / len(of_query) / max(1, len(part))) for part in of_query]
        weights[i, : len(cited)] = np.concatenate(shares)
    return select(query, Candidates(rows, distances_to(bank, query, rows)), weights)


def ridge(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    r"""Ridge regression on the embedding e, within contexts.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W, \qquad W = (E^\top E + \alpha I)^{-1} E^\top Y

    with E and Y taken relative to the mean of their context. Solved for each query on the rows that it may use.
    """
    alpha = float(parameters["alpha"])
    return _regress(bank, selection.query, lambda e, y: _solve(e, y, alpha))


def bilinear(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Answer:
    r"""Bilinear regression through `rank` principal components G of the genes.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W G^\top, \qquad
              W = (E^\top E + \alpha I)^{-1} E^\top Y G (G^\top G + \alpha I)^{-1}
    """
    alpha, rank = float(parameters["alpha"]), int(parameters["rank"])

    def solution(e: np.ndarray, y: np.ndarray) -> np.ndarray:
        _, s, axes = np.linalg.svd(y, full_matrices=False)
        g = axes[:rank].T * s[:rank]
        return _solve(e, y, alpha) @ g @ np.linalg.solve(g.T @ g + alpha * np.eye(g.shape[1]), g.T)

    return _regress(bank, query, solution)


def choose_alpha(bank: Bank, alphas: Sequence[float]) -> float:
    """Penalty with the least squared error on held-out perturbations.

    Coefficients come from responses against one half of the controls and are scored against the other: the noise of
    shared controls would be predicted as if it were an effect.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    groups, folds = np.unique(bank.folds, return_inverse=True)
    folds = folds % min(len(groups), _MAX_FOLDS)
    error = np.zeros(len(grid))
    first, second = bank.screen.halves
    # Given responses have no halves: then one way is both.
    for learned, truth in ((first, second),) if first is second else ((first, second), (second, first)):
        for fold in np.unique(folds):
            training, held = folds != fold, folds == fold
            held &= np.isin(bank.sections, bank.sections[training])
            if not held.any():
                continue
            codes, at = bank.sections[training], bank.sections[held]
            left, s, axes = np.linalg.svd(relative(bank.key[training], codes), full_matrices=False)
            level, rotated = means_at(learned[training], codes, at), left.T @ relative(learned[training], codes)
            scores = (bank.key[held] - means_at(bank.key[training], codes, at)) @ axes.T
            for i, alpha in enumerate(grid):
                predicted = level + (scores * (s / (s**2 + alpha))) @ rotated
                error[i] += ((predicted - truth[held]) ** 2).sum()
    return float(grid[int(np.argmin(error))])


def _regress(bank: Bank, query: Query, solution: Any) -> Answer:
    evidence = np.zeros((len(query), bank.values.shape[1]))
    adjustment = np.zeros_like(evidence)
    for queries, rows in patterns(query.eligible):
        codes, at = bank.sections[rows], query.contexts[queries]
        coefficients = solution(relative(bank.key[rows], codes), relative(bank.values[rows], codes))
        evidence[queries] = means_at(bank.values[rows], codes, at)
        adjustment[queries] = (query.key[queries] - means_at(bank.key[rows], codes, at)) @ coefficients
    return Answer(evidence, adjustment)


def _solve(e: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """Ridge coefficients (d, g), in whichever of rows and components there are fewer."""
    if len(e) < e.shape[1]:
        return e.T @ np.linalg.solve(e @ e.T + alpha * np.eye(len(e)), y)
    return np.linalg.solve(e.T @ e + alpha * np.eye(e.shape[1]), e.T @ y)
