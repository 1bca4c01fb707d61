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
        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        return _scipy_product(local.reshape(n, k), weights, values[cited].astype(np.float32, copy=False))
    values = values.tocsr()
    out = np.zeros((n, values.shape[1]), dtype=np.float32)
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=np.float32)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        kernel(rows[part], weights[part], values.indptr, values.indices, values.data, out[part])

    over_threads(some, range(0, n, _QUERIES_PER_CALL))
    return out


def sparse_squares(
    rows: np.ndarray, weights: np.ndarray, values: Any, shifted: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    r"""(n, g) float64 weighted sums of :math:`y (y - 2 \delta)`, which is zero where y is, so that a bank stays sparse.

    Parameters
    ----------
    rows, weights
        As in :func:`sparse_product`.
    values
        (m, g), CSR or dense.
    shifted
        (m,) section of each row and (sections, g) shift :math:`\delta` of each section; zero if left out.
    """
    sections, shifts = (np.zeros(1, dtype=np.int64), np.zeros((0, 0))) if shifted is None else shifted
    if not hasattr(values, "tocsr"):
        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        own = np.asarray(values[cited], dtype=np.float64)
        own = own * (own - (0.0 if shifted is None else 2 * shifts[sections[cited]]))
        left = np.zeros((len(rows), len(cited)))
        np.add.at(left, (np.repeat(np.arange(len(rows)), rows.shape[1]), local.ravel()), weights.ravel())
        return left @ own
    kernel = _squares_kernel()
    values = values.tocsr()
    if kernel is None:
        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        own = values[cited].astype(np.float64)
        row = np.repeat(np.arange(own.shape[0]), np.diff(own.indptr))
        own.data = own.data * (own.data - (0.0 if shifted is None else 2 * shifts[sections[cited][row], own.indices]))
        return _scipy_product(local.reshape(rows.shape), weights.astype(np.float64), own)
    out = np.zeros((len(rows), values.shape[1]))
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=np.float64)
    sections, shifts = np.ascontiguousarray(sections, dtype=np.int64), np.ascontiguousarray(shifts, dtype=np.float64)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        kernel(rows[part], weights[part], values.indptr, values.indices, values.data, sections, shifts, out[part])

    over_threads(some, range(0, len(rows), _QUERIES_PER_CALL))
    return out


def _scipy_product(local: np.ndarray, weights: np.ndarray, values: Any) -> np.ndarray:
    from scipy.sparse import csr_matrix

    n, k = local.shape
    left = csr_matrix((weights.ravel(), local.ravel(), np.arange(0, n * k + 1, k)), shape=(n, values.shape[0]))
    return (left @ values).toarray()


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
            total = out[i]
            for j in range(rows.shape[1]):
                row = rows[i, j]
                weight = weights[i, j]
                if row < 0 or weight == 0:
                    continue
                own, values = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
                for p in range(own.size):
                    # Unsigned, so that no index is taken to count from the end.
                    total[np.uint32(own[p])] += weight * np.float32(values[p])

    return njit(nogil=True)(add_up)


@cache
def _squares_kernel() -> Callable[..., None] | None:
    try:
        from numba import njit
    except ImportError:
        return None

    def add_up(rows, weights, indptr, indices, data, sections, shifts, out):
        for i in range(rows.shape[0]):
            for j in range(rows.shape[1]):
                row = rows[i, j]
                weight = weights[i, j]
                if row < 0 or weight == 0:
                    continue
                for p in range(indptr[row], indptr[row + 1]):
                    gene = indices[p]
                    value = np.float64(data[p])
                    double_shift = 2 * shifts[sections[row], gene] if shifts.shape[0] else 0.0
                    out[i, gene] += weight * (value * (value - double_shift))

    return njit(nogil=True)(add_up)
