"""Nearest rows, weighted by a fixed gate: of the embedding, or of what ridge regression predicts from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query, Run, Selection
from ragst_sd.retrieval.blocks import product_in_blocks
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import distance_gate
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import CitingOptions, choice, numbers, positive
from ragst_sd.retrieval.projection import largest_positive
from ragst_sd.retrieval.ridge import ALPHAS, fit_ridge
from ragst_sd.retrieval.training import dense, measured_everywhere, variable_genes

logger = logging.getLogger(__name__)

# Genes whose predictions make up the space of `knn_supervised`.
_GENES = 250


@dataclass(frozen=True)
class KnnOptions(CitingOptions):
    r"""Options of `knn`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    center_sections
        Take measured values relative to the mean of their section, and put them on the mean of the rows that may be
        used.
    weighting
        `"distance"`: :math:`w_j \propto \exp(-s\,d_j^2/d_K^2)` with the distance :math:`d_K` of the
        farthest candidate; or `"uniform"`.
    sharpness
        The s of `"distance"`: larger values give the nearest rows more.
    """

    weighting: str = choice("distance", "distance", "uniform")
    sharpness: float = positive(2.0)


@dataclass(frozen=True)
class SupervisedOptions(KnnOptions):
    """Options of `knn_supervised`: those of `knn`, and

    Parameters
    ----------
    alphas
        Penalties to choose from, as for `ridge`.
    """

    alphas: tuple[float, ...] = numbers(ALPHAS)


def fit_knn(training: Bank, run: Run) -> dict[str, Any]:
    """Nothing to learn: the parameters are how rows are weighted."""
    return {"weighting": run.options.weighting, "sharpness": run.options.sharpness}


def select(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """The nearest rows, with equal weights or weights that fall with distance."""
    # Equal weights are those that do not fall with distance.
    sharpness = 0.0 if parameters["weighting"] == "uniform" else float(parameters["sharpness"])
    return cite(query, distance_gate(query.candidates.distances, sharpness))


def fit_supervised(training: Bank, *, alphas: Sequence[float]) -> dict[str, np.ndarray]:
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
    key = training.key
    everywhere = measured_everywhere(training, "knn_supervised")
    genes = variable_genes(training.values, np.arange(len(key)), everywhere, _GENES)
    fitted = fit_ridge(training, alphas=alphas)
    sd = dense(training.values[:, genes]).std(axis=0)
    varies = sd > 1e-9
    to_phi = _compressed(fitted["coefficients"][:, genes[varies]] / sd[varies])
    if to_phi.shape[1] == 0:
        logger.warning("Ridge predicts the same for every row: neighbours are searched in the embedding itself.")
        to_phi = np.eye(key.shape[1])
    mean_square = (product_in_blocks(key, to_phi) ** 2).sum(axis=1).mean()
    if mean_square > 0:
        to_phi = to_phi / np.sqrt(mean_square)
    return {"map": to_phi, "alpha": fitted["alpha"]}


def supervised_phi(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """(n, q) standardised predictions of ridge, up to a rotation and a scale."""
    return product_in_blocks(key, np.asarray(parameters["map"]))


def _compressed(coefficients: np.ndarray) -> np.ndarray:
    """(p, q) matrix with the same products between its rows as a (p, g) one, q its rank."""
    left, singular, _ = np.linalg.svd(coefficients, full_matrices=False)
    keep = singular > 1e-12 * singular.max(initial=0.0)
    return largest_positive(left[:, keep] * singular[keep])


KNN = Method(KnnOptions, fit_knn, select=select)
KNN_SUPERVISED = Method(
    SupervisedOptions,
    lambda training, run: fit_knn(training, run) | fit_supervised(training, alphas=run.options.alphas),
    select=select,
    place=supervised_phi,
    learns="values",
)
