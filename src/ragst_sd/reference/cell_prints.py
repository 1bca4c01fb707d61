"""Cells that are recognised by what was measured in them, whatever they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp

# Values of the genes with the highest mean are enough to tell cells apart, whose noise differs.
_N_GENES = 32
# Fewer values than this may agree by chance.
_FEWEST = 8
# Between counts of unit length: rounding leaves 1e-6, and the noise of two cells of ten million counts 1e-3.
_SAME = 1e-4


def cell_prints(values: sp.csr_matrix, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """What cells of a log scale are recognised by: some `genes`, and their `values`, one row per cell."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    top = np.sort(np.argsort(-mean, kind="stable")[:_N_GENES])
    return {"genes": np.asarray(genes, dtype=str)[top], "values": values[:, top].toarray().astype(np.float32)}


def recognised(values: sp.csr_matrix, genes: Sequence[str], known: Mapping[str, Any]) -> np.ndarray:
    """(cells,) which cells are among the known ones: the same counts, up to one factor, in all genes that both have."""
    from scipy.spatial import cKDTree

    place = {str(gene): i for i, gene in enumerate(genes)}
    shared = [(i, place[str(gene)]) for i, gene in enumerate(known["genes"]) if str(gene) in place]
    if len(shared) < _FEWEST:
        return np.zeros(values.shape[0], dtype=bool)
    theirs, ours = np.array(shared).T
    bank, _ = _unit(np.asarray(known["values"])[:, theirs])
    asked, rows = _unit(values[:, ours].toarray())
    found = np.zeros(values.shape[0], dtype=bool)
    if len(bank):
        found[rows] = np.isfinite(cKDTree(bank).query(asked, distance_upper_bound=_SAME)[0])
    return found


def _unit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of unit length from their logarithms, of the rows that have enough of them, and these rows."""
    counts = np.expm1(values.astype(np.float64))
    # A difference of two float32 numbers is not exactly zero where it should be.
    rows = np.flatnonzero((counts > _SAME).sum(axis=1) >= _FEWEST)
    return counts[rows] / np.linalg.norm(counts[rows], axis=1, keepdims=True), rows
