"""Functions of rows whose result for a row does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ragst_sd.retrieval.threads import one_thread

# A block of values of all genes is then small enough for its memory to be used again, and not asked for anew.
_BLOCK = 128


@one_thread()
def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, width: int) -> np.ndarray:
    """Apply a function of (128, p) rows to (n, p) rows, giving (n, width); the last block is filled up with zeros.

    Linear algebra rounds differently for matrices of different shapes, so every block has the same one.
    """
    out = np.empty((len(rows), width))
    block = np.zeros((_BLOCK, rows.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        block[: len(part)] = part
        block[len(part) :] = 0
        out[start : start + len(part)] = function(block)[: len(part)]
    return out


def product_in_blocks(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, width) product of (n, p) rows with a (p, width) matrix, in blocks of one shape: see :func:`in_blocks`."""
    return in_blocks(lambda block: block @ matrix, rows, matrix.shape[1])


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of the Gaussian error linear unit, as torch has it with `approximate="tanh"`."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def known_sum(values: np.ndarray, axis: int) -> np.ndarray:
    """float64 sums over rows or columns of (n, g) values; what is NaN counts as nothing."""
    total = values.sum(axis=axis, dtype=np.float64)
    # `nansum` copies all values, of which few are ever NaN.
    unknown = np.isnan(total)
    if unknown.any():
        total[unknown] = np.nansum(values[:, unknown] if axis == 0 else values[unknown], axis=axis, dtype=np.float64)
    return np.asarray(total)
