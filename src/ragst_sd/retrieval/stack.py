"""The stack: what the cited rows say and what the regression says, each by its share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.evidence import cited_mean
from ragst_sd.retrieval.regression import REGRESSION, regression_of


def stacked(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    r"""Evidence and adjustment of a stack.

    .. math:: m_g + a_g \sum_j W_j (y_{jg} - \bar y_{s(j)g}), \qquad (1 - a_g) H_g(x)

    with m the mean of the rows that may be used. Where no cited row measured a gene, a is zero.
    """
    answer = cited_mean(parameters, bank, selection)
    if "adjustment_in" in parameters:  # fits of earlier releases
        return answer._replace(adjustment=_earlier_adjustment(parameters, bank, selection).astype(np.float32))
    if REGRESSION not in parameters:
        return answer
    share, missing = np.asarray(parameters["retrieval_share"]), np.isnan(answer.evidence)
    if missing.any():
        share = np.where(missing, 0.0, share)
    if (share == 1).all():
        return answer
    mean = mean_of_eligible(parameters, selection.pattern)
    # In place: these are the largest arrays of a prediction.
    evidence = answer.evidence - mean
    evidence[missing] = 0
    evidence *= share
    evidence += mean
    adjustment = regression_of(parameters, bank, selection)
    adjustment *= 1 - share
    if (share == 1).any():
        # There the regression is not needed, and may be NaN.
        adjustment[np.broadcast_to(share == 1, adjustment.shape)] = 0
    # No row that may be used measured it, and so there is no mean of such rows either.
    evidence[np.isnan(adjustment)] = np.nan
    return answer._replace(evidence=evidence.astype(np.float32), adjustment=adjustment.astype(np.float32))


def mean_of_eligible(parameters: Mapping[str, Any], pattern: np.ndarray) -> np.ndarray:
    """Mean of each gene over the rows that each query may use, (n, g), or (g,) where it is the same for all.

    Parameters
    ----------
    pattern
        (n,) pattern of each query; `parameters["level"]` are the means by pattern, relative to that of the reference.
    """
    mean = np.asarray(parameters["reference_mean"], dtype=np.float64)
    if "level" not in parameters:
        return mean
    levels = parameters["level"]
    return np.asarray(mean + (levels[0] if len(levels) == 1 else levels[pattern]))


def nothing_cited(query: Query) -> Selection:
    """A selection that cites no rows."""
    shape = (len(query.key), query.n_neighbors)
    return Selection(query.key, np.full(shape, -1), np.zeros(shape), np.full(shape, np.nan))


def _earlier_adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    r"""(n, g) adjustment of fits of earlier releases, which stood where the regression H stands today.

    .. math:: T(u) = u L C, \qquad u = \phi(x) - \sum_j w_j \phi(x_j)

    u is zero where nothing is cited.
    """
    from scipy.sparse import csr_matrix

    phi, weights, (n, k) = selection.key, selection.weights, selection.rows.shape
    parts = weights.ravel(), np.maximum(selection.rows, 0).ravel(), np.arange(0, n * k + 1, k)
    centre = csr_matrix(parts, shape=(n, len(bank.key))) @ bank.key
    offset = np.where(weights.any(axis=1, keepdims=True), phi - centre, 0.0)
    return offset @ np.asarray(parameters["adjustment_in"]) @ parameters["adjustment_out"]
