"""The projection phi: from embeddings to the space in which neighbours are searched."""

from __future__ import annotations

import numpy as np

from ragst_sd.retrieval.blocks import in_blocks
from ragst_sd.retrieval.threads import one_thread


def standardize(embedding: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Subtract a section's mean and divide by its standard deviation, per feature, in float64.

    Features that do not vary within the section say nothing about it and become zero.
    """
    varies = std > 1e-12 * np.maximum(1.0, np.abs(mean))
    return np.where(varies, (np.asarray(embedding, dtype=np.float64) - mean) / np.where(varies, std, 1.0), 0.0)


def fit_pca(embedding: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes of (m, d) embeddings.

    Returns
    -------
    The mean (d,) and the axes (d, p), p the smaller of `n_components` and the rank; each axis has its largest entry
    positive, so that the result does not depend on the sign that the solver happens to return.
    """
    mean = embedding.mean(axis=0)
    centred = embedding - mean
    m, d = centred.shape
    products = centred.T @ centred if d <= m else centred @ centred.T
    with one_thread():
        values, axes = np.linalg.eigh(products)
    if d > m:
        axes = centred.T @ axes / np.sqrt(np.maximum(values, np.finfo(float).tiny))
    order = np.argsort(values)[::-1]
    keep = order[: min(n_components, m - 1, d)]
    keep = keep[values[keep] > 1e-10 * max(values[order[0]], np.finfo(float).tiny)]
    return mean, largest_positive(axes[:, keep])


def largest_positive(axes: np.ndarray) -> np.ndarray:
    """Columns with the sign that makes the largest entry of each positive."""
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return axes * np.where(signs == 0, 1.0, signs)


def project(embedding: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """phi(x) = (x - mean) A, in blocks of one fixed shape, so that a row's result does not depend on the others."""
    return in_blocks(lambda block: (block - mean) @ axes, embedding, axes.shape[1])
