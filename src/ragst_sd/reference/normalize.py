"""The unit of expression: log1p of counts per 10,000, and the checks that counts are counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET_SUM = 1e4
UNITS = ("counts", "log1p_cp10k")
MIN_SHARED_GENES = 200
_LOGGED_MAX = 30.0
# log1p of counts per 10,000 gives rows whose expm1 adds up to 10,000; float32 rounding stays far below this.
_SUM_TOLERANCE = 0.01


def as_csr(matrix: object) -> sp.csr_matrix:
    """Any 2-D matrix as canonical float32 CSR (a copy)."""
    for load in ("compute", "to_memory"):
        # Lazy matrices: dask arrays, and those of an AnnData that is backed by a file.
        matrix = getattr(matrix, load)() if hasattr(matrix, load) else matrix
    csr = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.sort_indices()
    return csr


def check_counts(matrix: sp.csr_matrix, where: str) -> None:
    """Raise a `ValueError` unless values are finite, not negative, and look like counts rather than logs."""
    values = matrix.data
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        msg = (
            f"{where} holds {bad} NaN or infinite values where counts are expected. Remove or impute these spots first."
        )
        raise ValueError(msg)
    if len(values) and values.min() < 0:
        msg = (
            f"{where} holds negative values (down to {values.min():.4g}) where counts are expected: scaled or "
            "batch-corrected data? Name the layer with raw counts with `layer=`."
        )
        raise ValueError(msg)
    if len(values) and values.max() <= _LOGGED_MAX and np.mean(values != np.rint(values)) > 0.5:
        msg = (
            f"{where} looks log-transformed already (fractions up to {values.max():.3g}) where counts are expected. "
            "Name the layer with raw counts with `layer=`, or say `unit='log1p_cp10k'` if it is log1p of counts per 10,000."
        )
        raise ValueError(msg)


def check_log_normalized(matrix: sp.csr_matrix, where: str) -> None:
    """Raise a `ValueError` unless rows can be log1p of counts per 10,000 (of all genes or of a subset)."""
    values = matrix.data
    if not np.isfinite(values).all() or (len(values) and values.min() < 0):
        msg = f"{where} holds negative, NaN or infinite values where log1p of counts per 10,000 is expected."
        raise ValueError(msg)
    if len(values) and values.max() > np.log1p(TARGET_SUM) * (1 + _SUM_TOLERANCE):
        msg = (
            f"{where} reaches {values.max():.4g}, above log1p(10,000) = {np.log1p(TARGET_SUM):.4g}: it is not log1p of "
            "counts per 10,000. Give raw counts with `layer=` and leave `unit='counts'`."
        )
        raise ValueError(msg)
    sums = np.asarray(matrix.expm1().sum(axis=1)).ravel()
    if len(sums) and sums.max() > TARGET_SUM * (1 + _SUM_TOLERANCE):
        msg = (
            f"{where}: expm1 of a row adds up to {sums.max():.6g}, above 10,000, so it is not log1p of counts per "
            "10,000. Give raw counts with `layer=` and leave `unit='counts'`."
        )
        raise ValueError(msg)


def size_factors(counts: sp.csr_matrix, names: Sequence[str], size_factor_genes: Sequence[str]) -> np.ndarray:
    """Counts of each row in the genes that all panels share, over 10,000."""
    shared = set(size_factor_genes)
    mask = np.fromiter((name in shared for name in names), dtype=np.float64, count=len(names))
    return np.asarray(counts @ mask).ravel() / TARGET_SUM


def log_normalize(counts: sp.csr_matrix, factors: np.ndarray) -> sp.csr_matrix:
    r"""log1p of counts per 10,000: :math:`\log(1 + 10^4 c_{ig} / \sum_{h \in S} c_{ih})`, S the size-factor genes.

    Rows without counts become NaN-free zeros; the caller decides what they mean.
    """
    scaled = counts.astype(np.float64)
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors, dtype=float), where=factors > 0)
    scaled.data *= np.repeat(inverse, np.diff(scaled.indptr))
    scaled.data = np.log1p(scaled.data)
    return scaled.astype(np.float32)
