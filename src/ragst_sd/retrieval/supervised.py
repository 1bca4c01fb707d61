"""Neighbours by what they are predicted to express: ridge's predictions as the space of the search."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.retrieval.baselines import fit_ridge
from ragst_sd.retrieval.projection import largest_positive, project
from ragst_sd.retrieval.targets import measured_everywhere
from ragst_sd.retrieval.training import dense, variable_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragst_sd.retrieval.training import Training

logger = logging.getLogger(__name__)

_GENES = 250


def fit_supervised(training: Training, key: np.ndarray, *, alphas: Sequence[float]) -> dict[str, np.ndarray]:
    r"""A map into ridge-prediction space, for the search of neighbours there.

    .. math:: B_s = B\, \mathrm{diag}(1 / \sigma) = U S V^\top, \qquad \phi(x) = c\, x\, U S

    with B the coefficients of :func:`fit_ridge` for the 250 most variable genes that every panel measured, and
    :math:`\sigma` the standard deviation of these genes. V is orthonormal, so distances between phi are the distances
    between standardised predictions, in no more dimensions than the key has. c makes the mean of :math:`|\phi|^2` over
    the training rows one.

    Returns
    -------
    `map` (p, q) and `alpha`. If ridge predicts the same everywhere, the map is the identity, which is logged.
    """
    candidates = measured_everywhere(training, "knn_supervised")
    genes = variable_genes(training.values, np.arange(len(key)), candidates, _GENES)
    fitted = fit_ridge(training, key, alphas=alphas)
    sd = dense(training.values[:, genes]).std(axis=0)
    varies = sd > 1e-9
    mapped = _compressed(fitted["coefficients"][:, genes[varies]] / sd[varies])
    if mapped.shape[1] == 0:
        logger.warning("Ridge predicts the same for every row: neighbours are searched in the embedding itself.")
        mapped = np.eye(key.shape[1])
    mean_square = (project(key, np.zeros(key.shape[1]), mapped) ** 2).sum(axis=1).mean()
    if mean_square > 0:
        mapped = mapped / np.sqrt(mean_square)
    return {"map": mapped, "alpha": fitted["alpha"]}


def supervised_phi(parameters: dict[str, np.ndarray], key: np.ndarray) -> np.ndarray:
    """(n, q) standardised predictions of ridge, up to a rotation and a scale."""
    return project(key, np.zeros(key.shape[1]), parameters["map"])


def _compressed(coefficients: np.ndarray) -> np.ndarray:
    """(p, q) matrix with the same products between its rows as a (p, g) one, q its rank."""
    if not coefficients.any():
        return np.zeros((len(coefficients), 0))
    left, singular, _ = np.linalg.svd(coefficients, full_matrices=False)
    keep = singular > 1e-12 * singular[0]
    return largest_positive(left[:, keep] * singular[keep])
