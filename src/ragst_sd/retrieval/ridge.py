"""Methods without neighbours: the mean of the reference, and ridge regression on the projected embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.evidence import mean_of_reference
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import Options, numbers
from ragst_sd.retrieval.training import dense, held_out_splits, mean_over_groups, variable_genes, within_section_pearson

logger = logging.getLogger(__name__)

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 4, 22))
_SCORED_GENES = 250


@dataclass(frozen=True)
class RidgeOptions(Options):
    r"""Options of `ridge`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    alphas
        Penalties to choose from, of :math:`(K^\top K + \alpha m I) B = K^\top Y` on the m rows K.
    """

    alphas: tuple[float, ...] = numbers(ALPHAS)


def fit_ridge(training: Bank, *, alphas: Sequence[float]) -> dict[str, Any]:
    r"""Ridge regression of every gene on phi(x), its penalty chosen on held-out groups.

    .. math:: B = (K^\top K + \alpha m I)^{-1} K^\top Y

    on centred K and Y. `alpha` maximises the within-section Pearson correlation of the 250 most variable genes, each
    inner group (a donor, wherever there are two) predicted from the others.

    Returns
    -------
    `coefficients` (p, g), `intercept` (g,) relative to the per-gene reference mean, `alpha`, and `alpha_scores`.
    """
    key = training.key
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
        coefficients[:, genes] = solver.coefficients(alpha * len(rows))
        intercept[genes] = -centre @ coefficients[:, genes]
    return {"coefficients": coefficients, "intercept": intercept, "alpha": np.float64(alpha), "alpha_scores": scores}


def ridge_adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    """What ridge adds to the per-gene reference mean, (n, g)."""
    return selection.key @ parameters["coefficients"] + parameters["intercept"]


class RidgeSolver:
    """Ridge solutions for many penalties from one eigendecomposition, of a centred key."""

    def __init__(self, key: np.ndarray, values: Any) -> None:
        self.eigenvalues, self._axes = np.linalg.eigh(key.T @ key)
        # The key is centred, so the mean of the profiles drops out of the product.
        self._rotated = self._axes.T @ np.asarray(values.T @ key, dtype=np.float64).T

    def coefficients(self, penalty: float) -> np.ndarray:
        """(p, g) solution."""
        return self._axes @ (self._rotated / (np.maximum(self.eigenvalues, 0) + penalty)[:, None])


def _score_alphas(training: Bank, key: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """(alphas,) mean within-section Pearson of held-out groups; NaN where nothing could be held out."""
    everywhere = np.flatnonzero(training.measured.all(axis=0))
    scores = []
    for inner, held in held_out_splits(training, None) if len(everywhere) else ():
        genes = variable_genes(training.values, inner, everywhere, _SCORED_GENES)
        centre = key[inner].mean(axis=0)
        solver = RidgeSolver(key[inner] - centre, training.values[inner][:, genes])
        truth, sections = dense(training.values[held][:, genes]), training.sections[held]
        predicted = ((key[held] - centre) @ solver.coefficients(alpha * len(inner)) for alpha in alphas)
        scores.append([within_section_pearson(values, truth, sections) for values in predicted])
    return mean_over_groups(scores, len(alphas))


RIDGE = Method(
    RidgeOptions,
    lambda training, run: fit_ridge(training, alphas=run.options.alphas),
    answer=partial(mean_of_reference, adjustment=ridge_adjustment),
    per_gene=("coefficients", "intercept"),
    learns="values",
)
MEAN = Method(Options, lambda training, run: {}, learns="values")
