"""What a picture of predicted responses shows: the response of one population, what it rests on, and weights by cell state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._perturbation_reference import perturbation_header
from ragst_sd._results import holds_responses, matching_reference, predicted
from ragst_sd._validate import hint, listing, require_key
from ragst_sd.reference.perturbations import canonical
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._perturbed_table import remembered
from ragst_sd.tl._respond import response_from_half

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

# Weights that differ by less are the same weights, rounded.
_SAME = 1e-4


@dataclass(frozen=True)
class Measured:
    """The measured response of the perturbation, in one context, beside a prediction that shares no controls with it."""

    predicted: np.ndarray
    values: np.ndarray
    error: np.ndarray
    n_cells: int
    reliability: float
    labels: tuple[str, str]
    """What both axes hold."""


@dataclass(frozen=True)
class Shown:
    """One perturbation of a table of predicted responses."""

    table: AnnData
    """Its rows, in all contexts."""
    header: dict[str, Any]
    perturbation: str
    context: str
    response: np.ndarray
    """(g,) mean predicted response in the context."""
    cited: pd.DataFrame
    """Cited rows by falling weight, with a column `weight` (mean over the rows of the context)."""
    agreement: np.ndarray
    """Correlation of each cited response with the measured one, against other controls; NaN where nothing is known."""
    measured: Measured | None
    weights: np.ndarray
    """(cited, states) weights, in the order of `cited`; no columns where all states share them."""
    states: list[str]
    """Names of the states; empty where each column is a spot."""


def read_responses(
    data: SpatialData | AnnData,
    *,
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
    table, header = predicted(data, prediction_key, any_task=True)
    if not holds_responses(header):
        msg = "The table holds a prediction of tissue; `rg.pl.prediction` draws it. Responses are made by `rg.tl.perturb`."
        raise ValueError(msg)
    name = _one_of(labels(table.obs[_keys.PERTURBATION]), perturbation, "perturbation")
    part = table[labels(table.obs[_keys.PERTURBATION]) == name]
    contexts = labels(part.obs[_keys.CONTEXT])
    chosen = sorted(set(contexts))[0] if context is None else _one_of(contexts, context, "context")
    here = contexts == chosen
    require_key(group_by, list(part.obs.columns), "table.obs")
    genes = list(table.var_names)
    response = dense(part.layers[_keys.RESPONSE][here]).astype(np.float64).mean(axis=0)
    learned = (canonical(name, str(header["control"])), chosen) in remembered(header)
    measured, found, row = None, None, None
    if reference is not None:
        found = matching_reference(reference, header)
        excluded = {str(one) for one in np.atleast_1d(header["exclude"])}
        if truth is None and {_keys.PERTURBATION, _keys.CONTEXT} <= excluded and not learned:
            row = _row(found, header, name, chosen, genes)
        if row is not None:
            measured = _from_halves(found, header, part[here], row, response)
    if truth is not None:
        row = _row(_checked(truth, header, table), header, name, chosen, genes)
        if row is None:
            has = sorted(set(labels(truth.obs[_keys.PERTURBATION])))
            msg = f"`truth` did not measure {name!r} in context {chosen!r}; it measured {listing(has)}."
            raise ValueError(msg)
        what = f"measured, which {header['method']} learned from" if learned else "measured (other controls)"
        measured = _facts(row, response, dense(row.X), (what, "predicted response"))
    weights = _by_row(part, len(header[_keys.CITED]))
    mean = weights[here].mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    everywhere = weights.max(axis=0)
    order = order[everywhere[order] > 0]
    cited = header[_keys.CITED].iloc[order].assign(weight=mean[order])
    groups, names = _states(weights[:, order], labels(part.obs[group_by]))
    return Shown(
        table=part,
        header=header,
        perturbation=name,
        context=chosen,
        response=response,
        cited=cited,
        agreement=_agreement(cited, found, row, against_halves=truth is None),
        measured=measured,
        weights=groups,
        states=names,
    )


def _one_of(present: np.ndarray, asked: str | None, argument: str) -> str:
    names = sorted(set(present))
    if asked is None:
        if len(names) > 1:
            msg = f"`{argument}` is needed: the table holds {listing(names)}."
            raise ValueError(msg)
        return names[0]
    if asked not in names:
        msg = f"`{argument}`: the table has no {asked!r}; it holds {listing(names)}.{hint(asked, names)}"
        raise KeyError(msg)
    return asked


def _row(reference: AnnData, header: dict[str, Any], name: str, context: str, genes: list[str]) -> AnnData | None:
    """The row of the very perturbation and context, which the prediction did not use."""
    control = str(header["control"])
    same = np.array([canonical(one, control) for one in labels(reference.obs[_keys.PERTURBATION])], dtype=object)
    rows = np.flatnonzero((same == canonical(name, control)) & (labels(reference.obs[_keys.CONTEXT]) == context))
    if len(rows) != 1:
        return None
    return reference[rows[0], genes]


def _from_halves(
    reference: AnnData, header: dict[str, Any], shown: AnnData, row: AnnData, response: np.ndarray
) -> Measured | None:
    """The row against one half of the controls, beside the prediction made from the other half; nothing if that cannot be made."""
    state = None
    if str(header.get("resolution", "")) != "spot":
        state = dense(shown.X).astype(np.float64).mean(axis=0) - response
    name, context = (str(row.obs[column].iloc[0]) for column in (_keys.PERTURBATION, _keys.CONTEXT))
    again = response_from_half(reference, header, name, context, response, list(row.var_names), state)
    if again is None:
        return None
    values = dense(row.layers[_keys.RESPONSE_HALVES[1]])
    return _facts(row, again, values, ("measured (one half of the controls)", "predicted (other half)"))


def _facts(row: AnnData, predicted: np.ndarray, values: np.ndarray, names: tuple[str, str]) -> Measured:
    return Measured(
        predicted,
        values.astype(np.float64).ravel(),
        dense(row.layers[_keys.STANDARD_ERROR]).astype(np.float64).ravel(),
        int(row.obs[_keys.N_CELLS].iloc[0]),
        float(row.obs[_keys.RELIABILITY].iloc[0]),
        names,
    )


def _checked(truth: AnnData, header: dict[str, Any], table: AnnData) -> AnnData:
    """A reference of measured responses in the unit and of the genes of the prediction."""
    about = perturbation_header(truth)
    shared = set(np.asarray(about[_keys.CONTROL_CELLS]).astype(str)) & set(
        np.asarray(header[_keys.CONTROL_CELLS]).astype(str)
    )
    if shared:
        msg = (
            f"`truth` was measured against {len(shared)} of the controls that the prediction rests on, whose noise would count as agreement. "
            "Build it on the cells 'test' and 'control_test' of `rg.tl.perturbation_folds`."
        )
        raise ValueError(msg)
    own = about["normalization"]
    if str(own["unit"]) != str(header["unit"]):
        msg = f"`truth` is in {own['unit']}, the prediction in {header['unit']}. Build it with the `target_sum` of the reference."
        raise ValueError(msg)
    lacking = [gene for gene in table.var_names if gene not in truth.var_names]
    if lacking:
        msg = f"`truth` did not measure {len(lacking)} of the {table.n_vars} genes predicted: {listing(lacking)}."
        raise ValueError(msg)
    return truth


def _by_row(part: AnnData, n_cited: int) -> np.ndarray:
    """(rows, cited) weights."""
    rows, weights = np.asarray(part.obsm[_keys.ROWS]), np.asarray(part.obsm[_keys.WEIGHTS], dtype=np.float64)
    out = np.zeros((part.n_obs, n_cited))
    at, place = np.nonzero((rows >= 0) & (weights > 0))
    np.add.at(out, (at, rows[at, place]), weights[at, place])
    return out


def _states(weights: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Weights by group; by row where there is one group and rows differ; nothing where all are alike."""
    names = sorted(set(groups))
    if not weights.size or np.ptp(weights, axis=0).max() < _SAME:
        return np.zeros((weights.shape[1], 0)), []
    if len(names) > 1:
        return np.stack([weights[groups == name].mean(axis=0) for name in names], axis=1), names
    centred = weights - weights.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    place = centred @ (axis * np.sign(axis[np.argmax(np.abs(axis))]))
    return weights[np.argsort(place, kind="stable")].T, []


def _agreement(
    cited: pd.DataFrame, reference: AnnData | None, row: AnnData | None, *, against_halves: bool
) -> np.ndarray:
    if reference is None or row is None or not len(cited):
        return np.full(len(cited), np.nan)
    others = reference[cited["reference"].to_numpy(), row.var_names]
    if not against_halves:
        return _correlations(dense(others.X), dense(row.X))
    # Both ways round: what is cited against one half of the controls, the truth against the other.
    one, other = _keys.RESPONSE_HALVES
    both = [_correlations(dense(others.layers[a]), dense(row.layers[b])) for a, b in ((one, other), (other, one))]
    return np.mean(both, axis=0)


def _correlations(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    truth = truth.astype(np.float64).ravel()
    return np.array([correlation(row, truth) for row in values.astype(np.float64)])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; NaN where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / scale) if scale > 1e-12 else np.nan
