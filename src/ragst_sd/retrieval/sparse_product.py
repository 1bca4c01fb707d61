"""Weighted sums of rows of a sparse bank, query by query, without a dense copy of any row.

A query adds its rows up one after the other, in the order in which they are cited. So its sum depends neither on the
other queries, nor on threads, nor on the order of the bank.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.threads import on_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse import csr_matrix

_QUERIES_PER_CALL = 64
_OUTSIDE = (
    "The sparse matrix of the reference points outside of itself: rows, columns or sections that it does not have "
    "are named. It is damaged; build or read the reference again."
)


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

    Raises
    ------
    ValueError
        If a row that is cited, or a column of its values, is not one of the matrix.
    """
    add_up = _compiled(_add_up)
    _require_inside(rows, values)
    values = values.tocsr()
    if add_up is None:
        cited, left = weights_of_cited(rows, weights)
        return (left @ values[cited].astype(np.float32, copy=False)).toarray()
    out = np.zeros((len(rows), values.shape[1]), dtype=np.float32)
    return _over_queries(add_up, rows, weights, values, (), out)


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

    Raises
    ------
    ValueError
        If a row that is cited, a column of its values, or its section is not there.
    """
    sections, shifts = (np.zeros(1, dtype=np.int64), np.zeros((0, 0))) if shifted is None else shifted
    weights = weights.astype(np.float64, copy=False)
    if not hasattr(values, "tocsr"):
        cited, left = weights_of_cited(rows, weights)
        own = np.asarray(values[cited], dtype=np.float64)
        return left @ (own * (own - (0.0 if shifted is None else 2 * shifts[sections[cited]])))
    add_up = _compiled(_add_up_squares)
    _require_inside(rows, values)
    values = values.tocsr()
    if add_up is None:
        cited, left = weights_of_cited(rows, weights)
        own = values[cited].astype(np.float64)
        row = np.repeat(np.arange(own.shape[0]), np.diff(own.indptr))
        own.data *= own.data - (0.0 if shifted is None else 2 * shifts[sections[cited][row], own.indices])
        return (left @ own).toarray()
    if shifted is not None:
        named = sections[rows[rows >= 0]] if len(sections) >= values.shape[0] else np.array([-1])
        if shifts.shape[1] < values.shape[1] or np.any((named < 0) | (named >= len(shifts))):
            raise ValueError(_OUTSIDE)
    sections, shifts = np.ascontiguousarray(sections, dtype=np.int64), np.ascontiguousarray(shifts, dtype=np.float64)
    return _over_queries(add_up, rows, weights, values, (sections, shifts), np.zeros((len(rows), values.shape[1])))


def weights_of_cited(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, csr_matrix]:
    """The rows of the bank that are cited, and their (queries, cited rows) weights, in the order of citation."""
    from scipy.sparse import csr_matrix

    n, k = rows.shape
    cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
    parts = (weights.ravel(), local.ravel(), np.arange(0, n * k + 1, k))
    return cited, csr_matrix(parts, shape=(n, len(cited)))


def _over_queries(
    add_up: Callable[..., None],
    rows: np.ndarray,
    weights: np.ndarray,
    values: Any,
    shifted: tuple[np.ndarray, ...],
    out: np.ndarray,
) -> np.ndarray:
    """Call compiled code for some queries after the other, on several threads."""
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=out.dtype)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        add_up(rows[part], weights[part], values.indptr, _unsigned(values.indices), values.data, *shifted, out[part])

    # Numba's own threads must not be entered from two threads at once, as under a scheduler they would be.
    on_threads(some, range(0, len(rows), _QUERIES_PER_CALL))
    return out


def _require_inside(rows: np.ndarray, values: Any) -> None:
    """Neither compiled code nor scipy checks that a row or column is there, and a matrix may come from a stranger."""
    if rows.size and rows.max() >= values.shape[0]:
        raise ValueError(_OUTSIDE)
    inside = _compiled(_inside)
    # Of a CSR matrix only the cited rows are read; another format is read whole when it is made one.
    if inside is None or values.format != "csr":
        _require_whole(values)
        return
    cited = np.zeros(values.shape[0], dtype=bool)
    cited[rows[rows >= 0]] = True
    n_values = min(values.indices.size, values.data.size)
    if len(values.indptr) != values.shape[0] + 1 or not inside(
        np.flatnonzero(cited), values.indptr, _unsigned(values.indices), n_values, values.shape[1]
    ):
        raise ValueError(_OUTSIDE)


def _unsigned(indices: np.ndarray) -> np.ndarray:
    """The same columns, of which none counts from the end: negative ones are too large."""
    return indices.view(f"u{indices.itemsize}")


def _require_whole(values: Any) -> None:
    from scipy.sparse import coo_matrix

    try:
        if not hasattr(values, "check_format"):
            # A matrix of coordinates, or one without compiled code on the way to it, looks at them when it is made.
            every = values.tocoo(copy=False)
            coo_matrix((every.data, (every.row, every.col)), shape=values.shape)
            return
        values.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(_OUTSIDE) from error
    if np.any(values.indptr[1:] < values.indptr[:-1]):
        # Not looked at by scipy where the last one says that there are no values.
        raise ValueError(_OUTSIDE)


@cache
def _compiled(function: Callable) -> Callable | None:
    """The function compiled by numba; None where numba is not installed."""
    try:
        from numba import njit
    except ImportError:
        return None
    try:
        # Kept on disk, so that only the first process of all waits for it.
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the folder of the package nor the user's may be written to.
        return njit(nogil=True)(function)


def _inside(rows, indptr, indices, n_values, n_columns):
    """Whether the rows of a CSR matrix lie within its values, and their columns within its columns."""
    for i in range(rows.size):
        first, last = indptr[rows[i]], indptr[rows[i] + 1]
        if first < 0 or last < first or last > n_values:
            return False
        own = indices[first:last]
        if own.size and own.max() >= n_columns:
            return False
    return True


def _add_up(rows, weights, indptr, indices, data, out):
    for i in range(rows.shape[0]):
        total = out[i]
        for j in range(rows.shape[1]):
            row = rows[i, j]
            weight = weights[i, j]
            if row < 0 or weight == 0:
                continue
            first, last = indptr[row], indptr[row + 1]
            own, values = indices[first:last], data[first:last]
            for p in range(own.size):
                total[own[p]] += weight * np.float32(values[p])


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
