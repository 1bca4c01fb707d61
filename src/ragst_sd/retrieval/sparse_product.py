"""Weighted sums of rows of a sparse bank, query by query, without a dense copy of any row.

A query adds its rows up one after the other, in the order in which they are cited. So its sum depends neither on the
other queries, nor on threads, nor on the order of the bank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ragst_sd.retrieval.threads import on_threads

_QUERIES_PER_CALL = 64


def sparse_product(rows: np.ndarray, weights: np.ndarray, values: Any) -> np.ndarray:
    """(n, g) float32 sums of weighted rows of a CSR matrix.

    Compiled with numba, several times as quick as scipy's sparse product, which adds up in the same order.

    Parameters
    ----------
    rows
        (n, k), -1 for none.
    weights
        (n, k) float32, zero for none.
    values
        (m, g) CSR whose indices were checked, as :func:`ragst_sd.reference.normalize.as_csr` does: compiled code follows
        them wherever they lead.
    """
    return _over_queries(_add_up, rows, weights, values, (), np.float32)


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
    if not hasattr(values, "tocsr"):
        from scipy.sparse import csr_matrix

        n, k = rows.shape
        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        parts = (weights.ravel().astype(np.float64), local.ravel(), np.arange(0, n * k + 1, k))
        y = np.asarray(values[cited], dtype=np.float64)
        y *= y - (0.0 if shifted is None else 2 * shifted[1][shifted[0][cited]])
        return csr_matrix(parts, shape=(n, len(cited))) @ y
    sections, shifts = (np.zeros(1), np.zeros((0, 0))) if shifted is None else shifted
    shifted = np.ascontiguousarray(sections, dtype=np.int64), np.ascontiguousarray(shifts, dtype=np.float64)
    return _over_queries(_add_up_squares, rows, weights, values, shifted, np.float64)


def _over_queries(
    function: Callable[..., None],
    rows: np.ndarray,
    weights: np.ndarray,
    values: Any,
    shifted: tuple[np.ndarray, ...],
    dtype: type,
) -> np.ndarray:
    """Call compiled code for some queries after the other, on several threads."""
    values = values.tocsr()
    # Unsigned, so that compiled code need not ask whether one counts from the end.
    add_up, indices = _compiled(function), values.indices.view(f"u{values.indices.itemsize}")
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=dtype)
    out = np.zeros((len(rows), values.shape[1]), dtype)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        add_up(rows[part], weights[part], values.indptr, indices, values.data, *shifted, out[part])

    # Numba's own threads must not be entered from two threads at once, as under a scheduler they would be.
    on_threads(some, range(0, len(rows), _QUERIES_PER_CALL))
    return out


@cache
def _compiled(function: Callable) -> Callable:
    """The function compiled by numba."""
    from numba import njit

    try:
        # Kept on disk, so that only the first process of all waits for it.
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the folder of the package nor the user's may be written to.
        return njit(nogil=True)(function)


def _add_up(rows, weights, indptr, indices, data, out):
    for i in range(rows.shape[0]):
        total = out[i]
        for j in range(rows.shape[1]):
            row = rows[i, j]
            weight = weights[i, j]
            if row < 0 or weight == 0:
                continue
            first, last = indptr[row], indptr[row + 1]
            genes, values = indices[first:last], data[first:last]
            for p in range(genes.size):
                total[genes[p]] += weight * np.float32(values[p])


def _add_up_squares(rows, weights, indptr, indices, data, sections, shifts, out):
    for i in range(rows.shape[0]):
        total = out[i]
        for j in range(rows.shape[1]):
            row = rows[i, j]
            weight = weights[i, j]
            if row < 0 or weight == 0:
                continue
            section = sections[row] if shifts.shape[0] else 0
            for p in range(indptr[row], indptr[row + 1]):
                gene = indices[p]
                value = np.float64(data[p])
                double_shift = 2 * shifts[section, gene] if shifts.shape[0] else 0.0
                total[gene] += weight * (value * (value - double_shift))
