"""Methods without training that cite measured responses: of near, random, own or single perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.gate import distance_gate, uniform_gate
from ragst_sd.retrieval.responses import candidates, cite, distances_to
from ragst_sd.retrieval.search import Candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragst_sd.retrieval.responses import Answer, Asked, Bank


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
