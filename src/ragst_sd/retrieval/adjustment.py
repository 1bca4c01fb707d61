r"""The adjustment T of fits of earlier releases, in which it stood where the regression H of a stack stands today.

.. math:: T(u) = u L C, \qquad u = \phi(x) - \sum_j w_j \phi(x_j)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Selection

_BLOCK_VALUES = 2**24


def evidence_offset(selection: Selection, key: np.ndarray) -> np.ndarray:
    """What the cited rows lack, u = phi(x) - sum_j w_j phi(x_j), (n, q); zero where nothing is cited."""
    rows, phi = selection.rows, selection.key
    held = np.where(rows >= 0, selection.weights, 0.0)
    centre = np.empty_like(phi)
    step = max(1, _BLOCK_VALUES // max(1, held.shape[1] * phi.shape[1]))
    for start in range(0, len(phi), step):
        part = slice(start, start + step)
        centre[part] = np.einsum("nk,nkq->nq", held[part], key[np.maximum(rows[part], 0)])
    return np.where(held.sum(axis=1, keepdims=True) > 0, phi - centre, 0.0)


def apply_adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    """T(u), (n, g)."""
    offset = evidence_offset(selection, bank.key)
    return offset @ np.asarray(parameters["adjustment_in"]) @ parameters["adjustment_out"]
