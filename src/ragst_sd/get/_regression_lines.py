"""The regression of a stack, resolved into measured rows: the last lines of :func:`ragst_sd.get.explain`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._cited_values import Origin
from ragst_sd.get._lines import lines_of
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.regression import REGRESSION, row_weights
from ragst_sd.retrieval.training import dense, reference_mean

# Predictions are float32, and the sum runs over all rows.
_SAME = 1e-4


def regression_lines(
    origin: Origin, spots: np.ndarray, *, place: int, share: np.ndarray, total: np.ndarray, by_row: bool
) -> pd.DataFrame:
    """Lines by section, or by row; of a reference on disk, whose rows are not read, a single one.

    Parameters
    ----------
    place
        Of the first line, as in :func:`ragst_sd.get._lines.lines_of`.
    share
        (spots, genes) share of the regression in each value.
    total
        (spots, genes) what the regression added, as it is stored.

    Raises
    ------
    ValueError
        If the lines do not add up to it: the reference, or the table, changed.
    """
    bank = origin.bank
    if bank.lazy or not share.any():
        name, always = "regression" if share.any() else "adjustment", np.ones((*total.shape, 1), dtype=bool)
        return lines_of(always, place, reference=name, contribution=total[..., None])
    genes, parameters = origin.columns, bank.fit.parameters
    shifts = parameters.get("section_shifts", np.zeros((bank.sections.max() + 1, len(bank.genes))))
    means = np.asarray(parameters["reference_mean"])[genes] + np.asarray(shifts)[:, genes]
    values = dense(bank.values[:, genes])
    keys = np.asarray(origin.prediction.table.obsm[_keys.REGRESSION_KEY], dtype=np.float64)[spots]
    eligible, pattern = _eligible(origin)
    pattern = pattern[spots]

    sections, first = np.unique(bank.sections, return_index=True)
    lines = np.arange(len(bank)) if by_row else first
    shape = (*total.shape, len(lines))
    weight, contribution = np.zeros(shape), np.zeros(shape)
    # By panel: rows are too many to be compared.
    patterns, of_gene = np.unique(bank.measured[:, genes], axis=1, return_inverse=True)
    for p, e in np.ndindex(patterns.shape[1], len(eligible)):
        rows = np.flatnonzero(patterns[bank.panels, p] & eligible[e])
        of_pattern, columns = np.flatnonzero(pattern == e), np.flatnonzero(of_gene.ravel() == p)
        if not len(rows) or not len(of_pattern):
            continue
        h = row_weights(parameters, bank.regression_key, keys[of_pattern], rows)
        residual = values[rows][:, columns] - means[bank.sections[rows]][:, columns]
        if by_row:
            here = np.ix_(of_pattern, columns, rows)
            weight[here], contribution[here] = h[:, None], h[:, None] * residual.T
            continue
        for i, section in enumerate(sections):
            inside = bank.sections[rows] == section
            here = np.ix_(of_pattern, columns, np.array([i]))
            weight[here] = h[:, inside].sum(axis=1)[:, None, None]
            contribution[here] = (h[:, inside] @ residual[inside])[..., None]
    weight, contribution = weight * share[..., None], contribution * share[..., None]
    difference = np.abs(contribution.sum(axis=2) - total)
    if (difference > _SAME * (1 + np.abs(contribution).sum(axis=2))).any():
        raise ValueError(
            f"The regression over the rows of this reference gives another value than the table holds (by "
            f"{difference.max():.3g}): rows that the spots do not cite changed since. Predict again, or give the "
            "reference as it was."
        )
    contribution[np.isnan(total)] = np.nan
    says = (weight != 0) | (np.nan_to_num(contribution) != 0)
    says[..., 0] |= ~says.any(axis=2)
    about: dict[str, Any] = {"reference": "regression", "weight": weight, "contribution": contribution}
    if by_row:
        about |= {"reference": bank.ids.astype(object), "value": values.T, "correction": -means[bank.sections].T}
    for name in (_keys.DONOR, _keys.SAMPLE):
        about[name] = bank.obs[name].iloc[lines].astype(str).to_numpy(dtype=object)
    return lines_of(says, place + np.arange(len(lines)), **about)


def mean_of_stack(origin: Origin) -> tuple[np.ndarray, np.ndarray]:
    """(patterns, genes) mean of the rows that may be used, and the pattern of each of the table's spots.

    Raises
    ------
    ValueError
        If the reference has no longer a fit with a regression.
    """
    bank, header = origin.bank, origin.prediction.header
    if bank.fit is None or REGRESSION not in bank.fit.parameters or bank.regression_key is None:
        raise ValueError(
            f"The prediction was made by {str(header['method'])!r} with a regression, which the reference no longer "
            f"has: it was fitted anew since, or lost `obsm[{_keys.REGRESSION_KEY!r}]`. Fit it as it was: "
            f"`rg.tl.fit(reference, method={str(header['method'])!r})`."
        )
    if bool(header["center_sections"]) or _keys.REGRESSION_ROWS not in header:
        levels, level_of = origin.level_means()
        if not METHODS[str(header["method"])].cites:
            # The level of the query's own section moves what is cited, and nothing is.
            levels = np.zeros_like(levels)
        return np.asarray(bank.fit.parameters["reference_mean"])[origin.columns] + levels, level_of
    eligible, level_of = _eligible(origin)
    part = bank.at_genes(origin.columns)
    return np.stack([reference_mean(part, np.flatnonzero(rows)) for rows in eligible]), level_of


def _eligible(origin: Origin) -> tuple[np.ndarray, np.ndarray]:
    """(patterns, rows) rows that the regression was solved on, and the pattern of each of the table's spots."""
    bank, prediction = origin.bank, origin.prediction
    if _keys.REGRESSION_ROWS not in prediction.header:
        return np.ones((1, len(bank)), dtype=bool), np.zeros(prediction.table.n_obs, dtype=np.int64)
    packed = np.atleast_2d(np.asarray(prediction.header[_keys.REGRESSION_ROWS], dtype=np.uint8))
    by_id = np.unpackbits(packed, axis=1, count=len(bank)).astype(bool)
    return by_id[:, np.argsort(np.argsort(bank.ids, kind="stable"))], prediction.patterns
