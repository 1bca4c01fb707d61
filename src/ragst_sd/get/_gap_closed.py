"""`rg.get.gap_closed`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._validate import as_names, require_key, require_known

_LOWER_IS_BETTER = ("mae", "mse", "energy", "wasserstein", "mmd")
# Share of the gap that counts as closing it; a gap below that share of the way to a perfect score is none.
_CLOSED, _LEAST_GAP = 0.5, 0.05
BASELINES = ("knn", "ridge", "kernel_ridge", "bilinear", "same_perturbation", "context_additive")
MEAN_SOLVES, BASELINES_SOLVE, RESISTS, NO_CEILING = "the mean solves", "baselines solve", "resists", "no ceiling"


def gap_closed(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson_delta",
    baseline: str = "mean",
    baselines: str | Sequence[str] = BASELINES,
) -> pd.DataFrame:
    r"""Say how much of what can be gained over the mean each method gains, perturbation by perturbation.

    .. math:: \text{gap\_closed} = \frac{s - s_0}{c - s_0}, \qquad \text{dynamic\_range} = \frac{c - s_0}{p - s_0}

    with s the score of a method, :math:`s_0` that of the mean, c the ceiling (what one half of the measured cells says
    of the other half) and p a perfect score. A metric of a small dynamic range cannot tell methods apart, whatever
    their scores (dynamic range fraction, doi:10.1101/2025.10.20.683304).

    Parameters
    ----------
    scores
        Made by :func:`ragst_sd.tl.evaluate_perturbation` from a mapping of several methods, several folds concatenated.
    metric
        The metric to look at.
    baseline
        Method whose score is the lower end of the gap.
    baselines
        Simple methods, of which those that are there decide whether a perturbation is solved by baselines.

    Returns
    -------
    Data frame with one line per method, context, task and perturbation: `value`, `baseline`, `ceiling`, `gap_closed`,
    `dynamic_range`, and `stratum`. `"the mean solves"`: the gap is under 5 % of the way to a perfect score, so that
    nothing is left to predict. `"baselines solve"`: one of `baselines` closes half of it. `"resists"`: none does.
    `"no ceiling"`: it is not known, as of responses without cells; `gap_closed` is NaN there and where the mean solves.
    Averages over perturbations are those of this frame, `frame.groupby(["method", "stratum"])`.

    Raises
    ------
    KeyError
        If `scores` has no column of methods.
    ValueError
        If it has no such metric or no such baseline.

    Examples
    --------
    >>> import pandas as pd, ragst_sd as rg
    >>> scores = pd.DataFrame({"method": ["mean", "knn", "rag"], "value": [0.2, 0.4, 0.6], "ceiling": 0.7})
    >>> scores = scores.assign(context="all", task="", perturbation="STAT1", subset="each", metric="pearson_delta")
    >>> rg.get.gap_closed(scores)[["method", "gap_closed", "stratum"]].round(2).to_numpy().tolist()
    [['mean', 0.0, 'resists'], ['knn', 0.4, 'resists'], ['rag', 0.8, 'resists']]
    """
    for key in ("method", _keys.TASK, "ceiling"):
        require_key(key, list(scores), "scores", "Evaluate a mapping from method to table.")
    require_known([metric], sorted(set(scores["metric"])), "metric", ": `scores` has no")
    require_known([baseline], sorted(set(scores["method"])), "baseline", ": `scores` has no method")
    keys = [_keys.CONTEXT, _keys.TASK, _keys.PERTURBATION]
    each = scores[(scores["subset"] == "each") & (scores["metric"] == metric)]
    lines = each.groupby(["method", *keys], as_index=False, observed=True, sort=False)[["value", "ceiling"]].mean()
    of_baseline = lines[lines["method"] == baseline].set_index(keys)["value"].rename("baseline")
    lines = lines.join(of_baseline, on=keys)
    perfect = 0.0 if metric.startswith(_LOWER_IS_BETTER) else 1.0
    gap, to_perfect = lines["ceiling"] - lines["baseline"], perfect - lines["baseline"]
    lines["dynamic_range"] = gap / to_perfect.where(to_perfect != 0)
    mean_solves = lines["dynamic_range"] < _LEAST_GAP
    lines["gap_closed"] = ((lines["value"] - lines["baseline"]) / gap).where(~mean_solves)
    closes = lines["method"].isin(as_names(baselines)) & (lines["gap_closed"] >= _CLOSED)
    baselines_solve = closes.groupby([lines[key] for key in keys], observed=True).transform("any")
    conditions = [lines["dynamic_range"].isna(), mean_solves, baselines_solve]
    lines["stratum"] = np.select(conditions, [NO_CEILING, MEAN_SOLVES, BASELINES_SOLVE], RESISTS)
    order = ["method", *keys, "value", "baseline", "ceiling", "gap_closed", "dynamic_range", "stratum"]
    return lines[order]
