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
_OUTSIDE = (
    "The sparse matrix of the reference points outside of itself: rows, columns or sections that it does not have are named. "
    "It is damaged; build or read the reference again."
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
    n, k = rows.shape
    kernel = _kernel()
    _require_inside(rows, values)
    values = values.tocsr()
    if kernel is None:
        cited, local = np.unique(np.maximum(rows, 0), return_inverse=True)
        return _scipy_product(local.reshape(n, k), weights, values[cited].astype(np.float32, copy=False))
    out = np.zeros((n, values.shape[1]), dtype=np.float32)
    rows, weights = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(weights, dtype=np.float32)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        kernel(rows[part], weights[part], values.indptr, _unsigned(values.indices), values.data, out[part])

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

    Raises
    ------
    ValueError
        If a row that is cited, a column of its values, or its section is not there.
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
    _require_inside(rows, values)
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
    if shifted is not None:
        named = sections[rows[rows >= 0]] if len(sections) >= values.shape[0] else np.array([-1])
        if shifts.shape[1] < values.shape[1] or np.any((named < 0) | (named >= len(shifts))):
            raise ValueError(_OUTSIDE)

    def some(start: int) -> None:
        part = slice(start, start + _QUERIES_PER_CALL)
        kernel(
            rows[part],
            weights[part],
            values.indptr,
            _unsigned(values.indices),
            values.data,
            sections,
            shifts,
            out[part],
        )

    over_threads(some, range(0, len(rows), _QUERIES_PER_CALL))
    return out


def _require_inside(rows: np.ndarray, values: Any) -> None:
    """Neither compiled code nor scipy looks whether a row or a column is there before it reads it, and a matrix may come from a stranger."""
    if rows.size and rows.max() >= values.shape[0]:
        raise ValueError(_OUTSIDE)
    check = _check()
    # Of a CSR matrix only the cited rows are read; another format is read whole when it is made one.
    if check is None or values.format != "csr":
        _require_whole(values)
        return
    if len(values.indptr) != values.shape[0] + 1:
        raise ValueError(_OUTSIDE)
    cited = np.zeros(values.shape[0], dtype=bool)
    cited[rows[rows >= 0]] = True
    whole = min(values.indices.size, values.data.size)
    if not check(np.flatnonzero(cited), values.indptr, _unsigned(values.indices), whole, values.shape[1]):
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
def _check() -> Callable[..., bool] | None:
    """Whether the rows of a CSR matrix lie within its values, and their columns within its columns."""
    try:
        from numba import njit
    except ImportError:
        return None

    def inside(rows, indptr, indices, n_values, n_columns):
        for i in range(rows.size):
            first, last = indptr[rows[i]], indptr[rows[i] + 1]
            if first < 0 or last < first or last > n_values:
                return False
            own = indices[first:last]
            if own.size and own.max() >= n_columns:
                return False
        return True

    return njit(nogil=True)(inside)


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
                first, last = indptr[row], indptr[row + 1]
                own, values = indices[first:last], data[first:last]
                for p in range(own.size):
                    total[own[p]] += weight * np.float32(values[p])

    return njit(nogil=True)(add_up)


@cache
def _squares_kernel() -> Callable[..., None] | None:
    try:
        from numba import njit
    except ImportError:
        return None

    def add_up(rows, weights, indptr, indices, data, sections, shifts, out):
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

    return njit(nogil=True)(add_up)
