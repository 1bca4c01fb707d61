"""Stage 2: how much weight each candidate gets."""

from __future__ import annotations

import numpy as np


def uniform_gate(distances: np.ndarray) -> np.ndarray:
    """Equal weights for all candidates; NaN distances mark absent ones and get none."""
    present = ~np.isnan(distances)
    return _normalised(present.astype(np.float64))


def distance_gate(distances: np.ndarray, sharpness: float) -> np.ndarray:
    r"""Weights that fall with distance, on the scale of each query's own neighbourhood.

    .. math:: w_j \propto \exp(-s\, d_j^2 / d_K^2)

    with s the sharpness and :math:`d_K` the distance of the farthest candidate. Absent candidates (NaN) get none.
    """
    present = ~np.isnan(distances)
    filled = np.where(present, distances, 0.0)
    farthest = filled.max(axis=1, keepdims=True)
    scaled = np.divide(filled, farthest, out=np.zeros_like(filled), where=farthest > 0)
    return _normalised(np.where(present, np.exp(-sharpness * scaled**2), 0.0))


def _normalised(raw: np.ndarray) -> np.ndarray:
    total = raw.sum(axis=1, keepdims=True)
    return np.divide(raw, total, out=np.zeros_like(raw), where=total > 0)
