"""Whether the rows and values of a predicted table are still those of the prediction that its header is of.

Every row carries the id of its prediction, and rows and genes the sum of their values: enough to notice tables that
were concatenated, that got another's `.uns`, or whose `.X` was transformed.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._validate import listing
from ragst_sd.retrieval.blocks import known_sum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

logger = logging.getLogger(__name__)

# Sums of float32 values, taken in another order or read from a store.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-2


def mark(table: AnnData) -> None:
    """Write the id of the prediction and the sums of its values into `.obs`, `.var` and the header."""
    header = table.uns[_keys.RETRIEVAL]
    by_row = _sums(table.X, axis=1)
    digest = hashlib.sha256("".join((header["reference_hash"], header["fit_hash"], *table.obs_names)).encode())
    digest.update(by_row.round(2).tobytes())
    header[_keys.PREDICTION_ID] = digest.hexdigest()[:16]
    table.obs[_keys.PREDICTION_ID] = pd.Categorical([header[_keys.PREDICTION_ID]] * table.n_obs)
    write_sums(table, by_row)


def write_sums(table: AnnData, by_row: np.ndarray | None = None) -> None:
    """Write the sums of the values as they are, after genes were left out on purpose."""
    header = table.uns[_keys.RETRIEVAL]
    header[_keys.N_PREDICTED] = np.array(table.shape)
    table.obs[_keys.PREDICTION_SUM] = _sums(table.X, axis=1) if by_row is None else by_row
    table.var[_keys.PREDICTION_SUM] = _sums(table.X, axis=0)


def require_own_rows(table: AnnData, header: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a row is of another prediction than the header."""
    own = header.get(_keys.PREDICTION_ID)
    if own is None:
        return
    found = set(table.obs[_keys.PREDICTION_ID].astype(str)) if _keys.PREDICTION_ID in table.obs else {"none"}
    others = sorted(found - {str(own)})
    if others:
        msg = (
            f"The table has rows of other predictions ({listing(others)}) than its `uns[{_keys.RETRIEVAL!r}]` "
            f"({str(own)!r}): it was concatenated, or has the `.uns` of another table, so that its citations would "
            "point at other tissue. Read each prediction on its own."
        )
        raise ValueError(msg)


def check_values(table: AnnData, header: Mapping[str, Any], *, refuse: bool) -> None:
    """Warn, or raise a `ValueError`, if `.X` is not what was predicted.

    Sums are known of whole rows and of whole columns: a table that was cut both ways cannot be checked, nor are values
    on disk.
    """
    if _keys.N_PREDICTED not in header or hasattr(table.X, "dask"):
        return
    n_spots, n_genes = (int(n) for n in header[_keys.N_PREDICTED])
    frame, axis = (table.obs, 1) if table.n_vars == n_genes else (table.var, 0)
    if _keys.PREDICTION_SUM not in frame or (axis == 0 and table.n_obs != n_spots):
        return
    sums = frame[_keys.PREDICTION_SUM].to_numpy(float)
    same = np.isclose(_sums(table.X, axis=axis), sums, rtol=_RELATIVE, atol=_ABSOLUTE)
    if same.all():
        return
    what = "spots" if axis else "genes"
    msg = (
        f"`.X` of the predicted table was changed after the prediction, in {int((~same).sum())} of {len(same)} "
        f"{what} (first: {frame.index[~same][0]!r}): it is no longer in {str(header['unit'])!r}. Keep the prediction "
        "in `.X` and what you make of it in a layer, or predict again."
    )
    if refuse:
        raise ValueError(msg)
    logger.warning(msg)


def _sums(values: Any, axis: int) -> np.ndarray:
    """Sums over spots or genes, float64; what is NaN counts as nothing."""
    if hasattr(values, "dask"):
        import dask.array as da

        return np.asarray(da.nansum(values, axis=axis, dtype=np.float64))
    if hasattr(values, "tocsr"):
        return np.asarray(values.sum(axis=axis, dtype=np.float64)).ravel()
    return known_sum(np.asarray(values), axis)
