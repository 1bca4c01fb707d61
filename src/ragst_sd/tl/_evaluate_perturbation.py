"""`rg.tl.evaluate_perturbation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._results import predicted
from ragst_sd._validate import hint, listing, require_positive
from ragst_sd.reference.perturbation_schema import TASK
from ragst_sd.reference.perturbations import canonical, components
from ragst_sd.reference.responses import CONTROL, halves, row_correlation
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._distribution_metrics import DISTANCES, distribution_distance, principal_axes
from ragst_sd.tl._measured_responses import Measured, measured_responses
from ragst_sd.tl._perturbation_metrics import (
    DISCRIMINATION,
    OVERLAPS,
    ceiling,
    differential_expression,
    direction_match,
    discrimination_score,
    mean_metrics,
    overlap,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

_MEANS = ("pearson_delta", "mae", "mse", "mae_delta", "mse_delta")
_CENTROID = "pearson_delta_centroid"
_DIRECTION = "de_direction_match"
DEFAULT_METRICS = (*_MEANS, *DISCRIMINATION, _CENTROID)
CHOICES = (*DEFAULT_METRICS, *OVERLAPS, _DIRECTION, *DISTANCES)
CEILING = "ceiling"
_PCA_CELLS = 5000


def evaluate_perturbation(
    data: AnnData,
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
    rng: int = 0,
) -> pd.DataFrame:
    r"""Compare predicted responses with measured ones.

    The truth is measured against controls that neither the reference nor the prediction has seen. A truth that shares
    them is refused: the noise of shared controls is in both responses and counts as accuracy, and predicting the mean
    then scores well on data without any effect.

    Parameters
    ----------
    data
        Made by :func:`ragst_sd.tl.perturb`.
    adata
        Measured cells: the perturbed ones, and controls of which some were kept out of the reference and of `data`, as
        :func:`ragst_sd.tl.perturbation_folds` arranges.
    perturbation_key
        Column of `adata.obs` with the perturbation.
    context_key
        Column of `adata.obs` with the context; one context, `"all"`, if left out.
    batch_key
        Column of `adata.obs` with the batch.
    layer
        Layer of `adata`; `.X` if left out.
    unit
        `"counts"`, which are normalised as the prediction is, or `"log1p_cp10k"` for values on its scale already.
    metrics
        Some of the following; the first three groups if left out.

        Of mean profiles and mean responses (delta): `"pearson_delta"`, `"mae"`, `"mse"`, `"mae_delta"`, `"mse_delta"`.

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
    min_cells
        Perturbations with fewer measured cells are not compared.
    min_reliability
        From which reliability on a perturbation counts as reliable.
    n_components
        Principal components for distances between cells.
    max_cells
        Cells of each kind for distances between cells.
    rng
        Seed of splits and draws.

    Returns
    -------
    Long data frame: `context`, `perturbation`, `subset`, `metric`, `value`, `n_cells` (measured), `reliability` (Pearson
    correlation of the responses of two halves of the screen that share neither cells nor controls). Beside the metrics
    asked for, `ceiling` is the largest `pearson_delta` that the noise of the truth allows, from its reliability r against
    held-out controls: :math:`\sqrt{2r/(1+r)}`. Lines of `subset` `"each"` hold one perturbation; those of `"all"` and
    `"reliable"`, with an empty `perturbation`, the means of a context. `pearson_delta` of a prediction of no change is 0.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If `data` was not made by `rg.tl.perturb`, no controls are left for the truth, nothing predicted was measured, or
        values are not what `unit` says.

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
    table, header = predicted(data, "")
    if header.get("task") != TASK:
        msg = "`data` is a prediction of tissue; compare it with `rg.tl.evaluate`. Responses are predicted by `rg.tl.perturb`."
        raise ValueError(msg)
    chosen = _chosen(metrics)
    for name, value in (("min_cells", min_cells), ("n_components", n_components), ("max_cells", max_cells)):
        require_positive(value, name, whole=True)
    genes = _shared_genes(table, adata, header)
    generator = np.random.default_rng(rng)
    truth = measured_responses(
        adata, header, genes, set(table.obs[_keys.SOURCE].astype(str)), perturbation_key=perturbation_key,
        context_key=context_key, batch_key=batch_key, layer=layer, unit=unit, min_cells=int(min_cells), rng=generator,
    )  # fmt: skip
    table = table[:, genes]
    pairs = _pairs(table, truth, str(header["control"]))
    scores = _mean_scores(table, truth, pairs, chosen, str(header["control"]), generator)
    scores |= _cell_scores(table, truth, pairs, chosen, int(n_components), int(max_cells), generator)
    scores = {name: scores[name] for name in chosen}
    scores[CEILING] = ceiling(truth.own_reliability[[line for line, _ in pairs]])
    return _frame(truth, [line for line, _ in pairs], scores, float(min_reliability))


def _chosen(metrics: Sequence[str] | None) -> list[str]:
    chosen = list(DEFAULT_METRICS) if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in chosen if name not in CHOICES]
    if unknown:
        msg = f"`metrics` has {listing(unknown)}; available: {listing(CHOICES)}.{hint(unknown[0], CHOICES)}"
        raise ValueError(msg)
    return chosen


def _shared_genes(table: AnnData, adata: AnnData, header: dict[str, Any]) -> list[str]:
    from ragst_sd.reference.genes import available_names

    offered = available_names(list(adata.var_names), {name: adata.var[name].astype(str) for name in adata.var})
    measured = set(offered.get(str(header["naming"]), []))
    shared = [gene for gene in table.var_names if gene in measured]
    if not shared:
        msg = f"Prediction and `adata` share no genes: {listing(table.var_names[:5])} against {listing(adata.var_names[:5])}."
        raise ValueError(msg)
    return shared


def _pairs(table: AnnData, truth: Measured, control: str) -> list[tuple[int, np.ndarray]]:
    """Lines of the truth that were predicted, and the predicted cells of each."""
    names = table.obs[_keys.PERTURBATION].astype(str).map(lambda name: canonical(name, control)).to_numpy()
    contexts = table.obs[_keys.CONTEXT].astype(str).to_numpy()
    found = [
        (line, cells)
        for line, (context, name) in enumerate(truth.names)
        if len(cells := np.flatnonzero((names == name) & (contexts == context)))
    ]
    if not found:
        was = sorted(set(zip(contexts, names, strict=True)))
        msg = (
            f"Nothing that was predicted was measured, with enough cells: predicted (context, perturbation) {listing(was)}, "
            f"measured {listing(truth.names)}. Contexts of both must be named alike."
        )
        raise ValueError(msg)
    return found


def _mean_scores(
    table: AnnData,
    truth: Measured,
    pairs: list[tuple[int, np.ndarray]],
    chosen: list[str],
    control: str,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    lines = np.array([line for line, _ in pairs])
    profile = np.array([dense(table.X[cells]).mean(axis=0, dtype=np.float64) for _, cells in pairs])
    delta = np.array([dense(table.layers[_keys.RESPONSE][cells]).mean(axis=0, dtype=np.float64) for _, cells in pairs])
    scores = mean_metrics(profile, truth.profile[lines], delta, truth.delta[lines])
    names = {gene: i for i, gene in enumerate(table.var_names)}
    contexts = np.array([context for context, _ in truth.names])
    if set(chosen) & set(DISCRIMINATION):
        excluded = [
            np.array([names[gene] for gene in components(truth.names[line][1], control) if gene in names], dtype=int)
            for line in lines
        ]
        scores |= {name: np.empty(len(lines)) for name in DISCRIMINATION}
        for context in np.unique(contexts[lines]):
            here, at = np.flatnonzero(contexts == context), np.flatnonzero(contexts[lines] == context)
            own = np.searchsorted(here, lines[at])
            for name in DISCRIMINATION:
                scores[name][at] = discrimination_score(
                    delta[at], truth.delta[here], own, [excluded[i] for i in at], name.rpartition("_")[2]
                )
    if _CENTROID in chosen:
        scores[_CENTROID] = _centroid_correlation(profile, truth, lines, rng)
    return scores


def _centroid_correlation(
    profile: np.ndarray, truth: Measured, lines: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Correlation of differences from the mean of all other perturbations, disjoint halves of whose cells serve each side."""
    first = halves(truth.row, rng)
    sides = []
    for part in (first, ~first):
        means = [
            np.asarray(truth.values[(truth.row == i) & part].mean(axis=0)).ravel() for i in range(len(truth.names))
        ]
        sides.append(np.asarray(means, dtype=np.float64))
    contexts = np.array([context for context, _ in truth.names])
    out = np.full(len(lines), np.nan)
    for i, line in enumerate(lines):
        others = np.flatnonzero((contexts == contexts[line]) & (np.arange(len(contexts)) != line))
        if len(others):
            a, b = (side[others].mean(axis=0) for side in sides)
            out[i] = row_correlation((profile[i] - a)[None], (truth.profile[line] - b)[None])[0]
    return out


def _cell_scores(
    table: AnnData,
    truth: Measured,
    pairs: list[tuple[int, np.ndarray]],
    chosen: list[str],
    n_components: int,
    max_cells: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Metrics that need single cells."""
    genes, distances = set(chosen) & {*OVERLAPS, _DIRECTION}, [name for name in DISTANCES if name in chosen]
    scores = {name: np.full(len(pairs), np.nan) for name in (*genes, *distances)}
    axes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, (line, cells) in enumerate(pairs if scores else []):
        context = truth.names[line][0]
        ours = dense(table.X[cells]).astype(np.float64)
        theirs = truth.cells(line)
        if genes:
            source = ours - dense(table.layers[_keys.RESPONSE][cells])
            found = differential_expression(ours, source)
            expected = differential_expression(theirs, truth.controls(context))
            for name in genes:
                match = name == _DIRECTION
                scores[name][i] = direction_match(found[0], expected) if match else overlap(found, expected, name)
        if distances:
            if context not in axes:
                at = np.flatnonzero((truth.row >= CONTROL) & (truth.context == context))
                at = np.sort(rng.choice(at, min(_PCA_CELLS, len(at)), replace=False))
                axes[context] = principal_axes(truth.values[at].toarray().astype(np.float64), n_components)
            n = min(len(ours), len(theirs), max_cells)
            mean, components_ = axes[context]
            drawn = [(x[rng.permutation(len(x))[:n]] - mean) @ components_ for x in (ours, theirs)]
            for name in distances:
                scores[name][i] = distribution_distance(*drawn, name)
    return scores


def _frame(truth: Measured, lines: list[int], scores: dict[str, np.ndarray], min_reliability: float) -> pd.DataFrame:
    import pandas as pd

    each = pd.DataFrame(
        [
            (*truth.names[line], "each", name, values[i], int(truth.n_cells[line]), truth.reliability[line])
            for name, values in scores.items()
            for i, line in enumerate(lines)
        ],
        columns=[_keys.CONTEXT, _keys.PERTURBATION, "subset", "metric", "value", _keys.N_CELLS, _keys.RELIABILITY],
    )
    parts = [each]
    for subset, part in (("all", each), ("reliable", each[each[_keys.RELIABILITY] >= min_reliability])):
        means = part.groupby([_keys.CONTEXT, "metric"], sort=False).agg(
            {"value": "mean", _keys.N_CELLS: "sum", _keys.RELIABILITY: "mean"}
        )
        parts.append(means.reset_index().assign(**{_keys.PERTURBATION: "", "subset": subset})[list(each.columns)])
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
