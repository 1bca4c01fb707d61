"""Stacking the rows of many sections without holding them twice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp


def stack_rows(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenate one array or more along their rows.

    The result grows with every part, so that an iterable which gives its parts away needs the memory of the result and
    of the parts still to come, not of twice the result.
    """
    parts = iter(parts)
    out = np.array(next(parts), order="C")
    for part in parts:
        n = len(out)
        # Nobody else has seen `out` yet, which is what the check would be about.
        out.resize((n + len(part), *part.shape[1:]), refcheck=False)
        out[n:] = part
    return out


def stack_matrices(parts: list[sp.csr_matrix]) -> sp.csr_matrix:
    """Stack canonical CSR matrices with the same columns; `parts` is emptied on the way."""
    width = parts[0].shape[1]
    lengths = [np.diff(part.indptr) for part in parts]
    pieces = [(part.data, part.indices) for part in parts]
    parts.clear()
    total = int(sum(int(own.sum()) for own in lengths))
    kind = np.int32 if max(total, width) < np.iinfo(np.int32).max else np.int64
    values, columns = [one[0] for one in pieces], [one[1] for one in pieces]
    pieces.clear()
    data = stack_rows(_given_away(values))
    indices = stack_rows(_given_away(columns)).astype(kind, copy=False)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(kind)
    return sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, width))


def _given_away(parts: list[np.ndarray]) -> Iterable[np.ndarray]:
    """The arrays of a list, which loses each before the next one is asked for."""
    parts.reverse()
    while parts:
        yield parts.pop()
