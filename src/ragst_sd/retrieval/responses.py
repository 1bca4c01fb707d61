r"""What methods that predict responses to perturbations have in common.

.. math:: \Delta(p, c) = \sum_j w_j \Delta_j + \text{adjustment}

with :math:`\Delta_j` the measured responses of cited rows. Weights sum to one, or are all zero where nothing is cited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.gate import normalised
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.projection import largest_positive
from ragst_sd.retrieval.search import Candidates, Eligibility, find_candidates

_MAX_COMPONENTS = 128
# Held-out rows to choose settings on, at most.
MAX_QUERIES = 256
# Rows that say nothing about accuracy hardly count.
_LEAST_WEIGHT = 0.05
_TINY = 1e-12


def patterns(masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Queries that may use the same rows, and these rows."""
    distinct, inverse = np.unique(masks, axis=0, return_inverse=True)
    for code, mask in enumerate(distinct):
        yield np.flatnonzero(inverse.ravel() == code), np.flatnonzero(mask)


def candidates(bank: Bank, query: Query, masks: np.ndarray, k: int, *, how: str = "nearest") -> Candidates:
    """Stage 1: the `k` nearest rows of each query's mask, or as many random ones."""
    nearest = np.full((len(query.key), k), -1, dtype=np.int64)
    for queries, rows in patterns(masks):
        everything = Eligibility.everything(len(queries), len(bank.key))
        eligibility = replace(everything, allowed=np.isin(np.arange(len(bank.key)), rows))
        part = find_candidates(
            query.key[queries],
            bank.key,
            k,
            eligibility=eligibility,
            how=how,
            tie_order=bank.order,
            metric=bank.screen.metric,
            backend="exact",
        )
        nearest[queries] = part.rows
    return Candidates(nearest, distances_to(bank, query, nearest))


def distances_to(bank: Bank, query: Query, rows: np.ndarray) -> np.ndarray:
    """(q, k) distances between the embeddings of queries and rows; NaN for -1."""
    key, others = query.key[:, None, :], bank.key[np.maximum(rows, 0)]
    if bank.screen.metric == "cosine":
        length = np.linalg.norm(key, axis=2) * np.linalg.norm(others, axis=2)
        distances = 1 - (key * others).sum(axis=2) / np.where(length > 0, length, 1.0)
    else:
        distances = np.linalg.norm(key - others, axis=2)
    return np.where(rows >= 0, distances, np.nan)


def select(query: Query, near: Candidates, weights: np.ndarray) -> Selection:
    """The candidates that have weight."""
    weights = np.where(near.rows >= 0, weights, 0.0)
    rows, distances = np.where(weights > 0, near.rows, -1), np.where(weights > 0, near.distances, np.nan)
    return Selection(query.key, rows, weights, distances, query=query)


def select_none(query: Query) -> Selection:
    """No row, of methods without neighbours."""
    n = len(query)
    return Selection(query.key, np.full((n, 1), -1), np.zeros((n, 1)), np.full((n, 1), np.nan), query=query)


def mean_response(bank: Bank, selection: Selection) -> np.ndarray:
    """(n, g) weighted mean of the cited responses."""
    return np.einsum("qk,qkg->qg", selection.weights, bank.values[np.maximum(selection.rows, 0)])


def cited_response(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """What the cited rows say, and nothing beside it."""
    evidence = mean_response(bank, selection)
    return Answer(evidence, np.zeros_like(evidence))


def divided(bank: Bank, selection: Selection, response: np.ndarray, otherwise: np.ndarray) -> Answer:
    """A response as evidence, which is `otherwise` where nobody is cited, and the rest."""
    cites = selection.weights.any(axis=1, keepdims=True)
    evidence = np.where(cites, mean_response(bank, selection), otherwise)
    return Answer(evidence, response - evidence)


def shortened(selection: Selection, k: int) -> Selection:
    """Cited rows first, at most `k` of them."""
    order = np.argsort(-selection.weights, axis=1, kind="stable")[:, :k]
    parts = (selection.rows, selection.weights, selection.distances)
    rows, weights, distances = (np.take_along_axis(part, order, axis=1) for part in parts)
    return replace(selection, rows=rows, weights=weights, distances=distances)


def pool_mean(bank: Bank, query: Query) -> np.ndarray:
    """(q, g) mean response of each query's pool."""
    out = np.zeros((len(query.key), bank.values.shape[1]))
    for queries, rows in patterns(query.pool(bank)):
        out[queries] = bank.values[rows].mean(axis=0)
    return out


def closed_rows(bank: Bank) -> np.ndarray:
    """(m, m) rows that each row may not use: its own perturbation in any context, and combinations that hold it.

    So a row is as new to the rest as a perturbation that nobody has measured. A combination may use its parts.
    """
    perturbed = [set(genes) for genes in bank.screen.perturbed]
    holds = np.array([[genes <= others for others in perturbed] for genes in perturbed], dtype=bool)
    return holds | (bank.folds[:, None] == bank.folds[None, :])


def ask_rows(bank: Bank, rows: np.ndarray, closed: np.ndarray) -> Query:
    """Rows of the bank as queries."""
    return Query(
        bank.key[rows],
        perturbed=tuple(bank.screen.perturbed[row] for row in rows),
        contexts=bank.sections[rows],
        eligible=~closed[rows],
    )


def reliance(bank: Bank, rows: np.ndarray) -> np.ndarray:
    """(n,) how much each held-out row counts: by its reliability."""
    return np.clip(bank.screen.reliability[rows], _LEAST_WEIGHT, 1)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) cosines of rows; zero where there is nothing."""
    size = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(axis=1), size, out=np.zeros(len(size)), where=size > _TINY)


def shape_halves(bank: Bank, n_components: int | None = _MAX_COMPONENTS) -> tuple[Bank, Bank]:
    """The bank with the responses against either half of the controls, without their mean over genes, in few axes.

    The axes keep inner products of such responses, all of them with `None`, else up to what more than `n_components`
    of them would add: correlations over genes are cosines among few numbers.
    """
    first, second = (half - half.mean(axis=1, keepdims=True) for half in bank.screen.halves)
    same = np.array_equal(first, second)
    rows = first if same else np.concatenate([first, second])
    size, axes = np.linalg.eigh(rows @ rows.T)
    n_axes = max(1, int((size > 1e-12 * max(float(size[-1]), 1e-300)).sum()))
    n_axes = n_axes if n_components is None else min(n_axes, n_components)
    # As many rows as there are give their own axes.
    coordinates = largest_positive(axes[:, ::-1][:, :n_axes]) * np.sqrt(np.maximum(size[::-1][:n_axes], 0))
    values = (coordinates, coordinates) if same else (coordinates[: len(first)], coordinates[len(first) :])
    screen = replace(bank.screen, halves=values)
    return replace(bank, values=values[0], screen=screen), replace(bank, values=values[1], screen=screen)


def same_perturbation(bank: Bank, query: Query) -> np.ndarray:
    """(q, m) rows of each query's perturbation, whether it may use them or not."""
    rows = bank.screen.perturbed
    return np.array([[asked == measured for measured in rows] for asked in query.perturbed], dtype=bool)


def familiar(bank: Bank, query: Query) -> np.ndarray:
    """(q,) whether a gene of the query is perturbed in a row that it may use."""
    shares = [[not set(genes).isdisjoint(other) for other in bank.screen.perturbed] for genes in query.perturbed]
    return (np.array(shares, dtype=bool) & query.eligible).any(axis=1)


def respond_to(method: Method, bank: Bank, query: Query) -> tuple[Selection, Answer]:
    """The rows that a fitted method selects, and what it answers from them."""
    parameters = bank.fit.parameters
    selection = select_none(query) if method.select is None else method.select(parameters, bank, query)
    return selection, method.answers(parameters, bank, selection)


class Group(NamedTuple):
    """Queries of one context that may use the same rows."""

    context: int
    queries: np.ndarray
    allowed: np.ndarray
    """(a,) rows that may be used."""
    here: np.ndarray
    """(n,) places in `allowed` of the rows of the context, or of all where it has none."""
    key: np.ndarray
    """(n + q + e, d) embeddings of rows here, of the queries, and of perturbations measured in other contexts only."""
    elsewhere: np.ndarray
    """(n + q + e, a) shares of the rows that perturb the same in other contexts; zero where there are none."""


def grouped(bank: Bank, query: Query, at_once: int | None = None) -> Iterator[Group]:
    """Queries by context and by the rows that they may use, at most `at_once` together."""
    codes = {genes: code for code, genes in enumerate(dict.fromkeys(bank.screen.perturbed))}
    every = np.array([codes[genes] for genes in bank.screen.perturbed])
    of_queries = np.array([codes.get(genes, -1) for genes in query.perturbed], dtype=np.int64)
    for context in np.unique(query.contexts):
        mine = np.flatnonzero(query.contexts == context)
        for some, allowed in patterns(query.eligible[mine]):
            sections, of_rows = bank.sections[allowed], every[allowed]
            here = np.flatnonzero(sections == context)
            here = here if len(here) else np.arange(len(allowed))
            known, first = np.unique(of_rows, return_index=True)
            only = first[~np.isin(known, of_rows[here])]
            for start in range(0, len(some), at_once or len(some)):
                queries = mine[some[start : start + (at_once or len(some))]]
                asked = np.concatenate([of_rows[here], of_queries[queries], of_rows[only]])
                contexts = np.concatenate([sections[here], np.full(len(queries) + len(only), context)])
                same = (asked[:, None] == of_rows) & (contexts[:, None] != sections)
                share = same / np.maximum(same.sum(axis=1, keepdims=True), 1)
                key = np.concatenate([bank.key[allowed[here]], query.key[queries], bank.key[allowed[only]]])
                yield Group(int(context), queries, allowed, here, key, share)


def means_at(values: np.ndarray, codes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(n, g) mean of the rows of each group in `at`; of all rows for a group that has none."""
    known, group = np.unique(codes, return_inverse=True)
    member = np.eye(len(known))[group]
    means = member.T @ values / member.sum(axis=0)[:, None]
    place = np.minimum(np.searchsorted(known, at), len(known) - 1)
    return np.where((known[place] == at)[:, None], means[place], values.mean(axis=0))


def relative(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n, g) rows relative to the means of their groups."""
    return values - means_at(values, codes, codes)


def cite(bank: Bank, query: Query, weights: np.ndarray) -> Selection:
    """The rows with the largest of (q, m) weights, as shares of what is cited."""
    rows = np.argsort(-weights, axis=1, kind="stable")[:, : query.n_neighbors]
    weights = np.take_along_axis(weights, rows, axis=1)
    rows = np.where(weights > 0, rows, -1)
    return Selection(query.key, rows, normalised(weights), distances_to(bank, query, rows), query=query)
