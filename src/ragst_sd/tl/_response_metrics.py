"""Metrics of mean responses, which need neither cells nor controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.reference.responses import components, row_correlation

if TYPE_CHECKING:
    from ragst_sd.tl._measured_responses import Measured

DISCRIMINATION = ("discrimination_score_l1", "discrimination_score_l2", "discrimination_score_cosine")
CENTRED, RANK, BEST, TOP = "centred_cosine", "rank_score", "best_tenth", "top_genes"
SIZES = ("mae_delta", "mse_delta")
RESPONSE_METRICS = (CENTRED, RANK, BEST, TOP)
CHOICES = (*RESPONSE_METRICS, "pearson_delta", *SIZES, *DISCRIMINATION)
# A difference from the mean that is smaller than this, relative to the mean, is rounding.
_ROUNDING = 1e-6


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


def discrimination_scores(
    delta: np.ndarray, truth: Measured, lines: np.ndarray, genes: list[str], control: str
) -> dict[str, np.ndarray]:
    """`DISCRIMINATION` of predicted responses (q, g) among the measured ones of their contexts.

    The perturbed genes are left out.
    """
    scores = {name: np.empty(len(lines)) for name in DISCRIMINATION}
    for i, line in enumerate(lines):
        here = of_context(truth, line)
        others = ~np.isin(genes, components(truth.names[line][1], control))
        measured = truth.delta[here][:, others]
        for name in DISCRIMINATION:
            distance = _distances(delta[i, others], measured, name.rpartition("_")[2])
            scores[name][i] = 1 - _share_before(distance, distance[here == line].item())
    return scores


def of_context(truth: Measured, line: int) -> np.ndarray:
    """Lines of the truth that are of the context of one of them."""
    return np.flatnonzero([context == truth.names[line][0] for context, _ in truth.names])


def _share_before(distance: np.ndarray, of_itself: float) -> float:
    """Share of distances below one of them.

    Ties count half: a prediction that is as far from all responses is in the middle, wherever its of_itself one stands.
    """
    return float(((distance < of_itself).sum() + 0.5 * ((distance == of_itself).sum() - 1)) / len(distance))


def _distances(response: np.ndarray, others: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        scale = np.linalg.norm(others, axis=1) * np.linalg.norm(response)
        return 1 - np.divide(others @ response, scale, out=np.zeros(len(others)), where=scale > 0)
    return np.linalg.norm(others - response, ord=int(metric[1]), axis=1)


def centred_scores(
    delta: np.ndarray, truth: Measured, lines: np.ndarray, means: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`RESPONSE_METRICS` of predicted responses (q, g), the cosines of differences from the mean of their contexts.

    Parameters
    ----------
    means
        (g,) mean response of each context in the reference; of a context that is not there, the mean over contexts.
    """
    everywhere: Any = np.mean(list(means.values()), axis=0)
    scores = {name: np.empty(len(lines)) for name in RESPONSE_METRICS}
    measured: dict[str, np.ndarray] = {}
    for i, line in enumerate(lines):
        context, here = truth.names[line][0], of_context(truth, line)
        centre = means.get(context, everywhere)
        if context not in measured:
            measured[context] = _directions(truth.delta[here], centre)
        likeness = measured[context] @ _directions(delta[i], centre)
        of_itself = likeness[here == line].item()
        before = _share_before(-likeness, -of_itself)
        scores[CENTRED][i], scores[RANK][i], scores[BEST][i] = of_itself, 1 - before, before < 0.1
        scores[TOP][i] = _top_overlap(delta[i], truth.delta[line])
    return scores


def _directions(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Differences from a centre, of length 1; 0 where there is no difference."""
    difference = values - centre
    size = np.linalg.norm(difference, axis=-1, keepdims=True)
    same = size <= _ROUNDING * max(float(np.linalg.norm(centre)), 1e-300)
    return np.divide(difference, size, out=np.zeros_like(difference), where=~same)


def _top_overlap(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Share of the tenth of the genes that went up most which is in the predicted tenth; ties have a part each."""
    k = max(1, round(len(predicted) / 10))
    return float((_top(predicted, k) * _top(measured, k)).sum() / k)


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """(g,) weights of the k largest values, which add up to k; equal values at the border share what is left."""
    border = np.partition(values, -k)[-k]
    above, tied = values > border, values == border
    return above + tied * ((k - above.sum()) / tied.sum())
