r"""Cell types as a condition of the search: spots are compared with what their picture says of the types in them.

.. math:: \phi(x) = A\,[w\,(\hat t(x) - \bar t),\; x], \qquad \phi(x_j) = A\,[w\,(\sqrt{c_j} - \bar t),\; x_j]

A query x carries the square roots of fractions that ridge regression predicts from its embedding, :math:`\hat t`; a
row of the reference those of its own fractions :math:`c_j`. Their distance is that of Hellinger, and A, learned with
the rest, decides how much it counts beside the embedding. In training a query is predicted from other groups, as it
will be at prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.blocks import product_in_blocks
from ragst_sd.retrieval.ridge import fit_ridge

_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 3, 13))
# Share of the squared length of an input that types make up before training.
_SHARE = 0.2


def fit_types(training: Bank) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Cell types of all rows as inputs of phi, and what predicts those of new queries from principal components.

    Returns
    -------
    (m, t) types of the rows as queries, predicted from other groups; (m, t) types of the rows as they are retrieved,
    known from their fractions or else predicted; and parameters `types_map` (p, t), `types_intercept` and `types_mean`
    (t,), `types_weight`.
    """
    key = training.key
    if training.types is None:
        raise ValueError("Cell types are to be a condition of the search, but the rows have none.")
    known = np.isfinite(training.types).all(axis=1)
    roots = np.sqrt(np.where(known[:, None], training.types, 0.0))
    of_all = _regression(training, roots, np.flatnonzero(known))
    predicted = _predict(of_all, key)
    queries = predicted.copy()
    for fold in np.unique(training.folds):
        near = training.beside[:, fold] if training.beside is not None and fold >= 0 else False
        others = np.flatnonzero(known & (training.folds != fold) & ~np.asarray(near))
        # With one group there is nobody else to learn from.
        if len(others) > 2:
            held = training.folds == fold
            queries[held] = _predict(_regression(training, roots, others), key[held])
    bank = np.where(known[:, None], roots, predicted)
    mean = bank.mean(axis=0)
    length = ((bank - mean) ** 2).sum(axis=1).mean()
    weight = np.sqrt(_SHARE / (1 - _SHARE) * (key**2).sum(axis=1).mean() / max(length, 1e-12))
    parameters = {**of_all, "types_mean": mean, "types_weight": np.float64(weight)}
    return weight * (queries - mean), weight * (bank - mean), parameters


def typed_queries(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """(n, t + p) predicted types and principal components; the components alone for a fit without types."""
    if "types_map" not in parameters:
        return key
    types = _predict(parameters, key) - np.asarray(parameters["types_mean"])
    return np.concatenate([float(parameters["types_weight"]) * types, key], axis=1)


def _regression(training: Bank, roots: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Ridge regression of square roots of fractions on principal components, over some rows."""
    # As genes that all rows measured; folds are held out as they are, without rows beside them.
    panels, measured = np.zeros(len(roots), dtype=np.int64), np.ones((1, roots.shape[1]), dtype=bool)
    part = replace(training, values=roots, panels=panels, measured=measured, beside=None).at_rows(rows)
    fitted = fit_ridge(part, alphas=_ALPHAS)
    # The intercept of ridge is relative to the mean of what it was fitted on.
    intercept = np.asarray(fitted["intercept"]) + part.values.mean(axis=0)
    return {"types_map": np.asarray(fitted["coefficients"]), "types_intercept": intercept}


def _predict(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    return product_in_blocks(key, np.asarray(parameters["types_map"])) + np.asarray(parameters["types_intercept"])
