"""Responses to perturbations: their names, means and errors, agreement of halves, and cells that are recognised."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

CONTROL = -1
"""Code of control cells where others have the code of their row."""
SEPARATOR = "+"
"""Between the genes of a combination."""

# Cells are recognised by the genes with the highest mean: these are enough to tell them apart, as their noise differs.
_N_GENES = 32
# Fewer values than this may agree by chance.
_FEWEST = 8
# Between counts of unit length: rounding leaves 1e-6, and the noise of two cells of ten million counts 1e-3.
_SAME = 1e-4


class Responses(NamedTuple):
    """Responses of the rows, each from its cells."""

    mean: np.ndarray
    """(rows, g) mean response."""
    error: np.ndarray
    """(rows, g) its standard error; NaN for a row of one cell."""
    n_cells: np.ndarray
    """(rows,) cells."""


def mean_responses(values: sp.csr_matrix, row: np.ndarray, stratum: np.ndarray, n_rows: int) -> Responses:
    r"""Mean difference from the controls of the same stratum (context and batch).

    .. math:: \Delta_r = \frac{1}{n_r} \sum_{i \in r} (y_i - \bar c_{s(i)}), \qquad
              \mathrm{SE}_r^2 = \frac{v_r}{n_r} + \sum_s \Big(\frac{n_{rs}}{n_r}\Big)^2 \frac{v_s}{m_s}

    with :math:`v_r` the variance of the differences, and :math:`v_s` that of the :math:`m_s` controls of a stratum.

    Parameters
    ----------
    values
        (n, g) expression of the cells.
    row
        (n,) row of the result that a cell belongs to, -1 for controls.
    stratum
        (n,) context and batch of a cell, from 0. Every stratum of a perturbed cell holds two controls or more.
    n_rows
        Number of rows.
    """
    values = values.astype(np.float64)
    square = values.power(2)
    control, treated = row == CONTROL, row != CONTROL
    mean, centre, counts = _means(values, row, stratum, n_rows)
    m = np.maximum(np.bincount(stratum[control], minlength=len(centre)), 1)[:, None]
    spread = (_indicator(stratum[control], len(centre)) @ square[control]).toarray() / m - centre**2
    spread = np.maximum(spread, 0) * m / np.maximum(m - 1, 1)
    n = counts.sum(axis=1)[:, None]
    cells, of_rows = values[treated], _indicator(row[treated], n_rows)
    # Sum of squared differences: the products y c live where y does, so that nothing dense is as large as the cells.
    product = cells.copy()
    product.data = product.data * centre[np.repeat(stratum[treated], np.diff(cells.indptr)), cells.indices]
    squared = (of_rows @ (square[treated] - 2 * product)).toarray() + counts @ centre**2
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.maximum(squared / n - mean**2, 0) * n / np.where(n > 1, n - 1, np.nan)
        error = np.sqrt(variance / n + (counts / n) ** 2 @ (spread / m))
    return Responses(mean, error, n.ravel().astype(np.int64))


def split_half_reliability(
    values: sp.csr_matrix,
    row: np.ndarray,
    stratum: np.ndarray,
    n_rows: int,
    *,
    n_splits: int = 5,
    rng: np.random.Generator,
) -> np.ndarray:
    """(rows,) Pearson correlation over genes between the responses of two halves, averaged over splits.

    The halves share neither cells nor controls. Responses against the same controls correlate without any effect,
    because both carry the noise of the controls. NaN for a row with fewer than two cells.
    """
    values = values.astype(np.float64)
    total = np.zeros(n_rows)
    for _ in range(n_splits):
        first = halves(np.where(row == CONTROL, n_rows + stratum, row), rng)
        a, b = (_means(values[part], row[part], stratum[part], n_rows)[0] for part in (first, ~first))
        total += row_correlation(a, b)
    enough = np.bincount(row[row != CONTROL], minlength=n_rows) > 1
    return np.where(enough, total / n_splits, np.nan)


def halves(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) mask that puts half of every group in, the larger half of an odd one."""
    order = np.lexsort((rng.random(len(groups)), groups))
    start = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0])
    place = np.arange(len(groups)) - np.repeat(start, np.diff(np.r_[start, len(groups)]))
    out = np.empty(len(groups), dtype=bool)
    out[order] = place % 2 == 0
    return out


def row_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of `a` with the same row of `b`; 0 where one of them does not vary."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 1e-12)


def _means(
    values: sp.csr_matrix, row: np.ndarray, stratum: np.ndarray, n_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, g) mean responses, (strata, g) means of the controls, (rows, strata) numbers of cells."""
    n_strata = int(stratum.max()) + 1
    control, treated = row == CONTROL, row != CONTROL
    m = np.maximum(np.bincount(stratum[control], minlength=n_strata), 1)[:, None]
    centre = (_indicator(stratum[control], n_strata) @ values[control]).toarray() / m
    counts = np.zeros((n_rows, n_strata))
    np.add.at(counts, (row[treated], stratum[treated]), 1)
    n = counts.sum(axis=1, keepdims=True)
    total = (_indicator(row[treated], n_rows) @ values[treated]).toarray() - counts @ centre
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / n, centre, counts


def _indicator(codes: np.ndarray, n: int) -> sp.csr_matrix:
    """(n, cells) matrix that adds up the cells of each code."""
    cells = np.arange(len(codes))
    return sp.csr_matrix((np.ones(len(codes)), (codes, cells)), shape=(n, len(codes)))


def components(name: str, control: str | Collection[str]) -> tuple[str, ...]:
    """The genes of a perturbation, sorted; none for the control, or one of several. `A+control` is `A`."""
    controls = {control} if isinstance(control, str) else set(control)
    parts = {part.strip() for part in str(name).split(SEPARATOR)} - {"", *controls}
    return () if str(name).strip() in controls else tuple(sorted(parts))


def canonical(name: str, control: str | Collection[str]) -> str:
    """One spelling of a perturbation: `B+A` is `A+B`, and all controls go by the name of the first.

    Raises
    ------
    ValueError
        If the name holds neither a gene nor a control, as `""` and `"+"` do.
    """
    genes = components(name, control)
    first = control if isinstance(control, str) else next(iter(control))
    if not genes and not any(part.strip() for part in str(name).split(SEPARATOR)):
        raise ValueError(
            f"{name!r} names no perturbation. Name a gene, a combination `A+B`, or the control ({first!r})."
        )
    return SEPARATOR.join(genes) or first


def embed_perturbation(genes: tuple[str, ...], table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Embedding of a perturbation: the sum over its genes.

    So a method that is linear in the embedding predicts the sum of the singles' responses for a combination, which is
    the null model of no interaction. Cosine similarity does not tell the sum from the mean.
    """
    return np.asarray(np.sum([table[gene] for gene in genes], axis=0, dtype=np.float64))


def cell_prints(values: sp.csr_matrix, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """What cells are recognised by: `values` (cells, genes) on a log scale of the `genes` with the highest mean."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    top = np.sort(np.argsort(-mean, kind="stable")[:_N_GENES])
    return {"genes": np.asarray(genes, dtype=str)[top], "values": values[:, top].toarray().astype(np.float32)}


def recognised(values: sp.csr_matrix, genes: Sequence[str], known: Mapping[str, Any]) -> np.ndarray:
    """(cells,) mask of the cells that are among the known ones: equal counts, up to a factor, in all genes of both."""
    place = {str(gene): i for i, gene in enumerate(genes)}
    shared = [(i, place[str(gene)]) for i, gene in enumerate(known["genes"]) if str(gene) in place]
    if len(shared) < _FEWEST:
        return np.zeros(values.shape[0], dtype=bool)
    theirs, ours = np.array(shared).T
    bank, _ = _unit_length(np.asarray(known["values"])[:, theirs])
    asked, rows = _unit_length(values[:, ours].toarray())
    known_cells = np.zeros(values.shape[0], dtype=bool)
    if len(bank):
        known_cells[rows] = np.isfinite(cKDTree(bank).query(asked, distance_upper_bound=_SAME)[0])
    return known_cells


def _unit_length(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of unit length, from logarithms, and the rows that they are of: those with enough counts."""
    counts = np.expm1(values.astype(np.float64))
    # A difference of two float32 numbers is not exactly zero where it should be.
    rows = np.flatnonzero((counts > _SAME).sum(axis=1) >= _FEWEST)
    return counts[rows] / np.linalg.norm(counts[rows], axis=1, keepdims=True), rows
