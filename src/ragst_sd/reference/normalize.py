"""The unit of expression: log1p of counts per 10,000, and what the values of a matrix are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ragst_sd.reference.genes import duplicates

TARGET_SUM = 1e4
UNITS = ("counts", "log1p_cp10k")
MIN_SHARED_GENES = 200
OR_LOGS = ", or say `unit='log1p_cp10k'` if it is log1p of counts per 10,000"
_LOGGED_MAX = 30.0
# log1p of counts per 10,000 gives rows whose expm1 adds up to 10,000; float32 rounding stays far below this.
_SUM_TOLERANCE = 0.01
_SAME_SUM = 1e-3
# Rows with fewer values than this say nothing for themselves.
_ENOUGH_VALUES = 20
# Logarithms of counts per more than a million are not in use; shallow rows of estimated counts may lie below 30.
_LARGEST_SCALE = 1e6
# Multiples of float32 values are whole to this, and in a row of true multiples nearly all of them are.
_WHOLE, _MULTIPLES = 0.02, 0.95
_BLOCK_ROWS = 4096
# So many counts of one happen together in no assay.
_ENOUGH_ONES = 10_000

logger = logging.getLogger(__name__)


def as_csr(matrix: object) -> sp.csr_matrix:
    """Any 2-D matrix as canonical float32 CSR (a copy)."""
    for load in ("compute", "to_memory"):
        # Lazy matrices: dask arrays, and those of an AnnData that is backed by a file.
        matrix = getattr(matrix, load)() if hasattr(matrix, load) else matrix
    refuse_masked(matrix)
    if hasattr(matrix, "check_format"):
        # Compiled code reads and writes wherever the indices lead, also outside of the matrix.
        matrix.check_format(full_check=True)
    csr = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.sort_indices()
    return csr


def refuse_masked(matrix: object) -> None:
    """Raise a `TypeError` for a masked array: what lies beneath a mask is no measurement, and no zero either."""
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(
            f"Expression is a masked array with {np.ma.count_masked(matrix)} masked values, neither measured nor zero. "
            "Leave these rows or genes out, or give a plain array: `.filled(0)` where they are zeros."
        )


class Unit(NamedTuple):
    """What the values of a matrix are."""

    kind: str
    """`counts`, `estimated counts`, `scaled counts`, `log1p_cp10k`, `logarithms`, `mixed`, `negative`, `not finite`."""
    why: str
    """What was found, for an error message."""


def find_unit(matrix: sp.csr_matrix) -> Unit:
    """What the values are, judged by row.

    - Whole numbers are `counts`. Fractions above what logarithms reach are `estimated counts`, unless all rows add up
      to one number, or the values of each row are whole multiples of its smallest one: those are `scaled counts`
      (counts per 10,000, say).
    - Rows of fractions below 30 are logarithms: `log1p_cp10k` if `expm1` of each row adds up to at most 10,000 (less
      where genes were left out), `logarithms` otherwise. Rows that add up to one other number are logarithms of that
      scale. Logarithms of counts as they are, taken twice or of another base are told by the values of each row, of
      which another inverse than `expm1` makes whole multiples of the smallest one.
    - Some rows of whole numbers among rows of logarithms are `mixed`.
    """
    values = matrix.data
    if not np.isfinite(values).all():
        return Unit("not finite", f"{int((~np.isfinite(values)).sum())} NaN or infinite values")
    if len(values) and values.min() < 0:
        return Unit("negative", f"negative values (down to {values.min():.4g})")
    fraction = values != np.rint(values)
    n_values, n_fractions = _sum_rows(matrix, values > 0), _sum_rows(matrix, fraction)
    top = matrix.max(axis=1).toarray().ravel() if matrix.shape[1] else np.zeros(matrix.shape[0])
    enough = n_values >= _ENOUGH_VALUES
    whole = enough & (n_fractions == 0)
    logged = enough & (n_fractions > 0.5 * n_values) & (top <= np.log1p(_LARGEST_SCALE))
    if whole.any() and logged.any():
        return Unit(
            "mixed",
            f"raw and logged values: {int(whole.sum())} rows (the first is row {int(np.argmax(whole))}) hold whole "
            f"numbers up to {top[whole].max():.4g} as counts do, and {int(logged.sum())} rows (the first is row "
            f"{int(np.argmax(logged))}) hold fractions up to {top[logged].max():.3g} as logarithms do",
        )
    share = fraction.sum() / max(1, (values > 0).sum())
    if share <= 0.5:
        kind = "estimated counts" if share else "counts"
        return Unit(kind, f"{'mostly ' if share else ''}whole numbers up to {values.max(initial=0):.4g}")
    if values.max() > _LOGGED_MAX:
        return _scaled_or_estimated(matrix, n_values)
    return _scale_of_logs(matrix, n_values)


def _sum_rows(matrix: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Sums over the stored values of each row."""
    return np.bincount(
        np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), weights=values, minlength=matrix.shape[0]
    )


def _common_sum(sums: np.ndarray) -> float | None:
    """The number that all rows with values add up to, if there is one."""
    sums = sums[sums > 0]
    return float(np.median(sums)) if len(sums) > 1 and np.ptp(sums) <= _SAME_SUM * np.median(sums) else None


def _scaled_or_estimated(matrix: sp.csr_matrix, n_values: np.ndarray) -> Unit:
    top = f"fractions up to {matrix.data.max():.4g}"
    common = _common_sum(_sum_rows(matrix, matrix.data))
    if common is not None:
        return Unit("scaled counts", f"{top}, and all rows add up to {common:,.6g}: counts per {common:,.6g}")
    if _of_multiples(matrix, matrix.data, n_values):
        return Unit(
            "scaled counts", f"{top}, in each row whole multiples of its smallest value: counts divided by depth"
        )
    return Unit("estimated counts", top)


def _of_multiples(matrix: sp.csr_matrix, data: np.ndarray, n_values: np.ndarray) -> bool:
    """Whether values, in the places of those of a matrix, are whole multiples of the smallest in nearly every row."""
    enough, filled = n_values >= _ENOUGH_VALUES, np.diff(matrix.indptr) > 0
    values = np.where(data > 0, data, np.inf)
    smallest = np.full(matrix.shape[0], np.inf)
    smallest[filled] = np.minimum.reduceat(values, matrix.indptr[:-1][filled])
    multiples = data / np.repeat(smallest, np.diff(matrix.indptr))
    # Larger multiples are whole to the precision of a float, whatever they are.
    whole = (np.abs(multiples - np.rint(multiples)) < _WHOLE) & (multiples < _LARGEST_SCALE)
    as_counts = _sum_rows(matrix, whole & (data > 0)) >= _MULTIPLES * n_values
    return bool(enough.any() and as_counts[enough].mean() >= _MULTIPLES)


# Other logarithms than those of counts per 10,000, and what undoes them.
_OTHER_LOGS = (
    ("log1p taken twice", lambda logs: np.expm1(np.expm1(logs))),
    ("logarithms to the base 10", lambda logs: np.expm1(logs * np.log(10))),
    ("logarithms to the base 2", lambda logs: np.expm1(logs * np.log(2))),
)


def _other_log(matrix: sp.csr_matrix, n_values: np.ndarray) -> str | None:
    """The name of logarithms that cannot be those of counts per 10,000; `None` if they can, or if nothing tells."""
    logs = matrix.data.astype(np.float64)
    counts = np.expm1(logs)
    if _of_multiples(matrix, counts, n_values):
        as_counted = counts.min() < 1.5 and (np.abs(counts - np.rint(counts)) < _WHOLE).mean() >= _MULTIPLES
        return "log1p of counts that were not divided by depth" if as_counted else None
    with np.errstate(over="ignore", invalid="ignore"):
        return next((name for name, undo in _OTHER_LOGS if _of_multiples(matrix, undo(logs), n_values)), None)


def _scale_of_logs(matrix: sp.csr_matrix, n_values: np.ndarray) -> Unit:
    sums = np.asarray(matrix.astype(np.float64).expm1().sum(axis=1)).ravel()
    top = f"fractions up to {matrix.data.max():.3g}"
    common = _common_sum(sums[n_values > 0])
    if common is not None and abs(common / TARGET_SUM - 1) > _SUM_TOLERANCE:
        return Unit(
            "logarithms", f"{top}, and expm1 of each row adds up to {common:,.6g}: log1p of counts per {common:,.6g}"
        )
    if sums.max() > TARGET_SUM * (1 + _SUM_TOLERANCE):
        return Unit("logarithms", f"{top}, and expm1 of a row adds up to {sums.max():,.6g}, above 10,000")
    other = None if common is not None else _other_log(matrix, n_values)
    if other is not None:
        return Unit("logarithms", f"{top}: {other}")
    return Unit("log1p_cp10k", f"{top}, and expm1 of no row adds up to more than 10,000")


def check_counts(matrix: sp.csr_matrix, where: str, or_logs: str = "") -> None:
    """Raise a `ValueError` that says what was found unless the values are counts, whole or estimated.

    `or_logs` says what to do with log1p of counts per 10,000 where those are taken, too.
    """
    kind, why = find_unit(matrix)
    if kind in ("counts", "estimated counts"):
        if matrix.nnz > _ENOUGH_ONES and matrix.data.max() <= 1:
            logger.warning("%s holds 0 and 1 only. If these say whether a gene was found, they are no counts.", where)
        return
    todo = {
        "not finite": "Remove or impute these spots first.",
        "negative": "Scaled or batch-corrected data? Name the layer with raw counts with `layer=`.",
        "mixed": "Bring all rows back to raw counts before they are put together.",
        "scaled counts": "Name the layer with raw counts with `layer=`.",
        "log1p_cp10k": f"It looks log-transformed already. Name the layer with raw counts with `layer=`{or_logs}.",
        "logarithms": "It looks log-transformed already. Name the layer with raw counts with `layer=`.",
    }
    raise ValueError(f"{where} holds {why} where counts are expected. {todo[kind]}")


def check_log_normalized(matrix: sp.csr_matrix, where: str) -> None:
    """Raise a `ValueError` with what was found unless rows can be log1p of counts per 10,000 (of all or some genes)."""
    kind, why = find_unit(matrix)
    if kind == "log1p_cp10k" or not matrix.data.any():
        return
    todo = {
        "mixed": "Bring all rows to one unit before they are put together.",
        "not finite": "Remove or impute these spots first.",
        "negative": "Scaled or batch-corrected data have lost the unit. Give raw counts with `layer=` and leave "
        "`unit='counts'`.",
    }
    counts = "Give raw counts with `layer=` and leave `unit='counts'`."
    raise ValueError(f"{where} holds {why}: not log1p of counts per 10,000. {todo.get(kind, counts)}")


def check_unit(matrix: sp.csr_matrix, unit: str, place: str, *names: Sequence[str]) -> None:
    """Raise a `ValueError` unless values are what `unit` says; on a log scale, no list of names may hold one twice."""
    if unit == "counts":
        check_counts(matrix, place, OR_LOGS)
        return
    check_log_normalized(matrix, place)
    for twice in filter(None, map(duplicates, names)):
        raise ValueError(
            f"{len(twice)} names of genes ({place}) are duplicated, for example {', '.join(map(repr, twice[:3]))}. "
            "Values on a log scale cannot be added: give counts with `layer=`, or make the names unique."
        )


def size_factors(counts: sp.csr_matrix, names: Sequence[str], size_factor_genes: Sequence[str]) -> np.ndarray:
    """Counts of each row in the genes that all panels share, over 10,000."""
    shared = set(size_factor_genes)
    mask = np.fromiter((name in shared for name in names), dtype=np.float64, count=len(names))
    return np.asarray(counts @ mask).ravel() / TARGET_SUM


def log_normalize(counts: sp.csr_matrix, factors: np.ndarray) -> sp.csr_matrix:
    r"""log1p of counts per 10,000: :math:`\log(1 + 10^4 c_{ig} / \sum_{h \in S} c_{ih})`, S the size-factor genes.

    Rows without counts become NaN-free zeros; the caller decides what they mean.
    """
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors, dtype=float), where=factors > 0)
    data = np.empty(counts.nnz, dtype=np.float32)
    # Some rows after the other: float64 takes as much memory again as the counts.
    for start in range(0, counts.shape[0], _BLOCK_ROWS):
        pointers = counts.indptr[start : start + _BLOCK_ROWS + 1]
        part = slice(pointers[0], pointers[-1])
        scaled = counts.data[part].astype(np.float64)
        scaled *= np.repeat(inverse[start : start + _BLOCK_ROWS], np.diff(pointers))
        data[part] = np.log1p(scaled)
    return sp.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
