"""Weighted sums of rows of a sparse bank, query by query, without a dense copy of any row.

A query adds its rows up one after the other, in the order in which they are cited. So its sum depends neither on the other queries,
nor on threads, nor on the order of the bank.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_QUERIES_PER_CALL = 64


def sparse_product(rows: np.ndarray, weights: np.ndarray, values: Any) -> np.ndarray:
    """(n, g) float32 sums of weighted rows of a CSR matrix.

    Compiled with numba where it is installed, else by scipy's sparse product; both add up in the same order.

    Parameters
    ----------
    rows
        (n, k), -1 for none.
    weights
        (n, k) float32, zero for none.
    values
        (m, g) CSR.
    """
    n, k = rows.shape
    kernel = _kernel()
    if kernel is None:
        from scipy.sparse import csr_matrix

        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        left = csr_matrix((weights.ravel(), local.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(cited)))
        return (left @ values[cited].astype(np.float32, copy=False)).toarray()
    values = values.tocsr()
    out = np.zeros((n, values.shape[1]), dtype=np.float32)
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=np.float32)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        kernel(rows[part], weights[part], values.indptr, values.indices, values.data, out[part])

    over_threads(some, range(0, n, _QUERIES_PER_CALL))
    return out


def over_threads(function: Callable[[int], None], starts: range) -> None:
    """Call a function that lets go of the interpreter for each start, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        for start in starts:
            function(start)
        return
    # Numba's own threads must not be entered from two threads at once, as under a scheduler they would be.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, starts))


@cache
def _kernel() -> Callable[..., None] | None:
    try:
        from numba import njit
    except ImportError:
        return None

    def add_up(rows, weights, indptr, indices, data, out):
        for i in range(rows.shape[0]):
            for j in range(rows.shape[1]):
                row = rows[i, j]
                weight = weights[i, j]
                if row < 0 or weight == 0:
                    continue
                for p in range(indptr[row], indptr[row + 1]):
                    out[i, indices[p]] += weight * np.float32(data[p])

    return njit(nogil=True)(add_up)
