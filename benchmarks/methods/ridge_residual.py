r"""Ridge plus what it missed at the neighbours.

.. math:: \hat y(x) = f(x) + \sum_j w_j \bigl( y_j - f_{-c(j)}(x_j) \bigr)

with :math:`f_{-c}` ridge fitted without group c: a neighbour's residual is what ridge misses on a donor that it has not
seen, as it has not seen the query's. As evidence plus adjustment, the adjustment is
:math:`f(x) - \sum_j w_j f_{-c(j)}(x_j)`.

    rg.tl.register_method("ridge_residual", METHOD)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.evidence import cited_mean
from ragst_sd.retrieval.knn import SupervisedOptions, fit_knn, select
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.projection import project
from ragst_sd.retrieval.ridge import fit_ridge
from ragst_sd.retrieval.training import reference_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragst_sd.retrieval.bank import Answer, Bank, Run, Selection

_GATHERED_VALUES = 2**24


def fit_residual(training: Bank, *, alphas: Sequence[float], centred: bool = False) -> dict[str, Any]:
    """Ridge on all rows, and once more without each group of rows, all with the penalty of the first.

    Parameters
    ----------
    centred
        Whether evidence is taken relative to the means of sections. Then the level of a fold's fit is the reference
        mean too, and not the mean of the other groups, so that residuals do not bring differences between sections back.

    Returns
    -------
    `coefficients` (p, g) and `intercept` (g,) relative to the per-gene reference mean; `fold_coefficients` (folds, p, g)
    and `fold_intercept` (folds, g), relative to the same mean; `folds` (m,), `panels` (m,) and `measured` (panels, g) of
    the training rows; `alpha`.

    A gene that only one group measured cannot be predicted from the others: that group takes its residuals from the fit
    on all rows. They are smaller than on unseen rows, so the neighbours correct less, never more.
    """
    full = fit_ridge(training, alphas=alphas)
    mean = reference_mean(training)
    groups, codes = np.unique(training.folds, return_inverse=True)
    coefficients = np.empty((len(groups), *full["coefficients"].shape))
    intercept = np.empty((len(groups), len(mean)))
    for group in range(len(groups)):
        rows = np.flatnonzero(codes != group)
        # A single group: the penalty is chosen, and nothing is held out any more.
        rest = replace(training, folds=np.zeros_like(training.folds)).at_rows(rows)
        fitted = fit_ridge(rest, alphas=[float(full["alpha"])])
        level = reference_mean(rest)
        known = ~np.isnan(level)
        coefficients[group] = np.where(known, fitted["coefficients"], full["coefficients"])
        shift = np.zeros(len(mean)) if centred else np.where(known, level - mean, 0.0)
        intercept[group] = np.where(known, fitted["intercept"] + shift, full["intercept"])
    return {
        "coefficients": full["coefficients"],
        "intercept": full["intercept"],
        "fold_coefficients": coefficients,
        "fold_intercept": intercept,
        "folds": codes.ravel(),
        "panels": np.asarray(training.panels),
        "measured": training.measured,
        "alpha": full["alpha"],
    }


def residual_adjustment(parameters: dict[str, Any], bank: Bank, cited: Selection) -> np.ndarray:
    r"""What is added to evidence: :math:`f(x) - \sum_j w_j f_{-c(j)}(x_j)`, (n, g).

    The sum is over the cited rows that measured the gene, their weights renormalised as in evidence. Both terms hold the
    reference mean, which drops out.
    """
    out = project(cited.key, np.zeros(cited.key.shape[1]), parameters["coefficients"]) + parameters["intercept"]
    measured = np.asarray(parameters["measured"], dtype=bool)
    patterns, inverse = np.unique(measured.T, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        genes = np.flatnonzero(inverse.ravel() == i)
        voted = (cited.rows >= 0) & pattern[parameters["panels"]][np.maximum(cited.rows, 0)]
        weights = np.where(voted, cited.weights, 0.0)
        if not pattern.all():
            total = weights.sum(axis=1, keepdims=True)
            weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        shares, moments = _sums_by_fold(parameters, bank.key, cited.rows, weights)
        stacked = parameters["fold_coefficients"][:, :, genes].reshape(moments.shape[1], -1)
        levels = parameters["fold_intercept"][:, genes]
        both = np.concatenate([moments, shares], axis=1)
        out[:, genes] -= project(both, np.zeros(both.shape[1]), np.concatenate([stacked, levels]))
    return out


def _sums_by_fold(
    parameters: dict[str, Any], key: np.ndarray, cited: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per query and fold the sums of w_j, (n, folds), and of w_j phi_j, (n, folds * q)."""
    n, k = cited.shape
    n_folds, width = parameters["fold_coefficients"].shape[:2]
    shares, moments = np.zeros((n, n_folds)), np.zeros((n, n_folds, width))
    fold_ids = np.arange(n_folds)[:, None]
    step = max(1, _GATHERED_VALUES // max(1, k * (width + n_folds)))
    for start in range(0, n, step):
        part = slice(start, start + step)
        rows = np.maximum(cited[part], 0)
        by_fold = np.where(parameters["folds"][rows][:, None, :] == fold_ids, weights[part][:, None, :], 0.0)
        shares[part] = by_fold.sum(axis=2)
        moments[part] = by_fold @ key[rows]
    return shares, moments.reshape(n, n_folds * width)


def _fit(training: Bank, run: Run) -> dict[str, Any]:
    options = run.options
    residual = fit_residual(training, alphas=options.alphas, centred=options.center_sections)
    return {**fit_knn(training, run), **residual}


def _answer(parameters: dict[str, Any], bank: Bank, selection: Selection) -> Answer:
    adjustment = residual_adjustment(parameters, bank, selection)
    return cited_mean(parameters, bank, selection)._replace(adjustment=adjustment.astype(np.float32))


METHOD = Method(
    SupervisedOptions,
    _fit,
    select=select,
    answer=_answer,
    per_gene=("coefficients", "intercept", "fold_coefficients", "fold_intercept", "measured"),
    per_row=("folds", "panels"),
    learns="values",
)
