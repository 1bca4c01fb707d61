"""Stage 1 over a bank that need not fit into memory: exact search in one block of rows after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragst_sd.retrieval.search import Candidates, Eligibility, search

_BLOCK_ROWS = 65_536


def search_in_blocks(
    queries: np.ndarray,
    bank: Any,
    k: int,
    *,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    block_rows: int = _BLOCK_ROWS,
    **options: Any,
) -> Candidates:
    """Find the `k` nearest eligible rows of each query.

    Rows and distances are the same as those of :func:`ragst_sd.retrieval.search.search`.

    Parameters
    ----------
    queries
        (n, d) float array.
    bank
        (m, d), anything that gives an array for a slice of its rows.
    eligibility, tie_order
        As in :func:`ragst_sd.retrieval.search.search`.
    block_rows
        Rows of the bank that are in memory at once.
    options
        `metric` and `device` of :func:`ragst_sd.retrieval.search.search`.
    """
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    for start in range(0, bank.shape[0], block_rows):
        part = slice(start, min(start + block_rows, bank.shape[0]))
        found = search(
            queries,
            np.asarray(bank[part]),
            k,
            eligibility=eligibility.of_rows(part),
            tie_order=tie_order[part],
            backend="exact",
            # Rows farther away than the k that are known already are of no use.
            within=distances[:, -1],
            **options,
        )
        both = np.concatenate([rows, np.where(found.rows >= 0, found.rows + start, -1)], axis=1)
        apart = np.concatenate([distances, np.where(found.rows >= 0, found.distances, np.inf)], axis=1)
        order = np.lexsort((tie_order[both], apart), axis=1)[:, :k]
        rows, distances = np.take_along_axis(both, order, axis=1), np.take_along_axis(apart, order, axis=1)
    return Candidates(rows, np.where(rows >= 0, distances, np.nan))
