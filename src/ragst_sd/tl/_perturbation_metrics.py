"""Metrics of predicted responses, named as in cell-eval where it has them, and values for a method's predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.stats import false_discovery_control, mannwhitneyu

from ragst_sd import _keys
from ragst_sd.reference.responses import CONTROL, halves, row_correlation
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._response_metrics import (
    DISCRIMINATION,
    RESPONSE_METRICS,
    centred_scores,
    discrimination_scores,
    mean_metrics,
    of_context,
)

if TYPE_CHECKING:
    from ragst_sd.tl._measured_responses import Measured


OVERLAPS = tuple(f"{kind}_at_{k}" for kind in ("overlap", "precision") for k in ("N", "50", "100"))
MEANS = ("pearson_delta", "mae", "mse", "mae_delta", "mse_delta")
CENTROID = "pearson_delta_centroid"
DIRECTION = "de_direction_match"
DISTANCES = ("energy", "wasserstein1", "wasserstein2", "mmd")
DEFAULT_METRICS = (*MEANS, *DISCRIMINATION, CENTROID)
CHOICES = (*DEFAULT_METRICS, *OVERLAPS, DIRECTION, *DISTANCES)
FALSE_DISCOVERY_RATE = 0.05
_PCA_CELLS = 5000


@dataclass(frozen=True)
class Scoring:
    """How predictions are scored."""

    metrics: list[str]
    control: str
    n_components: int
    max_cells: int
    seed: int
    means: dict[str, np.ndarray] = field(default_factory=dict)
    """(g,) mean response of each context in the reference, where responses were given."""


@dataclass(frozen=True)
class Predicted:
    """What is compared with lines of the truth."""

    lines: np.ndarray
    """(q,) of the truth."""
    profile: np.ndarray
    """(q, g) mean expression."""
    delta: np.ndarray
    """(q, g) mean response."""
    cells: Callable[[int], tuple[np.ndarray, np.ndarray]]
    """Cells (n, g) of the i-th line, and cells that were not perturbed."""

    @classmethod
    def of_table(cls, table: AnnData, pairs: list[tuple[int, np.ndarray]]) -> Predicted:
        """A table of predicted cells, with the lines that were predicted and the rows of each."""
        response = table.layers[_keys.RESPONSE]

        def cells(i: int) -> tuple[np.ndarray, np.ndarray]:
            ours = dense(table.X[pairs[i][1]])
            return ours, ours - dense(response[pairs[i][1]])

        profile, delta = (
            np.array([dense(values[rows]).mean(axis=0) for _, rows in pairs]) for values in (table.X, response)
        )
        return cls(np.array([line for line, _ in pairs]), profile, delta, cells)

    @classmethod
    def of_measured(cls, part: Measured) -> Predicted:
        """A part of the measured cells, as if it were a prediction of the rest."""

        def cells(line: int) -> tuple[np.ndarray, np.ndarray]:
            return part.cells(line), part.controls(part.names[line][0])

        return cls(np.arange(len(part.names)), part.profile, part.delta, cells)


def replicate_scores(truth: Measured, genes: list[str], how: Scoring) -> dict[str, np.ndarray]:
    """(lines,) the best that a prediction could score: one half of the measured cells as a prediction of the other.

    Averaged both ways round. The halves share neither cells nor controls, as a prediction and its truth do not. Each
    has twice the noise variance of the whole, so that their squared difference is four times, and their absolute one
    twice, that of the whole from what it would be without noise. For correlations see `ceiling`; other metrics stay as
    the halves give them.
    """
    groups = np.where(truth.row == CONTROL, len(truth.names) + truth.stratum, truth.row)
    first = halves(groups, np.random.default_rng(how.seed))
    parts = (truth.part(first), truth.part(~first))
    by_first, by_second = (
        scores_of(Predicted.of_measured(half), rest, genes, how) for half, rest in (parts, parts[::-1])
    )
    scores = {name: (by_first[name] + by_second[name]) / 2 for name in how.metrics}
    # From two noisy halves to a prediction without noise and the whole truth, where that is known.
    of_halves = {"mse": 1 / 4, "mae": 1 / 2}
    for name, value in scores.items():
        if name in ("pearson_delta", CENTROID):
            scores[name] = ceiling(value)
        elif name in MEANS:
            scores[name] = value * of_halves[name[:3]]
    return scores


def scores_of(predicted: Predicted, truth: Measured, genes: list[str], how: Scoring) -> dict[str, np.ndarray]:
    """(q,) values of each metric: of mean profiles, of mean responses and of single cells."""
    rng, asked = np.random.default_rng(how.seed), set(how.metrics)
    lines, profile, delta = predicted.lines, predicted.profile, predicted.delta
    # Given responses come without profiles, and their metrics are of responses only.
    expected = truth.delta if truth.values is None else truth.profile
    scores = mean_metrics(profile, expected[lines], delta, truth.delta[lines])
    if asked & set(DISCRIMINATION):
        scores |= discrimination_scores(delta, truth, lines, genes, how.control)
    if asked & set(RESPONSE_METRICS):
        scores |= centred_scores(delta, truth, lines, how.means)
    if CENTROID in asked:
        scores[CENTROID] = _centroid_correlation(profile, truth, lines, rng)
    scores |= _cell_scores(predicted, truth, how, rng)
    return {name: scores[name] for name in how.metrics}


def _centroid_correlation(
    profile: np.ndarray, truth: Measured, lines: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Correlation of differences from the mean of all other perturbations, one half of their cells for each side."""
    first = halves(truth.row, rng)
    sides = [replace(truth, row=np.where(half, truth.row, CONTROL)).profile for half in (first, ~first)]
    out = np.full(len(lines), np.nan)
    for i, line in enumerate(lines):
        here = of_context(truth, line)
        if len(here) > 1:
            a, b = (side[here[here != line]].mean(axis=0) for side in sides)
            out[i] = row_correlation((profile[i] - a)[None], (truth.profile[line] - b)[None])[0]
    return out


def _cell_scores(
    predicted: Predicted, truth: Measured, how: Scoring, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Metrics that need single cells."""
    of_genes = [name for name in how.metrics if name in (*OVERLAPS, DIRECTION)]
    distances = [name for name in how.metrics if name in DISTANCES]
    scores = {name: np.full(len(predicted.lines), np.nan) for name in (*of_genes, *distances)}
    axes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, line in enumerate(predicted.lines if scores else []):
        context = truth.names[line][0]
        ours, source = predicted.cells(i)
        theirs = truth.cells(line)
        if not len(ours) or not len(theirs):
            continue
        if of_genes:
            predicted_de = differential_expression(ours, source)
            expected = differential_expression(theirs, truth.controls(context))
            for name in of_genes:
                if name == DIRECTION:
                    scores[name][i] = direction_match(predicted_de[0], expected)
                else:
                    scores[name][i] = overlap(predicted_de, expected, name)
        if distances:
            if context not in axes:
                at = np.flatnonzero((truth.row >= CONTROL) & (truth.context == context))
                at = np.sort(rng.choice(at, min(_PCA_CELLS, len(at)), replace=False))
                axes[context] = principal_axes(dense(truth.values[at]), how.n_components)
            n = min(len(ours), len(theirs), how.max_cells)
            mean, components = axes[context]
            first, second = ((x[rng.permutation(len(x))[:n]] - mean) @ components for x in (ours, theirs))
            for name in distances:
                scores[name][i] = distribution_distance(first, second, name)
    return scores


def differential_expression(cells: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means and false discovery rate of each gene, by the rank-sum test of Mann and Whitney."""
    varies = np.ptp(np.concatenate([cells, controls]), axis=0) > 0
    p = np.ones(cells.shape[1])
    if varies.any():
        p[varies] = mannwhitneyu(cells[:, varies], controls[:, varies], axis=0, method="asymptotic").pvalue
    return cells.mean(axis=0) - controls.mean(axis=0), false_discovery_control(p)


def overlap(predicted: tuple[np.ndarray, np.ndarray], measured: tuple[np.ndarray, np.ndarray], name: str) -> float:
    """Share of differentially expressed genes found in both.

    Genes with a false discovery rate under 5 % are ranked by the absolute difference of means. `overlap_at_k` asks how
    many of the k first measured ones are among the k first predicted ones; `precision_at_k` the other way round. k is
    at most the number of measured (overlap) or predicted (precision) genes, and all of them for N.
    """
    kind, _, k = name.partition("_at_")
    ranked = []
    for difference, fdr in (measured, predicted):
        genes = np.flatnonzero(fdr < FALSE_DISCOVERY_RATE)
        ranked.append(genes[np.argsort(-np.abs(difference[genes]), kind="stable")])
    available = len(ranked[0] if kind == "overlap" else ranked[1])
    depth = available if k == "N" else min(int(k), available)
    return len(np.intersect1d(ranked[0][:depth], ranked[1][:depth])) / depth if depth else 0.0


def direction_match(predicted: np.ndarray, measured: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of the measured differentially expressed genes whose predicted difference has the same sign.

    NaN without any.
    """
    difference, fdr = measured
    significant = fdr < FALSE_DISCOVERY_RATE
    if not significant.any():
        return float("nan")
    return float((np.sign(predicted[significant]) == np.sign(difference[significant])).mean())


def ceiling(reliability: np.ndarray) -> np.ndarray:
    r"""Largest correlation with a response of which two halves correlate by r: :math:`\sqrt{2 r / (1 + r)}`.

    The response of all cells has the reliability 2 r / (1 + r) (Spearman and Brown); the response without noise
    correlates with it by the root of that.
    """
    positive = np.maximum(reliability, 0)
    return np.sqrt(2 * positive / (1 + positive))


def distribution_distance(x: np.ndarray, y: np.ndarray, name: str) -> float:
    r"""Distance between cells x (n, d) and y (m, d).

    `energy`
        :math:`2\,E|x-y| - E|x-x'| - E|y-y'|`
    `wasserstein1`, `wasserstein2`
        Mean distance, and root mean squared distance, of the best matching of the cells; n = m.
    `mmd`
        :math:`E\,k(x,x') + E\,k(y,y') - 2\,E\,k(x,y)` with :math:`k = \exp(-|a-b|^2 / 2 s^2)` and s the median distance
        among the cells y.
    """
    between = cdist(x, y)
    if name == "energy":
        return float(2 * between.mean() - cdist(x, x).mean() - cdist(y, y).mean())
    if name == "mmd":
        scale = 2 * max(float(np.median(pdist(y))), 1e-12) ** 2
        kernels = [np.exp(-(distance**2) / scale).mean() for distance in (cdist(x, x), cdist(y, y), between)]
        return float(kernels[0] + kernels[1] - 2 * kernels[2])
    cost = between if name == "wasserstein1" else between**2
    mean = cost[linear_sum_assignment(cost)].mean()
    return float(mean if name == "wasserstein1" else np.sqrt(mean))


def principal_axes(cells: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (g, p) leading axes of cells."""
    from sklearn.decomposition import PCA

    p = min(n_components, *cells.shape)
    pca = PCA(n_components=p, svd_solver="full").fit(cells)
    return pca.mean_, pca.components_.T
