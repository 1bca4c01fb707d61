"""`rg.pl.benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

from ragst_sd import _keys
from ragst_sd._metrics import ERRORS, group_means
from ragst_sd._validate import listing, require_choice, require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import Drawing, draws, picture

_TITLES = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "ssim": "structural similarity of maps",
    "de_agreement": "agreement of differential expression (Spearman)",
    "de_ndcg": "nDCG of differential expression",
    "gene_set_pearson": "Pearson correlation of gene set scores",
}


@draws
def benchmark(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    unit: str | None = None,
    baseline: str | None = None,
    **drawing: Unpack[Drawing],
) -> Axes | None:
    """Plot a comparison of methods on held-out donors.

    Each method has one row, with the best at the top, and one mark per held-out donor. A thin line connects the marks
    of a donor. The vertical bar is the mean over donors. The numbers on the right are this mean, the effective number
    of cited rows and, with a baseline, the mean difference to it with its 95 % interval over donors (at least three).

    Scores for several numbers of training donors are drawn as curves over this number: the mean over held-out donors,
    and a thin line for each of them.

    Parameters
    ----------
    scores
        Made by :func:`ragst_sd.tl.cross_validate`. Frames of several runs on the same folds may be joined with
        `pandas.concat`.
    metric
        Metric to draw, one of those in `scores`; :func:`ragst_sd.tl.evaluate` says what they mean. Metrics of genes
        and gene sets are averaged over these (`variance_kept`: the median), then over the sections of a donor.
    unit
        Which of the units in `scores` to draw; the first if left out.
    baseline
        Method to compare with; not for curves.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` the Axes with the marks. For `metric="pearson"` they show the noise ceiling where the
    scores hold one: the mean over donors as a broken line, the range of donors as a band.

    Raises
    ------
    ValueError
        If `scores` is not such a frame, or does not hold the metric, the unit or the baseline; or a baseline is given
        for a curve.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> scores = rg.tl.cross_validate(reference, methods=["ridge", "knn"], n_genes=50, progress=False)
    >>> rg.pl.benchmark(scores, baseline="ridge", show=False)
    """
    _require_scores(scores)
    units = list(dict.fromkeys(scores["unit"]))
    unit = str(units[0]) if unit is None else unit
    require_choice(unit, units, "unit")
    scores = scores[scores["unit"] == unit]
    # A noise ceiling belongs to no method: its name is empty.
    require_choice(metric, list(dict.fromkeys(scores.loc[scores["method"] != "", "metric"])), "metric")
    if "n_donors" in scores and scores["n_donors"].nunique() > 1:
        if baseline is not None:
            raise ValueError(
                "`baseline`: these scores are of several numbers of donors, and drawn as curves. Leave it out, or "
                f"take one number: `scores[scores['n_donors'] == {scores['n_donors'].max()}]`."
            )
        with picture(6.4, 4.0, **drawing) as figure:
            return _draw_curves(figure, scores, metric, unit)
    values = _by_method(scores, metric)
    if values.empty:
        raise ValueError(f"`scores` has no value of {metric!r} in this unit: all are NaN.")
    means = values.mean(axis=1).sort_values(ascending=metric in ERRORS, kind="stable")
    values = values.loc[means.index]
    effective_n = _by_method(scores, _keys.EFFECTIVE_N).mean(axis=1).reindex(values.index)
    cites = effective_n.notna()
    columns = {"mean": [_style.number(mean, 3) for mean in means]}
    if baseline is not None:
        require_choice(baseline, list(values.index), "baseline")
        columns |= _column_of_differences(differences_to(values, baseline), baseline)
    if cites.any():
        columns["rows cited\n(effective)"] = list(effective_n.map("{:.0f}".format).where(cites, "none"))
    title = _title(metric)
    heading = title[0].upper() + title[1:]

    # Inches.
    width, height = 7.0 + 1.4 * (len(columns) - 1), 1.7 + 0.42 * len(values)
    with picture(width, height, **drawing) as figure:
        panel = figure.subplots()
        if metric == "pearson":
            blocks = scores["fold"].str.startswith("blocks of ").all()
            heading = f"Accuracy on held-out {'blocks' if blocks else 'donors'}"
            _draw_ceiling(panel, _by_method(scores, _keys.NOISE_CEILING).to_numpy(float))
        _draw_methods(panel, values, cites)
        panel.set(xlabel=f"{title}, {unit}", label="benchmark")
        panel.set_title(heading, fontsize="large", pad=22)
        _style.write_columns(panel, columns)
        _legend(figure, values.columns, any_cites=bool(cites.any()))
    return panel


def _require_scores(scores: pd.DataFrame) -> None:
    """Raise an error unless this is a frame of :func:`ragst_sd.tl.cross_validate`."""
    require_type(scores, pd.DataFrame, "scores", "Make it with `rg.tl.cross_validate`.")
    missing = [name for name in ("method", "fold", "sample", "gene", "unit", "metric", "value") if name not in scores]
    if missing or scores.empty:
        fault = f"lacks the columns {listing(missing)}" if missing else "is empty"
        raise ValueError(f"`scores` {fault}. Make it with `rg.tl.cross_validate`.")


def _title(metric: str) -> str:
    """What a metric is called in a picture."""
    return _TITLES.get(metric, metric.replace("_", " "))


def _draw_curves(figure: FigureBase, scores: pd.DataFrame, metric: str, unit: str) -> Axes:
    """Accuracy over the number of donors learned from: a line for each method, a thin one for each held-out donor."""
    panel = figure.subplots()
    means = group_means(scores, metric)
    means = means[means["method"] != ""]
    for i, (method, of_method) in enumerate(means.groupby("method", sort=False)):
        color = f"C{i}"
        for donor, line in of_method.groupby("fold", sort=False):
            panel.plot(line["n_donors"], line["value"], color=color, lw=0.7, alpha=0.4, gid=donor)
        mean = of_method.groupby("n_donors")["value"].mean()
        panel.plot(mean.index, mean, "o-", color=color, lw=2, ms=6, mec="white", label=str(method), gid="mean")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="donors learned from", ylabel=f"{_title(metric)}, {unit}", label="benchmark")
    panel.set_title("Accuracy on held-out donors", fontsize="large")
    panel.grid(axis="y")
    note = None
    if metric == "pearson" and _keys.NOISE_CEILING in set(scores["metric"]):
        ceiling = group_means(scores, _keys.NOISE_CEILING).groupby("fold")["value"].first().mean()
        note = f"noise ceiling {_style.number(ceiling, 2)}"
    figure.legend(loc="outside right upper", title=note)
    return panel


def _by_method(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of a metric, one line per method and one column per donor; empty where the scores do not hold it."""
    if metric not in set(scores["metric"]):
        return pd.DataFrame()
    means = group_means(scores, metric)
    return means.pivot_table(index="method", columns="fold", values="value", sort=False)


def differences_to(values: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Mean difference of each method to a baseline within donors, and Student's t-interval at 95 %, `low` to `high`.

    Below three donors there is no interval (NaN).
    """
    differences = values - values.loc[baseline]
    n, mean = differences.count(axis=1), differences.mean(axis=1)
    half = differences.sem(axis=1).where(n > 2) * t.ppf(0.975, n - 1)
    return pd.DataFrame({"difference": mean, "low": mean - half, "high": mean + half})


def _column_of_differences(differences: pd.DataFrame, baseline: str) -> dict[str, list[str]]:
    """Column of the mean differences to the baseline, with intervals where there are any."""
    texts = []
    for method, line in differences.iterrows():
        text = _style.number(line["difference"], 3, sign=True) if np.isfinite(line["difference"]) else ""
        if np.isfinite(line["low"]):
            text += f" ({_style.number(line['low'], 3)} to {_style.number(line['high'], 3)})"
        texts.append("baseline" if method == baseline else text)
    with_interval = any("(" in text for text in texts)
    return {"difference\n(95 % interval)" if with_interval else "difference": texts}


def _draw_ceiling(ax: Axes, ceiling: np.ndarray) -> None:
    """Draw the noise ceiling: its mean over donors as a broken line, its range as a band; nothing if there is none."""
    if not ceiling.size:
        return
    mean, highest = float(ceiling.mean()), float(ceiling.max())
    ax.axvspan(ceiling.min(), highest, color="0.92", lw=0, zorder=0, gid="noise ceiling")
    ax.axvline(mean, color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="noise ceiling")
    # Flush right, so that the words keep clear of the numbers beside the plot.
    words, coords = f"noise ceiling {_style.number(mean, 2)}", ("data", "axes fraction")
    _style.beside(ax, words, (highest, 1), (0, 4), coords, ha="right", fontsize="small", color=_style.MUTED)


def _draw_methods(ax: Axes, values: pd.DataFrame, cites: pd.Series) -> None:
    """A line for each donor; for each method a bar at its mean, and a mark for each donor."""
    ax.set_yticks(range(len(values)), [_style.shorten(str(name), 22) for name in values.index])
    ax.tick_params(axis="y", length=0, labelsize="medium")
    for donor, accuracy in values.items():
        ax.plot(accuracy, range(len(values)), color="0.75", lw=0.9, zorder=2, gid=donor)
    for i, (method, accuracy) in enumerate(values.iterrows()):
        color = _style.EVIDENCE if cites[method] else _style.MUTED
        ax.get_yticklabels()[i].set_color(_style.EVIDENCE if cites[method] else "black")
        ax.plot([accuracy.mean()] * 2, [i - 0.3, i + 0.3], color=color, lw=3.2, solid_capstyle="butt", gid="mean")
        for value, marker in zip(accuracy, _markers(values.columns), strict=True):
            ax.plot(value, i, marker, ms=6.5, mfc=color, mec="white", mew=0.8, zorder=4, gid="donor")
    ax.set_ylim(len(values) - 0.45, -0.55)
    ax.margins(x=0.05)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def _markers(donors: pd.Index) -> Sequence[str]:
    """A shape for each donor; one for all where there are more donors than shapes."""
    return "os^DvP"[: len(donors)] if len(donors) <= 6 else "o" * len(donors)


def _legend(figure: FigureBase, donors: pd.Index, *, any_cites: bool) -> None:
    """Donors by the shape of their marks, or their number where there are more than shapes; colours of methods."""
    names, markers = [_style.shorten(str(donor), 14) for donor in donors], _markers(donors)
    if len(set(markers)) < len(donors):
        names, markers = [f"one of {len(donors)} held-out donors"], markers[:1]
    style: dict[str, Any] = {"color": _style.MUTED, "ls": "none", "mec": "white", "ms": 6.5}
    marks = zip(names, markers, strict=True)
    handles: list[Any] = [Line2D([], [], marker=marker, label=name, **style) for name, marker in marks]
    if any_cites:
        colors = {"cites measured spots": _style.EVIDENCE, "cites none": _style.MUTED}
        handles += [Patch(color=color, label=label) for label, color in colors.items()]
    spacing = {"handletextpad": 0.4, "columnspacing": 1.2, "handlelength": 1.0, "handleheight": 0.8}
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), **spacing)
