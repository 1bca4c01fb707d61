"""Scores of the predictions of one method, one value per perturbation and context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd.reference.perturbations import components
from ragst_sd.reference.responses import CONTROL, halves, row_correlation
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._distribution_metrics import DISTANCES, distribution_distance, principal_axes
from ragst_sd.tl._perturbation_metrics import (
    DISCRIMINATION,
    OVERLAPS,
    differential_expression,
    direction_match,
    discrimination_score,
    mean_metrics,
    overlap,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.tl._measured_responses import Measured

MEANS = ("pearson_delta", "mae", "mse", "mae_delta", "mse_delta")
CENTROID = "pearson_delta_centroid"
DIRECTION = "de_direction_match"
DEFAULT_METRICS = (*MEANS, *DISCRIMINATION, CENTROID)
CHOICES = (*DEFAULT_METRICS, *OVERLAPS, DIRECTION, *DISTANCES)
_PCA_CELLS = 5000


def mean_scores(
    table: AnnData,
    truth: Measured,
    pairs: list[tuple[int, np.ndarray]],
    chosen: list[str],
    control: str,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Metrics of mean profiles and mean responses.

    Parameters
    ----------
    table
        Predicted cells.
    pairs
        Lines of the truth that were predicted, and the predicted cells of each.
    chosen
        Names of metrics; those of means are cheap and always there.
    control
        Name of the control.
    """
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
    if CENTROID in chosen:
        scores[CENTROID] = _centroid_correlation(profile, truth, lines, rng)
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


def cell_scores(
    table: AnnData,
    truth: Measured,
    pairs: list[tuple[int, np.ndarray]],
    chosen: list[str],
    n_components: int,
    max_cells: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Metrics that need single cells."""
    genes, distances = set(chosen) & {*OVERLAPS, DIRECTION}, [name for name in DISTANCES if name in chosen]
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
                match = name == DIRECTION
                scores[name][i] = direction_match(found[0], expected) if match else overlap(found, expected, name)
        if distances:
            if context not in axes:
                at = np.flatnonzero((truth.row >= CONTROL) & (truth.context == context))
                at = np.sort(rng.choice(at, min(_PCA_CELLS, len(at)), replace=False))
                axes[context] = principal_axes(truth.values[at].toarray().astype(np.float64), n_components)
            n = min(len(ours), len(theirs), max_cells)
            mean, components_ = axes[context]
            one, other = ((x[rng.permutation(len(x))[:n]] - mean) @ components_ for x in (ours, theirs))
            for name in distances:
                scores[name][i] = distribution_distance(one, other, name)
    return scores
