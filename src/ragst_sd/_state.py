"""What surrounds a spot, for gates that look at it: the tissue of its outermost field of view, organ and technology."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._labels import is_missing, labels
from ragst_sd._validate import listing
from ragst_sd.retrieval.projection import fit_pca

logger = logging.getLogger(__name__)

_AROUND = 8
_COLUMNS = (_keys.TISSUE, _keys.TECHNOLOGY)


def fit_state(obs: pd.DataFrame, standardized: np.ndarray, n_scales: int) -> dict[str, Any]:
    """What :func:`state_of` needs: components of the outermost field of view, and the organs and technologies seen.

    A column with one value only tells no rows apart and is left out, as is the field of view where there is one only.
    """
    out: dict[str, Any] = {}
    if n_scales > 1:
        around = _outermost(standardized, n_scales)
        mean, axes = fit_pca(around, _AROUND)
        if axes.shape[1]:
            spread = ((around - mean) @ axes).std(axis=0)
            out |= {"state_mean": mean, "state_axes": axes / spread, "state_scales": n_scales}
    for column in _COLUMNS:
        names = np.unique(labels(obs[column])[~is_missing(obs[column])])
        if len(names) > 1:
            out[f"state_{column}"] = names.astype(str)
    return out


def state_of(parameters: Mapping[str, Any], obs: pd.DataFrame, standardized: np.ndarray) -> np.ndarray:
    """(n, s) state; an organ or technology that is not given, or was not seen, is zero in every place."""
    parts = [np.zeros((len(standardized), 0))]
    if "state_axes" in parameters:
        around = _outermost(standardized, int(parameters["state_scales"]))
        parts.append((around - np.asarray(parameters["state_mean"])) @ np.asarray(parameters["state_axes"]))
    for column in _COLUMNS:
        if f"state_{column}" not in parameters:
            continue
        names = np.asarray(parameters[f"state_{column}"]).astype(str)
        if column not in obs:
            logger.warning(
                "The gate uses %s (trained on %s), but the query's `obs` has no such column: the query counts as none "
                "of them.",
                column,
                listing(names),
            )
        given = labels(obs[column]) if column in obs else np.full(len(standardized), "")
        parts.append((np.asarray(given)[:, None] == names[None, :]).astype(float))
    return np.concatenate(parts, axis=1)


def _outermost(standardized: np.ndarray, n_scales: int) -> np.ndarray:
    """The part of the embedding that saw the largest field of view; scales stand side by side, smallest first."""
    return standardized[:, standardized.shape[1] // n_scales * (n_scales - 1) :]
