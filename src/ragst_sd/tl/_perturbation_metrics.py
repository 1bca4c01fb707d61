"""Metrics of predicted responses, named as in cell-eval where it has them, and values for a method's predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.stats import false_discovery_control, mannwhitneyu

from ragst_sd import _keys
from ragst_sd.reference.responses import CONTROL, components, halves, row_correlation
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from ragst_sd.tl._measured_responses import Measured


DISCRIMINATION = ("discrimination_score_l1", "discrimination_score_l2", "discrimination_score_cosine")
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
class Predicted:
    """What is compared with lines of the truth."""

    lines: np.ndarray
    """(q,) of the truth."""
    profile: np.ndarray
    """(q, g) mean expression."""
    delta: np.ndarray
    """(q, g) mean response."""
    genes: list[str]
    cells: Callable[[int], tuple[np.ndarray, np.ndarray]]
    """Cells (n, g) of the i-th line, and cells that were not perturbed."""

    @classmethod
    def of_table(cls, table: AnnData, pairs: list[tuple[int, np.ndarray]]) -> Predicted:
        """A table of predicted cells, with the lines that were predicted and the rows of each."""
        response = table.layers[_keys.RESPONSE]

        def cells(i: int) -> tuple[np.ndarray, np.ndarray]:
            ours = dense(table.X[pairs[i][1]]).astype(np.float64)
            return ours, ours - dense(response[pairs[i][1]])

        return cls(
            lines=np.array([line for line, _ in pairs]),
            profile=np.array([dense(table.X[rows]).mean(axis=0, dtype=np.float64) for _, rows in pairs]),
            delta=np.array([dense(response[rows]).mean(axis=0, dtype=np.float64) for _, rows in pairs]),
            genes=list(table.var_names),
            cells=cells,
        )

    @classmethod
    def of_measured(cls, part: Measured, genes: list[str]) -> Predicted:
        """A part of the measured cells, as if it were a prediction of the rest."""

        def cells(line: int) -> tuple[np.ndarray, np.ndarray]:
            return part.cells(line), part.controls(part.names[line][0])

        return cls(np.arange(len(part.names)), part.profile, part.delta, genes, cells)


def replicate_scores(
    truth: Measured, genes: list[str], chosen: list[str], control: str, n_components: int, max_cells: int, seed: int
) -> dict[str, np.ndarray]:
    """(lines,) the best that a prediction could score, from one half of the measured cells as a prediction of the other.

    Averaged both ways round. The halves share neither cells nor controls, as a prediction and its truth do not. Each has twice the noise variance
    of the whole, so that their squared difference is four times, and their absolute one twice, that of the whole from
    what it would be without noise. For correlations see `ceiling`; other metrics stay as the halves give them.
    """
    rng, n = np.random.default_rng(seed), len(truth.names)
    first = halves(np.where(truth.row == CONTROL, n + truth.stratum, truth.row), rng)
    parts = (truth.part(first), truth.part(~first))
    both = []
    for half, other in (parts, parts[::-1]):
        predicted = Predicted.of_measured(half, genes)
        both.append(scores_of(predicted, other, chosen, control, n_components, max_cells, seed))
    scores = {name: (both[0][name] + both[1][name]) / 2 for name in chosen}
    # From two noisy halves to a prediction without noise and the whole truth, where that is known.
    of_halves = {"mse": 1 / 4, "mae": 1 / 2}
    for name, value in scores.items():
        if name in ("pearson_delta", CENTROID):
            scores[name] = ceiling(value)
        elif name in MEANS:
            scores[name] = value * of_halves[name[:3]]
    return scores


def scores_of(
    predicted: Predicted,
    truth: Measured,
    chosen: list[str],
    control: str,
    n_components: int,
    max_cells: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Metrics of mean profiles, of mean responses and of single cells; those of means are cheap and always there."""
    rng = np.random.default_rng(seed)
    lines, profile, delta = predicted.lines, predicted.profile, predicted.delta
    scores = mean_metrics(profile, truth.profile[lines], delta, truth.delta[lines])
    if set(chosen) & set(DISCRIMINATION):
        scores |= discrimination_scores(delta, truth, lines, predicted.genes, control)
    if CENTROID in chosen:
        scores[CENTROID] = _centroid_correlation(profile, truth, lines, rng)
    return scores | _cell_scores(predicted, truth, chosen, n_components, max_cells, rng)


def discrimination_scores(
    delta: np.ndarray, truth: Measured, lines: np.ndarray, genes: list[str], control: str
) -> dict[str, np.ndarray]:
    """`DISCRIMINATION` of predicted responses (q, g) among the measured ones of their contexts."""
    names = {gene: i for i, gene in enumerate(genes)}
    contexts = np.array([context for context, _ in truth.names])
    excluded = [
        np.array([names[gene] for gene in components(truth.names[line][1], control) if gene in names], dtype=int)
        for line in lines
    ]
    scores = {name: np.empty(len(lines)) for name in DISCRIMINATION}
    for context in np.unique(contexts[lines]):
        here, at = np.flatnonzero(contexts == context), np.flatnonzero(contexts[lines] == context)
        at_truth = np.searchsorted(here, lines[at])
        for name in DISCRIMINATION:
            scores[name][at] = discrimination_score(
                delta[at], truth.delta[here], at_truth, [excluded[i] for i in at], name.rpartition("_")[2]
            )
    return scores


def _centroid_correlation(
    profile: np.ndarray, truth: Measured, lines: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Correlation of differences from the mean of all other perturbations, one half of their cells for each side."""
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
    predicted: Predicted,
    truth: Measured,
    chosen: list[str],
    n_components: int,
    max_cells: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Metrics that need single cells."""
    genes, distances = set(chosen) & {*OVERLAPS, DIRECTION}, [name for name in DISTANCES if name in chosen]
    scores = {name: np.full(len(predicted.lines), np.nan) for name in (*genes, *distances)}
    axes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, line in enumerate(predicted.lines if scores else []):
        context = truth.names[line][0]
        ours, source = predicted.cells(i)
        theirs = truth.cells(line)
        if not len(ours) or not len(theirs):
            continue
        if genes:
            predicted_de = differential_expression(ours, source)
            expected = differential_expression(theirs, truth.controls(context))
            for name in genes:
                match = name == DIRECTION
                scores[name][i] = (
                    direction_match(predicted_de[0], expected) if match else overlap(predicted_de, expected, name)
                )
        if distances:
            if context not in axes:
                at = np.flatnonzero((truth.row >= CONTROL) & (truth.context == context))
                at = np.sort(rng.choice(at, min(_PCA_CELLS, len(at)), replace=False))
                axes[context] = principal_axes(truth.values[at].toarray().astype(np.float64), n_components)
            n = min(len(ours), len(theirs), max_cells)
            mean, components_ = axes[context]
            predicted_cells, measured_cells = (
                (x[rng.permutation(len(x))[:n]] - mean) @ components_ for x in (ours, theirs)
            )
            for name in distances:
                scores[name][i] = distribution_distance(predicted_cells, measured_cells, name)
    return scores


def mean_metrics(
    predicted: np.ndarray, measured: np.ndarray, predicted_delta: np.ndarray, measured_delta: np.ndarray
) -> dict[str, np.ndarray]:
    """Errors of mean profiles and mean responses, and correlation of responses, one value per line of (n, g) arrays."""
    return {
        "pearson_delta": row_correlation(predicted_delta, measured_delta),
        "mae": np.abs(predicted - measured).mean(axis=1),
        "mse": ((predicted - measured) ** 2).mean(axis=1),
        "mae_delta": np.abs(predicted_delta - measured_delta).mean(axis=1),
        "mse_delta": ((predicted_delta - measured_delta) ** 2).mean(axis=1),
    }


def discrimination_score(
    predicted: np.ndarray, measured: np.ndarray, line: np.ndarray, excluded: list[np.ndarray], metric: str
) -> np.ndarray:
    """One minus the share of measured responses that are nearer to a prediction than its own.

    Parameters
    ----------
    predicted
        (q, g) predicted responses.
    measured
        (m, g) measured responses of all perturbations of the context.
    line
        (q,) line of `measured` that each prediction is of.
    excluded
        For each prediction the genes to leave out: the perturbed ones.
    metric
        `"l1"`, `"l2"` or `"cosine"`.
    """
    out = np.empty(len(predicted))
    for i, response in enumerate(predicted):
        genes = np.setdiff1d(np.arange(measured.shape[1]), excluded[i])
        distance = _distances(response[genes], measured[:, genes], metric)
        # Ties count half: a prediction that is as far from all of them is in the middle, wherever its own one stands.
        nearer = (distance < distance[line[i]]).sum() + 0.5 * ((distance == distance[line[i]]).sum() - 1)
        out[i] = 1 - nearer / len(measured)
    return out


def _distances(response: np.ndarray, others: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        scale = np.linalg.norm(others, axis=1) * np.linalg.norm(response)
        return 1 - np.divide(others @ response, scale, out=np.zeros(len(others)), where=scale > 0)
    return np.linalg.norm(others - response, ord=int(metric[1]), axis=1)


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
    if len(x) != len(y):
        raise ValueError(f"{name} matches sets of one size; there are {len(x)} and {len(y)} cells.")
    cost = between if name == "wasserstein1" else between**2
    mean = cost[linear_sum_assignment(cost)].mean()
    return float(mean if name == "wasserstein1" else np.sqrt(mean))


def principal_axes(cells: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (g, p) leading axes of cells."""
    from sklearn.decomposition import PCA

    p = min(n_components, *cells.shape)
    pca = PCA(n_components=p, svd_solver="full").fit(cells)
    return pca.mean_, pca.components_.T
