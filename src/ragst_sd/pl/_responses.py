"""What a picture of predicted responses shows: one population's response, what it rests on, weights by cell state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._reference import read_header
from ragst_sd._respond import response_from_half
from ragst_sd._results import Prediction, predicted, remembered, require_matching
from ragst_sd._validate import listing, require_key, require_known
from ragst_sd.reference.responses import canonical, recognised, row_correlation
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.training import dense

# Weights that differ by less are the same weights, rounded.
_SAME = 1e-4


@dataclass(frozen=True)
class Measured:
    """The perturbation's measured response, in one context, beside a prediction that shares no controls with it."""

    row: AnnData
    """Row of the reference that measured it."""
    values: np.ndarray
    predicted: np.ndarray
    labels: tuple[str, str]
    """What both axes hold."""


@dataclass(frozen=True)
class Shown:
    """One perturbation of a table of predicted responses."""

    prediction: Prediction
    """Its rows of the table, in all contexts."""
    perturbation: str
    context: str
    cited: pd.DataFrame
    """Cited rows by falling weight, with a column `weight` (mean over the rows of the context), and one `agreement`:
    the correlation of the cited response with the measured one, against other controls; NaN where nothing is known."""
    measured: Measured | None
    weights: np.ndarray
    """(cited, states) weights, in the order of `cited`; no columns where all states share them."""
    states: list[str]
    """Names of the states; empty where each column is a spot."""


def read_responses(
    data: SpatialData | AnnData,
    prediction_key: str,
    perturbation: str | None,
    context: str | None,
    reference: AnnData | None,
    truth: AnnData | None,
    group_by: str,
) -> Shown:
    """Read one perturbation of a table that :func:`ragst_sd.tl.perturb` made.

    Raises
    ------
    KeyError
        If the table, the perturbation, the context or a column does not exist.
    ValueError
        If the table holds no responses, several perturbations could be meant, or the reference is another one.
    """
    prediction = predicted(data, prediction_key, any_task=True)
    table = prediction.table
    if not prediction.of_responses:
        raise ValueError(
            "The table holds a prediction of tissue; `rg.pl.prediction` draws it. Responses are made by "
            "`rg.tl.perturb`."
        )
    names = labels(table.obs[_keys.PERTURBATION])
    if perturbation is None and len(set(names)) > 1:
        raise ValueError(f"`perturbation` is needed: the table holds {listing(sorted(set(names)))}.")
    perturbation = names[0] if perturbation is None else perturbation
    require_known([perturbation], sorted(set(names)), "perturbation", ": the table has no", KeyError)
    prediction = replace(prediction, table=table[names == perturbation])
    obs = prediction.table.obs
    contexts = labels(obs[_keys.CONTEXT])
    context = min(contexts) if context is None else context
    require_known([context], sorted(set(contexts)), "context", ": the table has no", KeyError)
    require_key(group_by, list(obs.columns), "table.obs")
    if reference is not None:
        require_matching(prediction, reference)
    measured, row = _measured(prediction, perturbation, context, reference, truth)
    weights = _weights_by_cell(prediction)
    mean = weights[contexts == context].mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    order = order[weights.max(axis=0)[order] > 0]
    cited = prediction.cited.iloc[order].assign(weight=mean[order], agreement=np.nan)
    if reference is not None and row is not None:
        responses = reference[cited["reference"].to_numpy(), list(table.var_names)]
        against_halves = truth is None and _keys.RESPONSE_HALVES[0] in reference.layers
        cited["agreement"] = _agreement(responses, row, against_halves=against_halves)
    of_states, states = _weights_by_state(weights[:, order], labels(obs[group_by], missing=_keys.UNKNOWN))
    return Shown(prediction, perturbation, context, cited, measured, of_states, states)


def _measured(
    prediction: Prediction, perturbation: str, context: str, reference: AnnData | None, truth: AnnData | None
) -> tuple[Measured | None, AnnData | None]:
    """The measured response beside a prediction, where they can be compared, and the row that was measured.

    It is a row of `truth`, or else of the reference.
    """
    table, header, genes = prediction.table, prediction.header, list(prediction.table.var_names)
    here = labels(table.obs[_keys.CONTEXT]) == context
    response = dense(table.layers[_keys.RESPONSE][here]).mean(axis=0)
    learned = (canonical(perturbation, str(header["control"])), context) in remembered(header)
    if truth is not None:
        _check_truth(truth, header, genes)
        row = _row(truth, header, perturbation, context, genes)
        if row is None:
            has = sorted(set(labels(truth.obs[_keys.PERTURBATION])))
            raise ValueError(
                f"`truth` did not measure {perturbation!r} in context {context!r}; it measured {listing(has)}."
            )
        what = f"measured, which {header['method']} learned from" if learned else "measured (other controls)"
        return Measured(row, dense(row.X).ravel(), response, (what, "predicted response")), row
    left_out = {_keys.PERTURBATION, _keys.CONTEXT} <= set(np.atleast_1d(header["exclude"]).astype(str))
    if reference is None or learned or not left_out:
        return None, None
    row = _row(reference, header, perturbation, context, genes)
    if row is None:
        return None, None
    if _keys.RESPONSE_HALVES[0] not in row.layers:
        # Responses as they were given: the row was left out of its prediction, and nothing is known of controls.
        return Measured(row, dense(row.X).ravel(), response, ("measured", "predicted response")), row
    # The row against one half of the controls, beside the prediction made from the other half.
    of_spots = str(header.get("resolution", "")) == "spot"
    state = None if of_spots else dense(table.X[here]).mean(axis=0) - response
    name, where = (str(row.obs[column].iloc[0]) for column in (_keys.PERTURBATION, _keys.CONTEXT))
    from_half = response_from_half(reference, header, name, where, response, genes, state)
    if from_half is None:
        return None, row
    values = dense(row.layers[_keys.RESPONSE_HALVES[1]]).ravel()
    labels_of_axes = ("measured (one half of the controls)", "predicted (other half)")
    return Measured(row, values, from_half, labels_of_axes), row


def _row(reference: AnnData, header: dict[str, Any], name: str, context: str, genes: list[str]) -> AnnData | None:
    """The row of the very perturbation and context, which the prediction did not use."""
    control = str(header["control"])
    names = np.array([canonical(each, control) for each in labels(reference.obs[_keys.PERTURBATION])], dtype=object)
    same = (names == canonical(name, control)) & (labels(reference.obs[_keys.CONTEXT]) == context)
    return reference[same, genes] if same.sum() == 1 else None


def _check_truth(truth: AnnData, header: dict[str, Any], genes: list[str]) -> None:
    """Raise a `ValueError` unless it holds measured responses in the unit and of the genes of the prediction."""
    about = read_header(truth, TASK)
    controls = [set(np.asarray(each[_keys.CONTROL_CELLS]).astype(str)) for each in (header, about)]
    n_shared = len(controls[0] & controls[1])
    ours, theirs = (each.get(_keys.CONTROL_PRINTS) for each in (header, about))
    if ours is not None and theirs is not None:
        values = sp.csr_matrix(np.asarray(theirs["values"]))
        n_shared = max(n_shared, int(recognised(values, theirs["genes"], ours).sum()))
    if n_shared:
        raise ValueError(
            f"`truth` was measured against {n_shared} of the controls that the prediction rests on, whose noise "
            "would count as agreement. Build it on the cells 'test' and 'control_test' of `rg.tl.perturbation_folds`."
        )
    unit = str(about["normalization"]["unit"])
    if unit != str(header["unit"]):
        raise ValueError(
            f"`truth` is in {unit}, the prediction in {header['unit']}. Build it with the `target_sum` of the "
            "reference."
        )
    lacking = [gene for gene in genes if gene not in truth.var_names]
    if lacking:
        raise ValueError(
            f"`truth` did not measure {len(lacking)} of the {len(genes)} genes predicted: {listing(lacking)}."
        )


def _weights_by_cell(prediction: Prediction) -> np.ndarray:
    """(cells, cited) weight of each cited row in each cell of the table."""
    rows, weights = prediction.citations()
    # For -1 there is one column more, the last one.
    out = np.zeros((len(rows), len(prediction.cited) + 1))
    np.put_along_axis(out, rows, weights, axis=1)
    return out[:, :-1]


def _weights_by_state(weights: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(cited, states) weights, and the names of the states, which are groups of cells.

    Where there is one group and its cells differ, each cell is a state without a name; where all are alike, there is
    none.
    """
    from sklearn.decomposition import PCA

    if not weights.size or np.ptp(weights, axis=0).max() < _SAME:
        return np.zeros((weights.shape[1], 0)), []
    means = pd.DataFrame(weights).groupby(groups).mean()
    if len(means) > 1:
        return means.to_numpy().T, list(means.index)
    place = PCA(n_components=1).fit_transform(weights)[:, 0]
    return weights[np.argsort(place, kind="stable")].T, []


def _agreement(cited: AnnData, row: AnnData, *, against_halves: bool) -> np.ndarray:
    """Correlation of the response of each cited row with that of the measured one."""
    pairs = [(cited.X, row.X)]
    if against_halves:
        # Both ways round: what is cited against one half of the controls, the truth against the other.
        first, second = _keys.RESPONSE_HALVES
        pairs = [(cited.layers[a], row.layers[b]) for a, b in ((first, second), (second, first))]
    return np.mean([row_correlation(dense(values), dense(truth)) for values, truth in pairs], axis=0)
