"""`rg.tl.evaluate_perturbation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._results import predicted, remembered
from ragst_sd._validate import as_names, as_seed, listing, require_known, require_positive, require_some
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK
from ragst_sd.tl._measured_responses import Measured, genes_of_both, measured_responses, measured_table, predicted_lines
from ragst_sd.tl._perturbation_metrics import (
    CHOICES,
    DEFAULT_METRICS,
    Predicted,
    Scoring,
    ceiling,
    replicate_scores,
    scores_of,
)
from ragst_sd.tl._response_metrics import CHOICES as OF_RESPONSES
from ragst_sd.tl._response_metrics import SIZES
from ragst_sd.tl._response_table import response_adata

CEILING = "ceiling"
COLUMNS = [
    _keys.CONTEXT, _keys.PERTURBATION, "subset", "metric", "value", _keys.N_CELLS, _keys.RELIABILITY, _keys.TASK,
    CEILING,
]  # fmt: skip


def evaluate_perturbation(
    data: AnnData | Mapping[str, AnnData],
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    metrics: Sequence[str] | None = None,
    min_cells: int = 10,
    min_reliability: float = 0.5,
    n_components: int = 50,
    max_cells: int = 300,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> pd.DataFrame:
    r"""Compare predicted responses with measured ones.

    The truth must be measured against controls that neither the reference nor the prediction used. Otherwise an error
    is raised: the noise of shared controls would be in both responses and count as accuracy, and predicting the mean
    would score well on data without any effect.

    Parameters
    ----------
    data
        Made by :func:`ragst_sd.tl.perturb`; or a mapping from method to such tables of the same genes and unit, which
        are then compared with the very same truth.
    adata
        Measured cells: the perturbed ones, and controls of which some were kept out of the reference and of `data`, as
        :func:`ragst_sd.tl.perturbation_folds` arranges. For a reference of given responses the measured responses of
        all perturbations, as :func:`ragst_sd.tl.build_perturbation_reference` takes them; of a wide data frame the
        columns of the predicted genes are read.
    perturbation_key
        Column of `adata.obs` with the perturbation.
    context_key
        Column of `adata.obs` with the context; one context, `"all"`, if left out.
    batch_key
        Column of `adata.obs` with the batch.
    layer
        Layer of `adata`; `.X` if left out.
    unit
        Of cells: `"counts"`, which are normalised as the prediction is, or `"log1p_cp10k"` for values on its scale
        already.
    metrics
        Some of the following; the first three groups if left out.

        Of mean profiles and mean responses (delta): `"pearson_delta"` (0 where a response does not vary), `"mae"`,
        `"mse"`, `"mae_delta"`, `"mse_delta"`.

        `"discrimination_score_l1"`, `"_l2"`, `"_cosine"`: one minus the share of the context's measured responses that
        are nearer to the prediction than its own, without the perturbed genes; .5 is chance.

        `"pearson_delta_centroid"`: correlation of the differences from the mean of all other perturbed cells instead of
        controls (Systema), which no shift that all perturbations share can raise. Prediction and truth are compared
        with the centroids of disjoint halves of these cells.

        `"overlap_at_N"`, `"precision_at_N"` (also `50`, `100`) and `"de_direction_match"`: agreement of differentially
        expressed genes (Mann-Whitney, false discovery rate 5 %), of predicted cells against their sources and of
        measured cells against held-out controls.

        `"energy"`, `"wasserstein1"`, `"wasserstein2"`, `"mmd"`: distances between the predicted and the measured cells,
        in principal components of the measured ones, from at most `max_cells` cells each.

        Where responses were given there are no cells and no controls. Possible are `"pearson_delta"`, `"mae_delta"`,
        `"mse_delta"` (not of ranks, which have no sizes), the discrimination scores, and, all if left out:
        `"centred_cosine"`, cosine of the differences from the mean response of the context in the reference, 0 for the
        mean; `"rank_score"`, one minus the share of the context's measured responses whose difference is more like the
        predicted one than its own is; `"best_tenth"`, whether its own is in the best tenth; `"top_genes"`, share of the
        tenth of the genes that went up most that is in the predicted tenth.
    min_cells
        Perturbations with fewer measured cells are not compared.
    min_reliability
        From which reliability on a perturbation counts as reliable.
    n_components
        Principal components for distances between cells.
    max_cells
        Cells of each kind for distances between cells.
    rng
        Seed, generator or seed sequence of numpy, of splits and draws; `None` draws anew at each call.

    Returns
    -------
    Long data frame: `context`, `perturbation`, `subset`, `metric`, `value`, `n_cells` (measured), `reliability`
    (Pearson correlation of the responses of two halves of the screen that share neither cells nor controls), `task`
    (`"unseen perturbation"`, `"unseen here"`: another context measured it, or `"measured in a combination"` only; they
    are not averaged with each other), and `ceiling`: the best that a prediction without noise could score, from one
    half of the measured cells and held-out controls as a prediction of the other half, both ways round:
    :math:`\sqrt{2r/(1+r)}` of correlations, a quarter of squared and half of absolute differences; of other metrics
    what the halves score, each being half as large as the truth. NaN without cells. :func:`ragst_sd.get.gap_closed`
    sets methods in relation to it.

    Beside the metrics asked for, the metric `ceiling` is the largest `pearson_delta` that the noise of the truth
    allows, from its reliability r against held-out controls: :math:`\sqrt{2r/(1+r)}`. Lines of `subset` `"each"` hold
    one perturbation; those of `"all"` and `"reliable"`, with an empty `perturbation`, the means of a context.
    `pearson_delta` of a prediction of no change is 0. With a mapping a first column `method`.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If `data` was not made by `rg.tl.perturb`, no controls are left for the truth, nothing predicted was measured, a
        metric needs cells or sizes of effects that are not there, values are not what `unit` says, or the network of
        `pt_rag` was trained on a response that it is compared with (`uns["retrieval"]["learned_from"]`).

    References
    ----------
    Metrics are named as in `cell-eval <https://github.com/ArcInstitute/cell-eval>`__; for the centroid of perturbed
    cells see Viñas Torné et al. (2025), Systema, doi:10.1038/s41587-025-02777-8.

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(2.0, size=(160, 210)).astype("float32"))
    >>> adata.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2", "IRF1"], 40)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "IRF1": [0.8, 0.1]}
    >>> role = rg.tl.perturbation_folds(adata)["STAT1"]
    >>> seen = adata[role.isin(["train", "control_train"])]
    >>> reference = rg.tl.build_perturbation_reference(seen, embedding=embedding)
    >>> rg.tl.fit(reference, method="mean")
    >>> predicted = rg.tl.perturb(adata[role == "control_train"], reference, perturbations=["STAT1"])
    >>> scores = rg.tl.evaluate_perturbation(predicted, adata, metrics=["pearson_delta"])
    >>> list(scores["metric"].unique())
    ['pearson_delta', 'ceiling']
    """
    for name, value in (("min_cells", min_cells), ("n_components", n_components), ("max_cells", max_cells)):
        require_positive(value, name, whole=True)
    tables, header = _tables(data)
    first, seed = next(iter(tables.values())), as_seed(rng)
    given = str(header["normalization"].get("given"))
    keys: dict[str, Any] = {"perturbation_key": perturbation_key, "context_key": context_key}
    how = Scoring(_metrics(metrics, given), str(header["control"]), int(n_components), int(max_cells), seed)
    most: dict[str, np.ndarray] = {}
    if given in RESPONSE_UNITS:
        columns = map(str, adata.columns) if isinstance(adata, pd.DataFrame) else ()
        named = [name for name in columns if name in first.var_names]
        adata, layer = response_adata(adata, perturbation_key, context_key, None, layer=layer, unit=given, genes=named)
        genes = genes_of_both(first, adata, header)
        truth = measured_table(adata, header, genes, **keys, layer=layer)
        how = replace(how, means=_means_at(header, genes))
    else:
        genes = genes_of_both(first, adata, header)
        read: dict[str, Any] = {"batch_key": batch_key, "layer": layer, "unit": unit, "min_cells": int(min_cells)}
        truth = measured_responses(adata, list(tables.values()), genes, **keys, **read, rng=np.random.default_rng(seed))
        most = replicate_scores(truth, genes, how)
    parts = []
    for method, whole in tables.items():
        table = whole[:, genes]
        pairs = predicted_lines(table, truth)
        lines = [line for line, _ in pairs]
        _require_unseen(whole.uns[_keys.RETRIEVAL], [truth.names[line] for line in lines])
        scores = scores_of(Predicted.of_table(table, pairs), truth, genes, how)
        scores[CEILING] = ceiling(truth.held_out_reliability[lines])
        tasks = np.asarray(table.obs[_keys.TASK])[[rows[0] for _, rows in pairs]] if _keys.TASK in table.obs else ""
        part = _frame(truth, lines, scores, float(min_reliability), tasks, most)
        if isinstance(data, Mapping):
            part.insert(0, "method", method)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _metrics(asked: Sequence[str] | None, given: str) -> list[str]:
    """The metrics asked for, or those of the data at hand: of cells, or of responses in the unit `given`."""
    if given not in RESPONSE_UNITS:
        chosen = as_names(DEFAULT_METRICS if asked is None else asked)
        require_known(chosen, CHOICES, "metrics")
        return chosen
    possible = [name for name in OF_RESPONSES if given != "rank" or name not in SIZES]
    chosen = possible if asked is None else as_names(asked)
    for why, names in (
        ("need cells or controls, and the reference was built from responses", set(CHOICES) - set(OF_RESPONSES)),
        ("compare sizes of effects, which ranks do not have", set(OF_RESPONSES) - set(possible)),
    ):
        lacking = [name for name in chosen if name in names]
        if lacking:
            raise ValueError(f"`metrics` {listing(lacking)} {why}. Possible are {listing(possible)}.")
    require_known(chosen, possible, "metrics")
    return chosen


def _means_at(header: dict[str, Any], genes: list[str]) -> dict[str, np.ndarray]:
    """(g,) mean response of each context in the reference that a table of responses was predicted from."""
    known = header[_keys.CONTEXT_MEANS]
    rows = np.asarray(known["mean"])[:, pd.Index(np.asarray(known["gene"], dtype=str)).get_indexer(genes)]
    return {str(context): row for context, row in zip(np.atleast_1d(known["context"]), rows, strict=True)}


def _require_unseen(header: dict[str, Any], compared: list[tuple[str, str]]) -> None:
    """Raise a `ValueError` if a method was trained on the responses that it is compared with."""
    learned = remembered(header)
    known = [f"{name} in {context}" for context, name in compared if (name, context) in learned]
    if known:
        raise ValueError(
            f"Method {str(header['method'])!r} was trained on the measured responses to {listing(known)}, although "
            "they were left out of what it may cite: agreement with them is memory, not accuracy. Fit a reference "
            "without them, on the cells 'train' and 'control_train' of `rg.tl.perturbation_folds`."
        )


def _tables(data: AnnData | Mapping[str, AnnData]) -> tuple[dict[str, AnnData], dict[str, Any]]:
    """Predicted tables by method, and what their headers say of unit and controls."""
    given = {str(name): table for name, table in data.items()} if isinstance(data, Mapping) else {"": data}
    require_some(given, "data", "Give a table made by `rg.tl.perturb`, or a mapping from method to such tables.")
    headers = {name: predicted(table, "", any_task=True).header for name, table in given.items()}
    if any(header.get("task") != TASK for header in headers.values()):
        raise ValueError(
            "`data` is a prediction of tissue; compare it with `rg.tl.evaluate`. Responses are predicted by "
            "`rg.tl.perturb`."
        )
    first = next(iter(given))
    for name, table in given.items():
        alike = all(headers[name][field] == headers[first][field] for field in ("unit", "control"))
        if not alike or list(table.var_names) != list(given[first].var_names):
            raise ValueError(
                f"The tables {first!r} and {name!r} differ in genes, unit or control. Compare them one by one."
            )
    return given, headers[first]


def _frame(
    truth: Measured,
    lines: list[int],
    scores: dict[str, np.ndarray],
    min_reliability: float,
    tasks: Any,
    most: dict[str, np.ndarray],
) -> pd.DataFrame:
    labels = pd.DataFrame(truth.names, columns=[_keys.CONTEXT, _keys.PERTURBATION])
    labels = labels.assign(**{_keys.N_CELLS: truth.n_cells, _keys.RELIABILITY: truth.reliability}).iloc[lines]
    labels = labels.assign(**{_keys.TASK: tasks, "subset": "each"})
    unknown = np.full(len(truth.names), np.nan)
    parts = [
        labels.assign(metric=name, value=values, **{CEILING: most.get(name, unknown)[lines]})
        for name, values in scores.items()
    ]
    each = pd.concat(parts)[COLUMNS]
    parts = [each]
    for subset, part in (("all", each), ("reliable", each[each[_keys.RELIABILITY] >= min_reliability])):
        # The two tasks are not averaged with each other.
        means = part.groupby([_keys.CONTEXT, _keys.TASK, "metric"], sort=False).agg(
            {"value": "mean", _keys.N_CELLS: "sum", _keys.RELIABILITY: "mean", CEILING: "mean"}
        )
        parts.append(means.reset_index().assign(**{_keys.PERTURBATION: "", "subset": subset})[list(each.columns)])
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
