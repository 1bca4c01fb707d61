"""Lines of :func:`ragst_sd.get.explain`: from arrays, and those of a regression, of cell types, and of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._cited_values import Origin
from ragst_sd._labels import labels
from ragst_sd._results import Prediction
from ragst_sd._validate import require_key
from ragst_sd.retrieval.regression import row_weights
from ragst_sd.retrieval.training import dense

_ABOUT = ("reference", _keys.PERTURBATION, _keys.CONTEXT)
# Predictions are float32, and the sum of a regression runs over all rows.
_SAME = 1e-4
_NUMBERS = ("weight", "value", "correction", "contribution")


def lines_of(keep: np.ndarray, rank: Any, **columns: Any) -> pd.DataFrame:
    """A line for each true value of `keep`, (spots, genes, n), with what the columns hold there.

    Parameters
    ----------
    rank
        By which the lines of one spot and gene are ordered. Like the columns, it is broadcast to the shape of `keep`.
    """
    frame = dict(zip(("query", "gene"), np.nonzero(keep)[:2], strict=True))
    for name, values in {"rank": rank, **columns}.items():
        array = np.asarray(values, dtype=object if isinstance(values, str) else None)
        frame[name] = np.broadcast_to(array, keep.shape)[keep]
    return pd.DataFrame(frame)


def in_order(
    parts: Sequence[pd.DataFrame], table: AnnData, spots: np.ndarray, genes: np.ndarray, columns: Sequence[str]
) -> pd.DataFrame:
    """All lines by spot, gene and rank, with the names of spots and genes; a text that is not stated is empty."""
    frame = pd.concat(parts, ignore_index=True).sort_values(["query", "gene", "rank"], ignore_index=True)
    frame["query"] = table.obs_names.to_numpy(dtype=object)[spots][frame["query"]]
    frame["gene"] = table.var_names.to_numpy(dtype=object)[genes][frame["gene"]]
    texts = [name for name in columns if name not in _NUMBERS]
    frame = frame.reindex(columns=list(columns))
    # A column of nothing but missing texts is one of numbers, into which newer pandas fills no text.
    return frame.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


def regression_lines(
    origin: Origin, spots: np.ndarray, *, rank: int, share: np.ndarray, total: np.ndarray, by_row: bool
) -> pd.DataFrame:
    """Lines of what a regression adds, by section or by row; one line for a reference on disk, whose rows are not read.

    Parameters
    ----------
    rank
        Of the first line, as in :func:`lines_of`.
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
        return lines_of(always, rank, reference=name, contribution=total[..., None])
    genes, parameters = origin.columns, bank.fit.parameters
    shifts = parameters.get("section_shifts", np.zeros((bank.sections.max() + 1, len(bank.genes))))
    means = np.asarray(parameters["reference_mean"])[genes] + np.asarray(shifts)[:, genes]
    values = dense(bank.values[:, genes])
    keys = np.asarray(origin.prediction.table.obsm[_keys.REGRESSION_KEY], dtype=np.float64)[spots]
    eligible, pattern = origin.regression_rows()

    sections, first = np.unique(bank.sections, return_index=True)
    # The row that a line is about, or the first one of its section.
    row_of_line = np.arange(len(bank)) if by_row else first
    shape = (*total.shape, len(row_of_line))
    weight, contribution = np.zeros(shape), np.zeros(shape)
    # Genes that the same panels measured, and spots that may use the same rows, have the same regression.
    panels, panels_of_gene = np.unique(bank.measured[:, genes], axis=1, return_inverse=True)
    for p, e in np.ndindex(panels.shape[1], len(eligible)):
        rows = np.flatnonzero(panels[bank.panels, p] & eligible[e])
        asked, columns = np.flatnonzero(pattern[spots] == e), np.flatnonzero(panels_of_gene.ravel() == p)
        if not len(rows) or not len(asked):
            continue
        weights = row_weights(parameters, bank.regression_key, keys[asked], rows)
        residual = values[rows][:, columns] - means[bank.sections[rows]][:, columns]
        if by_row:
            here = np.ix_(asked, columns, rows)
            weight[here], contribution[here] = weights[:, None], weights[:, None] * residual.T
            continue
        for i, section in enumerate(sections):
            inside = bank.sections[rows] == section
            here = np.ix_(asked, columns, np.array([i]))
            weight[here] = weights[:, inside].sum(axis=1)[:, None, None]
            contribution[here] = (weights[:, inside] @ residual[inside])[..., None]
    weight, contribution = weight * share[..., None], contribution * share[..., None]
    difference = np.abs(contribution.sum(axis=2) - total)
    if (difference > _SAME * (1 + np.abs(contribution).sum(axis=2))).any():
        raise ValueError(
            f"The regression over the rows of this reference gives another value than the table holds (by "
            f"{difference.max():.3g}): rows that the spots do not cite changed since. Predict again, or give the "
            "reference as it was."
        )
    contribution[np.isnan(total)] = np.nan
    # Lines that say something; the first one where none does.
    keep = (weight != 0) | (np.nan_to_num(contribution) != 0)
    keep[..., 0] |= ~keep.any(axis=2)
    about: dict[str, Any] = {"reference": "regression", "weight": weight, "contribution": contribution}
    if by_row:
        about |= {"reference": bank.ids.astype(object), "value": values.T, "correction": -means[bank.sections].T}
    for name in (_keys.DONOR, _keys.SAMPLE):
        about[name] = bank.obs[name].iloc[row_of_line].astype(str).to_numpy(dtype=object)
    return lines_of(keep, rank + np.arange(len(row_of_line)), **about)


def cell_type_lines(origin: Origin, spots: np.ndarray) -> list[pd.DataFrame]:
    """Lines of :func:`ragst_sd.get.explain` for genes from single cells, types by falling fraction.

    Raises
    ------
    KeyError
        If the table lost its fractions.
    ValueError
        If the reference's cell types are not those that the prediction was made from.
    """
    about, prediction, genes = _same_cell_types(origin), origin.prediction, origin.genes
    obsm = prediction.table.obsm
    require_key(_keys.CELL_TYPE_FRACTION, obsm, "table.obsm", "`rg.tl.predict` writes it; predict again.")
    fractions = np.asarray(obsm[_keys.CELL_TYPE_FRACTION], dtype=np.float64)[spots]
    known = np.isfinite(fractions).all(axis=1)[:, None, None]
    n_types = fractions.shape[1]
    profiles = signatures_of(about, origin.names).T
    evidence = prediction.values(genes, spots, layer=_keys.EVIDENCE)[..., None]
    shape = (len(spots), len(genes), n_types)
    share = np.broadcast_to(fractions[:, None], shape)
    used = known & (share > 0)
    # Fractions mix counts, not their logarithms.
    amounts = np.where(used, share * profiles, 0.0)
    total = amounts.sum(axis=2, keepdims=True)
    contribution = evidence * np.divide(amounts, total, out=np.zeros(shape), where=total > 0)
    value = np.log1p(profiles)
    with np.errstate(invalid="ignore", divide="ignore"):
        correction = contribution / share - value
    numbers = {"weight": share, "value": value, "correction": correction, "contribution": contribution}
    rank = np.argsort(np.argsort(-share, axis=2, kind="stable"), axis=2)
    names = np.array(type_names(about), dtype=object)
    adjustment, always = prediction.values(genes, spots)[..., None] - evidence, np.ones(evidence.shape, dtype=bool)
    return [
        lines_of(used, rank, reference=names, **numbers),
        lines_of(always & ~known, n_types, reference="not measured"),
        lines_of(always, n_types + 1, reference="adjustment", contribution=adjustment),
    ]


def _same_cell_types(origin: Origin) -> Mapping[str, Any]:
    """The cell types of the reference, if the prediction was made from these; else raise a `ValueError`."""
    bank, made_from = origin.bank, origin.prediction.header.get(_keys.CELL_TYPES) or {}
    about = bank.header.cell_types
    current = "" if about is None else cell_types_hash(bank.ids, np.asarray(bank.types), about)
    if about is None or not len(signature_genes(about)) or current != made_from.get("hash"):
        raise ValueError(
            f"The prediction was made from cell types with hash {str(made_from.get('hash'))[:12]}; the reference has "
            f"{current[:12] or 'none'}. Explaining a gene from single cells needs the very signatures: run "
            "`rg.tl.add_cell_types` as it was, or predict again."
        )
    return about


def uncited_text(prediction: Prediction) -> str:
    """What stands in the column `reference` where a predicted response cites no rows."""
    return f"nothing cited: {prediction.header.get(_keys.STARTS_FROM, 'prediction without retrieval')}"


def explain_responses(prediction: Prediction, reference: AnnData, cells: np.ndarray, genes: np.ndarray) -> pd.DataFrame:
    """The frame of :func:`ragst_sd.get.explain` for predicted responses."""
    table, cited = prediction.table, prediction.cited
    rows, weights = prediction.citations(cells)
    cites: Any = rows >= 0
    rank = 1 + np.argsort(np.lexsort((rows, np.where(cites, -weights, np.inf)), axis=1), axis=1)
    weights = weights.astype(np.float64)[:, None, :]
    expression, response, evidence = (
        prediction.values(genes, cells, layer=layer)[..., None] for layer in (None, _keys.RESPONSE, _keys.EVIDENCE)
    )
    at = reference.obs_names.get_indexer(cited["reference"])
    columns = reference.var_names.get_indexer(table.var_names[genes])
    # One line more, of NaN, for -1 to point to.
    measured = np.concatenate([dense(reference.X[at][:, columns]), np.full((1, len(genes)), np.nan)])
    measured = measured[rows].transpose(0, 2, 1)
    about = {name: np.array([*cited[name].astype(str), ""], dtype=object)[rows][:, None] for name in _ABOUT}
    numbers = {"weight": weights, "value": measured, "contribution": measured * weights}
    control = labels(table.obs[_keys.PERTURBATION])[cells] == str(prediction.header["control"])
    instead = np.where(control, "control: no response", uncited_text(prediction)).astype(object)[:, None, None]
    always, last = np.ones(expression.shape, dtype=bool), rows.shape[1] + 1
    uncited = always & ~cites.any(axis=1)[:, None, None]
    source = expression - response
    parts = [
        lines_of(always, 0, reference="source", value=source, contribution=source),
        lines_of(cites[:, None] & always, rank[:, None], **about, **numbers),
        lines_of(uncited, last, reference=instead, value=evidence, contribution=evidence),
        lines_of(always, last + 1, reference="adjustment", contribution=response - evidence),
    ]
    return in_order(parts, table, cells, genes, ("query", "gene", *_ABOUT, "weight", "value", "contribution"))
