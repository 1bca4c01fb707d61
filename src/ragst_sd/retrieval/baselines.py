"""Methods without neighbours: the mean of the reference, and ridge regression on the projected embedding."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.targets import held_out_splits
from ragst_sd.retrieval.training import dense, mean_over_groups, variable_genes, within_section_pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragst_sd.retrieval.training import Training

logger = logging.getLogger(__name__)

_SCORED_GENES = 250


def fit_ridge(training: Training, key: np.ndarray, *, alphas: Sequence[float]) -> dict[str, Any]:
    r"""Ridge regression of every gene on phi(x), its penalty chosen on held-out groups.

    .. math:: B = (K^\top K + \alpha m I)^{-1} K^\top Y

    on centred K and Y. `alpha` maximises the within-section Pearson correlation of the 250 most variable genes, each
    inner group (a donor, wherever there are two) predicted from the others.

    Returns
    -------
    `coefficients` (p, g), `intercept` (g,) relative to the per-gene reference mean, `alpha`, and `alpha_scores`.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    scores = _score_alphas(training, key, grid)
    alpha = float(grid[int(np.nanargmax(scores))]) if np.isfinite(scores).any() else float(np.median(grid))
    if len(grid) > 1 and alpha in (grid[0], grid[-1]):
        logger.info("Ridge: the best alpha %.3g is at the edge of those tried (%.3g to %.3g).", alpha, *grid[[0, -1]])
    n_genes = training.values.shape[1]
    coefficients = np.zeros((key.shape[1], n_genes))
    intercept = np.zeros(n_genes)
    for rows, genes in training.gene_patterns():
        centre = key[rows].mean(axis=0)
        solver = RidgeSolver(key[rows] - centre, training.values[rows][:, genes])
        coefficients[:, genes] = solver.coefficients(alpha)
        intercept[genes] = -centre @ coefficients[:, genes]
    return {"coefficients": coefficients, "intercept": intercept, "alpha": np.float64(alpha), "alpha_scores": scores}


def ridge_adjustment(parameters: dict[str, np.ndarray], key: np.ndarray) -> np.ndarray:
    """What ridge adds to the per-gene reference mean, (n, g)."""
    return key @ parameters["coefficients"] + parameters["intercept"]


class RidgeSolver:
    """Ridge solutions for many penalties from one eigendecomposition."""

    def __init__(self, centred_key: np.ndarray, values: Any) -> None:
        self._m = len(centred_key)
        self._eigenvalues, self._axes = np.linalg.eigh(centred_key.T @ centred_key)
        # The key is centred, so the mean of the profiles drops out of the product.
        cross = values.T @ centred_key
        self._rotated = self._axes.T @ np.asarray(cross, dtype=np.float64).T

    def coefficients(self, alpha: float) -> np.ndarray:
        """(p, g) ridge solution for one penalty."""
        return self._axes @ (self._rotated / (np.maximum(self._eigenvalues, 0) + alpha * self._m)[:, None])


def _score_alphas(training: Training, key: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    everywhere = np.flatnonzero(training.measured.all(axis=0))
    scores = []
    for inner, held in held_out_splits(training.folds, None) if len(everywhere) else ():
        genes = variable_genes(training.values, inner, everywhere, _SCORED_GENES)
        centre = key[inner].mean(axis=0)
        solver = RidgeSolver(key[inner] - centre, training.values[inner][:, genes])
        truth, sections = dense(training.values[held][:, genes]), training.sections[held]
        predicted = ((key[held] - centre) @ solver.coefficients(alpha) for alpha in alphas)
        scores.append([within_section_pearson(values, truth, sections) for values in predicted])
    return mean_over_groups(scores, len(alphas))
