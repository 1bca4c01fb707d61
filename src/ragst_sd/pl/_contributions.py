"""The steps from zero to a predicted value, one for each contribution: for `rg.pl.explain` and `rg.pl.retrieval`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ragst_sd import _keys
from ragst_sd._results import Prediction
from ragst_sd.pl import _style

SECTIONS = "sections brought to one mean"
_LONGEST_LABEL = 30


def require_values(prediction: Prediction, spots: np.ndarray, columns: np.ndarray) -> None:
    """Raise a `ValueError` for the first spot that has no prediction of a gene."""
    table = prediction.table
    for i, j in np.argwhere(~np.isfinite(prediction.values(columns, spots))):
        raise ValueError(
            f"Spot {table.obs_names[spots[i]]!r} has no prediction of {table.var_names[columns[j]]!r}: it lies outside "
            "the image, or no cited spot measured the gene. Choose another spot or gene."
        )


def steps_of(parts: pd.DataFrame, group_by: str, n_shown: int, *, scrna: bool = False) -> pd.DataFrame:
    """Steps to a prediction, which is the last one: `label`, `weight`, `value`, `start`, `contribution` and `color`.

    Cited rows contribute weight times value, and what corrects their sections is one step for all. Cell types have the
    contribution that is listed: what corrects the logarithm of a mixture has no meaning of its own.

    Parameters
    ----------
    parts
        What `rg.get.explain` lists for one spot and gene.
    group_by
        Column whose groups are steps.
    n_shown
        Groups of their own, by falling weight; the others are lumped.
    scrna
        Whether the rows are cell types.
    """
    rows, mean, rest = split_lines(parts)
    correction = 0.0 if scrna else float((rows["weight"] * rows["correction"]).sum())
    if not scrna:
        rows = rows.assign(contribution=(rows["weight"] * rows["value"]).fillna(0.0))
    by = rows.groupby(group_by, sort=False)
    groups = by[["weight", "contribution"]].sum().join(by[["donor", "sample", "value"]].first()).assign(n=by.size())
    if not scrna:
        groups["value"] = groups["contribution"] / groups["weight"].where(groups["weight"] > 0)
    groups = groups.sort_values("weight", ascending=False, kind="stable")
    shown, others = groups.iloc[:n_shown], groups.iloc[n_shown:]
    labels = [_label(group, group_by) for group in shown.itertuples()]
    steps = shown.assign(label=labels, color=_style.EVIDENCE).to_dict("records")

    def add(label: str, color: str, contribution: float, **numbers: float) -> None:
        steps.append({"label": label, "color": color, "contribution": contribution, **numbers})

    if len(others):
        kind = "" if group_by == "reference" else f" {group_by}{'s' * (len(others) > 1)}"
        weight, contribution = others[["weight", "contribution"]].sum().tolist()
        value = np.nan if scrna or weight == 0 else contribution / weight
        add(f"{len(others)} more{kind}", _style.OTHERS, contribution, weight=weight, value=value)
    if correction:
        add(SECTIONS, _style.ADJUSTMENT, correction)
    if len(mean):
        weight, contribution = mean[["weight", "contribution"]].sum().tolist()
        add("reference mean", _style.ADJUSTMENT, contribution, weight=weight, value=contribution / weight)
    add(str(rest["reference"].iloc[0]), _style.ADJUSTMENT, float(rest["contribution"].sum()))
    add("predicted", _style.QUERY, float(parts["contribution"].sum()))
    out = pd.DataFrame(steps)
    out["start"] = out["contribution"].cumsum() - out["contribution"]
    out.loc[len(out) - 1, "start"] = 0.0
    return out


def split_lines(parts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Lines of one spot and gene: rows (if none is cited, the reference mean), mean beside cited rows, the rest."""
    rest = parts["reference"].isin(["regression", "adjustment"])
    mean = (parts["reference"] == "reference mean") & ~rest
    if (mean | rest).all():
        mean &= False
    return parts[~mean & ~rest], parts[mean], parts[rest]


def _label(group: Any, group_by: str) -> str:
    """What the bar of a group of cited rows is called."""
    name, donor = str(group.Index), group.donor
    if not name:
        return "reference mean"
    if group_by == "reference":
        # Rows are named `<sample>:<spot>`: no need to name a donor of the same name.
        return _style.shorten(name if donor == group.sample else f"{donor}  {name}", _LONGEST_LABEL)
    count = f", {group.n} {'spot' if group.n == 1 else 'spots'}"
    if group_by == _keys.SAMPLE and donor not in ("", name):
        name = f"{name} ({donor})"
    return _style.shorten(name, _LONGEST_LABEL - len(count)) + count


def facts(prediction: Prediction, spot: int) -> list[str]:
    """Words about the evidence of a predicted spot."""
    obs, (rows, _) = prediction.table.obs.iloc[spot], prediction.citations(np.array([spot]))
    n_rows, n_donors = int((rows >= 0).sum()), int(obs[_keys.N_DONORS])
    donors = "donor" if n_donors == 1 else "donors"
    cites = f"{n_rows} measured spots of {n_donors} {donors}" if n_rows else "cites no measured spots"
    out = [f"{prediction.header['method']}: {cites}"]
    if bool(obs[_keys.OUT_OF_REFERENCE]):
        out.append("unlike any tissue of the reference")
    return out


def draw_steps(ax: Axes, steps: pd.DataFrame, *, grey: bool, upright: bool = False) -> None:
    """Draw bars from zero to a prediction, to the right or upright; thin lines lead from each to the next."""
    bar, lines, zero = (ax.bar, ax.hlines, ax.axhline) if upright else (ax.barh, ax.vlines, ax.axvline)
    place, ends = np.arange(len(steps)), (steps["start"] + steps["contribution"])[:-1]
    colors = _style.UNTRUSTED if grey else steps["color"]
    bar(place, steps["contribution"], 0.72, steps["start"], color=colors, zorder=2)
    lines(ends, place[:-1] + 0.36, place[1:] - 0.36, color=_style.MUTED, lw=0.8, zorder=1)
    zero(0, color=_style.MUTED, lw=0.8, zorder=1)
    ax.spines["bottom" if upright else "left"].set_visible(False)


def value_text(value: float, decimals: int) -> str:
    """A measured value, or that it was not measured."""
    return _style.number(value, decimals, missing="not measured")


def contribution_texts(steps: pd.DataFrame, decimals: int) -> list[str]:
    """The contribution of each step with its sign, and the prediction."""
    *contributions, total = steps["contribution"]
    return [*(_style.number(value, decimals, sign=True) for value in contributions), _style.number(total, decimals)]
