"""What both kinds of fit have in common: the counts of neighbours, and how a fit is written into its reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import require_positive
from ragst_sd.retrieval.bank import Bank

logger = logging.getLogger(__name__)


def neighbor_counts(
    n_rows: int, n_neighbors: int | None, n_candidates: int | None, *, cited: int, compared: int = 1
) -> tuple[int, int]:
    """Rows that are cited and rows that are compared: `cited` and `compared` where a reference has as many."""
    for name, value in (("n_neighbors", n_neighbors), ("n_candidates", n_candidates)):
        if value is None:
            continue
        require_positive(value, name, whole=True)
        if value > n_rows:
            raise ValueError(
                f"`{name}` is {value}, more than the {n_rows} rows of the reference. Ask for {n_rows} at most."
            )
    if n_neighbors is None:
        n_neighbors = min(cited, n_rows if n_candidates is None else n_candidates)
        logger.info("`n_neighbors` is %d.", n_neighbors)
    if n_candidates is None:
        n_candidates = max(n_neighbors, min(compared, n_rows))
    if n_candidates < n_neighbors:
        raise ValueError(
            f"`n_candidates` is {n_candidates}, fewer than `n_neighbors` ({n_neighbors}) that are chosen from them."
        )
    return int(n_neighbors), int(n_candidates)


def storable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a store keeps them."""
    return {name: np.asarray(value) if isinstance(value, tuple) else value for name, value in options.items()}


def write_fit(reference: AnnData, record: dict[str, Any], bank: Bank) -> None:
    """Write a fit and the rows of its bank, together: what is interrupted before leaves the earlier fit whole."""
    owned = dict(reference.uns[_keys.ATTRS])
    owned["content_hash"] = record["reference_hash"]
    owned[_keys.FIT] = record
    # Intervals hold for one fit.
    if owned.pop(_keys.CALIBRATION, None) is not None:
        logger.info("The calibration of the earlier fit is dropped; `rg.tl.calibrate` makes one of this fit.")
    reference.obsm[_keys.RETRIEVAL_KEY] = bank.key
    reference.obsm.pop(_keys.REGRESSION_KEY, None)
    if bank.regression_key is not None:
        reference.obsm[_keys.REGRESSION_KEY] = bank.regression_key
    reference.uns[_keys.ATTRS] = owned
