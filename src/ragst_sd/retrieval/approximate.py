"""Candidates from an approximate neighbour graph (pynndescent), for banks too large for exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ragst_sd.retrieval.search import Eligibility

_OVERFETCH = 2
_MARGIN = 32


def approximate_candidates(
    queries: np.ndarray, bank: np.ndarray, k: int, eligibility: Eligibility, rng: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of each query, eligible ones only, and the queries that came out with fewer than `k`.

    Returns
    -------
    (n, fetched) rows with -1 in place of ineligible ones, and the indices of queries that hold fewer than `k` although
    more rows are eligible: these need the exact search.
    """
    from pynndescent import NNDescent

    fetched = min(len(bank), _OVERFETCH * k + _MARGIN)
    graph = NNDescent(bank.astype(np.float32), metric="euclidean", n_neighbors=min(30, len(bank) - 1), random_state=rng)
    rows, _ = graph.query(queries.astype(np.float32), k=fetched, epsilon=0.2)
    rows = rows.astype(np.int64)
    eligible = eligibility.allowed[rows]
    for e in range(eligibility.query_groups.shape[1]):
        eligible &= eligibility.query_groups[:, e, None] != eligibility.bank_groups[rows, e]
    rows[~eligible] = -1
    short = eligible.sum(axis=1) < np.minimum(k, eligibility.count())
    return rows, np.flatnonzero(short)
