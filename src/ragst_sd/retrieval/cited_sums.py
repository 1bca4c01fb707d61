"""Weighted sums of rows of a bank, query by query, without a dense copy of any row of a sparse one.

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


def cited_sums(
    rows: np.ndarray, weights: np.ndarray, values: Any, shifted: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    r"""(n, g) weighted sums of rows y, in float32; with shifts of :math:`y (y - 2 \delta)`, in float64.

    Both are zero where y is, so that a bank stays sparse. Of a sparse bank they are compiled with numba, several times
    as quick as scipy's sparse product.

    Parameters
    ----------
    rows
        (n, k), -1 for none.
    weights
        (n, k), zero for none.
    values
        (m, g), dense, or sparse with indices that were checked, as :func:`ragst_sd.reference.normalize.as_csr` does:
        compiled code follows them wherever they lead.
    shifted
        (m,) section of each row and (sections, g) shift :math:`\delta` of each section; without shifts if left out.
    """
    weights = weights.astype(np.float32 if shifted is None else np.float64)
    if hasattr(values, "tocsr"):
        return _over_queries(rows, weights, values.tocsr(), shifted)
    from scipy.sparse import csr_matrix

    n, k = rows.shape
    cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
    y = np.asarray(values[cited], dtype=weights.dtype)
    if shifted is not None:
        sections, shifts = shifted
        y *= y - 2 * shifts[sections[cited]]
    return csr_matrix((weights.ravel(), local.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(cited))) @ y


def _over_queries(
    rows: np.ndarray, weights: np.ndarray, values: Any, shifted: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """The sums of a sparse bank: compiled code is called for a few queries at a time, on several threads."""
    # Unsigned, so that compiled code need not ask whether one counts from the end.
    matrix = values.indptr, values.indices.view(f"u{values.indices.itemsize}"), values.data
    sections, shifts = (np.zeros(0), np.zeros((0, 0))) if shifted is None else shifted
    shifted = np.ascontiguousarray(sections, dtype=np.int64), np.ascontiguousarray(shifts, dtype=np.float64)
    add_up, rows = _compiled(_add_up), np.ascontiguousarray(rows, dtype=np.int64)
    out = np.zeros((len(rows), values.shape[1]), weights.dtype)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        add_up(rows[part], weights[part], *matrix, *shifted, out[part])

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


def _add_up(rows, weights, indptr, indices, data, sections, shifts, out):
    """Add the cited rows of each query to its line of `out`; what numba compiles."""
    for i in range(rows.shape[0]):
        total = out[i]
        for j in range(rows.shape[1]):
            row, weight = rows[i, j], weights[i, j]
            if row < 0 or weight == 0:
                continue
            first, last = indptr[row], indptr[row + 1]
            genes, values = indices[first:last], data[first:last]
            if shifts.shape[0] == 0:
                for p in range(genes.size):
                    total[genes[p]] += weight * np.float32(values[p])
            else:
                shift = shifts[sections[row]]
                for p in range(genes.size):
                    value = np.float64(values[p])
                    total[genes[p]] += weight * (value * (value - 2 * shift[genes[p]]))
