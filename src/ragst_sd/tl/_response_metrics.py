"""Metrics of responses that need neither cells nor controls: of a reference whose responses were given."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_known
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._measured_responses import Measured
from ragst_sd.tl._perturbation_metrics import CHOICES as OF_CELLS
from ragst_sd.tl._perturbation_metrics import DISCRIMINATION, discrimination_scores, mean_metrics

CENTRED, RANK, BEST, TOP = "centred_cosine", "rank_score", "best_tenth", "top_genes"
_SIZES = ("mae_delta", "mse_delta")
RESPONSE_METRICS = (CENTRED, RANK, BEST, TOP)
CHOICES = (*RESPONSE_METRICS, "pearson_delta", *_SIZES, *DISCRIMINATION)
# A difference from the mean that is smaller than this, relative to the mean, is rounding.
_ROUNDING = 1e-6


def require_metrics(chosen: list[str] | None, given: str) -> list[str]:
    """Metrics of responses in the unit `given`: those asked for, or all that there are.

    Raises
    ------
    ValueError
        If one needs cells or controls, sizes of effects, or does not exist.
    """
    possible = [name for name in CHOICES if given != "rank" or name not in _SIZES]
    if chosen is None:
        return possible
    cells = [name for name in chosen if name in OF_CELLS and name not in CHOICES]
    if cells:
        raise ValueError(
            f"`metrics` {listing(cells)} need cells or controls, and the reference was built from responses. Possible "
            f"are {listing(possible)}."
        )
    sizes = [name for name in chosen if name in _SIZES and name not in possible]
    if sizes:
        raise ValueError(
            f"`metrics` {listing(sizes)} compare sizes of effects, which ranks do not have. Possible are "
            f"{listing(possible)}."
        )
    require_known(chosen, possible, "metrics")
    return chosen


def response_scores(
    table: AnnData,
    truth: Measured,
    pairs: list[tuple[int, np.ndarray]],
    chosen: list[str],
    control: str,
    means: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Metrics of predicted responses, one value per line that was predicted.

    Parameters
    ----------
    pairs
        Lines of the truth that were predicted, and the predicted rows of each.
    means
        (g,) mean response of each context in the reference, from which responses are taken for `CENTRED` and `RANK`.
    """
    lines = np.array([line for line, _ in pairs])
    delta = np.array([dense(table.layers[_keys.RESPONSE][rows]).mean(axis=0) for _, rows in pairs])
    scores = mean_metrics(delta, truth.delta[lines], delta, truth.delta[lines])
    if set(chosen) & set(DISCRIMINATION):
        scores |= discrimination_scores(delta, truth, lines, list(table.var_names), control)
    contexts = np.array([context for context, _ in truth.names])
    everywhere: Any = np.mean(list(means.values()), axis=0)
    scores |= {name: np.empty(len(lines)) for name in RESPONSE_METRICS}
    for context in np.unique(contexts[lines]):
        here, at = np.flatnonzero(contexts == context), np.flatnonzero(contexts[lines] == context)
        centre = means.get(str(context), everywhere)
        likeness = _cosines(delta[at], truth.delta[here], centre)
        correct = likeness[np.arange(len(at)), np.searchsorted(here, lines[at])]
        # Ties count half, so that a prediction that is like no response is in the middle.
        nearer = (likeness > correct[:, None]).sum(axis=1) + 0.5 * ((likeness == correct[:, None]).sum(axis=1) - 1)
        scores[CENTRED][at], scores[RANK][at] = correct, 1 - nearer / len(here)
        scores[BEST][at] = nearer < len(here) / 10
    scores[TOP] = np.array(
        [_top_overlap(predicted, measured) for predicted, measured in zip(delta, truth.delta[lines], strict=True)]
    )
    return scores


def _cosines(predicted: np.ndarray, measured: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(q, m) cosines of differences from a centre; 0 where there is no difference."""
    sides = []
    for values in (predicted, measured):
        difference = values - centre
        size = np.linalg.norm(difference, axis=1, keepdims=True)
        same = size <= _ROUNDING * max(float(np.linalg.norm(centre)), 1e-300)
        sides.append(np.divide(difference, size, out=np.zeros_like(difference), where=~same))
    return np.asarray(sides[0] @ sides[1].T)


def _top_overlap(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Share of the tenth of the genes that went up most which is in the predicted tenth; ties have a part each."""
    k = max(1, round(len(predicted) / 10))
    return float((_top(predicted, k) * _top(measured, k)).sum() / k)


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """(g,) weights of the k largest values, which add up to k; equal values at the border share what is left."""
    border = np.partition(values, -k)[-k]
    above, tied = values > border, values == border
    return above + tied * ((k - above.sum()) / tied.sum())
