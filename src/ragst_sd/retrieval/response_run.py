"""The runner of responses: what a fitted method answers about perturbations, by the names of the fields of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.evidence import effective_n, evidence_share
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.responses import respond_to, same_perturbation

# Numbers held at once: queries x candidates x genes.
_AT_ONCE = 3e7
UNSEEN, UNSEEN_HERE, MEASURED_HERE = "unseen perturbation", "unseen here", "measured here"
IN_COMBINATION = "measured in a combination"


def respond(method: Method, bank: Bank, query: Query, advance: Callable[[int], Any]) -> dict[str, np.ndarray]:
    """Values of all queries, a few at a time; `advance` is told how many of them were answered."""
    chunk, parts = at_once(bank), []
    if method.once is not None:
        query = replace(query, worked=method.once(bank.fit.parameters, bank, query))
    for start in range(0, len(query), chunk):
        part = query.some(np.arange(start, min(start + chunk, len(query))))
        parts.append(respond_to(method, bank, part))
        advance(len(part))
    return values_of(bank, query, parts)


def at_once(bank: Bank) -> int:
    """Queries to answer together: each is compared with its candidates over all genes."""
    return max(1, int(_AT_ONCE / (min(bank.fit.n_candidates, len(bank)) * len(bank.genes))))


def values_of(
    bank: Bank,
    query: Query,
    parts: Sequence[tuple[Selection, Answer]],
    share: np.ndarray | None = None,
    lines: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Answers by the names of the fields that they become.

    Parameters
    ----------
    share
        (n,) share of the evidence in each; computed if left out.
    lines
        (n,) query that each answer is of, where it is not one each.
    """
    selections, answers = zip(*parts, strict=True)
    rows, weights, distances = _stacked(selections)
    evidence, adjustment = (
        np.concatenate([getattr(part, name) for part in answers]) for name in ("evidence", "adjustment")
    )
    if share is None:
        share = evidence_share(evidence, adjustment, bank.values.mean(axis=0))
    # The last place is that of -1.
    reliability = np.append(bank.obs["reliability"].to_numpy(np.float64), 0.0)[rows]
    total, unknown = weights.sum(axis=1), np.full(len(weights), np.nan)
    values = {
        "retrieval_rows": rows,
        "retrieval_weights": weights,
        "retrieval_distances": distances,
        "evidence": evidence,
        "response": evidence + adjustment,
        "effective_n": effective_n(weights),
        "evidence_share": share,
        "cited_reliability": np.divide((weights * reliability).sum(axis=1), total, out=unknown, where=total > 0),
        "task": _tasks(bank, query)[slice(None) if lines is None else lines],
    }
    if answers[0].explained is not None:
        values["embedding_share"] = np.concatenate([part.explained for part in answers])
    return values


def no_response(n: int, n_genes: int, k: int = 1) -> dict[str, np.ndarray]:
    """The values of no response, that rests on no rows."""
    nothing, unknown = np.zeros((n, n_genes)), np.full((n, k), np.nan)
    return {
        "retrieval_rows": np.full((n, k), -1),
        "retrieval_weights": np.zeros((n, k)),
        "retrieval_distances": unknown,
        **dict.fromkeys(("evidence", "response"), nothing),
        **dict.fromkeys(("effective_n", "evidence_share", "cited_reliability"), unknown[:, 0]),
        "task": np.full(n, "control", dtype=object),
    }


def _tasks(bank: Bank, query: Query) -> np.ndarray:
    """(q,) what the rows that may be used hold of each perturbation.

    Nothing, a combination that holds it, another context's response, or this one's.
    """
    rows = bank.screen.perturbed
    same = same_perturbation(bank, query) & query.eligible
    holds = np.array([[set(asked) <= set(row) for row in rows] for asked in query.perturbed]) & query.eligible
    here = same & (query.contexts[:, None] == bank.sections)
    known = [part.any(axis=1) for part in (here, same, holds)]
    return np.select(known, [MEASURED_HERE, UNSEEN_HERE, IN_COMBINATION], UNSEEN).astype(object)


def _stacked(selections: Sequence[Selection]) -> list[np.ndarray]:
    """Rows, weights and distances, in the width of the query that cites most rows."""
    width = max(part.rows.shape[1] for part in selections)
    out = []
    for name, missing in (("rows", -1), ("weights", 0.0), ("distances", np.nan)):
        arrays = [getattr(part, name) for part in selections]
        padded = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=missing) for x in arrays]
        out.append(np.concatenate(padded))
    return out
