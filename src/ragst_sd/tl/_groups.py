"""Groups of rows that are held out whole when something is chosen or calibrated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import require_key

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def group_codes(reference: AnnData, column: str) -> np.ndarray:
    """(rows,) index of each row's group, in the order of their names."""
    return np.unique(reference.obs[column].astype(str).to_numpy(), return_inverse=True)[1]


def inner_folds(reference: AnnData, group_key: str | None) -> tuple[np.ndarray, str]:
    """Groups to hold out, and what they are."""
    if group_key is not None:
        require_key(group_key, reference.obs, "reference.obs")
        folds = group_codes(reference, group_key)
        if folds.max() < 1:
            only = reference.obs[group_key].iloc[0]
            msg = f"`group_key` {group_key!r} has one group only ({only!r}); holding it out leaves nothing."
            raise ValueError(msg)
        return folds, group_key
    for column in (_keys.DONOR, _keys.SAMPLE):
        folds = group_codes(reference, column)
        if folds.max() >= 1:
            if column != _keys.DONOR:
                logger.warning("The reference has one donor only: sections are held out to choose and calibrate.")
            return folds, column
    logger.warning(
        "The reference has one section only: four spatial blocks are held out to choose and calibrate. "
        "Accuracy on other donors cannot be told from it."
    )
    x, y = (reference.obs[name].to_numpy(float) for name in (_keys.X_UM, _keys.Y_UM))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        # Without positions, consecutive rows are the closest thing to neighbours on the tissue.
        return np.arange(reference.n_obs) * 4 // reference.n_obs, "blocks of consecutive rows"
    return 2 * (x > np.median(x)) + (y > np.median(y)), "spatial blocks"
