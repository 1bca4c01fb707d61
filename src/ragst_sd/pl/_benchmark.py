"""`rg.pl.benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing, require_choice, require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import finish, open_stage

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes

    from ragst_sd.pl._figure import Stage

# The design, in inches.
_ROW, _TOP, _BOTTOM, _LEGEND, _MARGIN = 0.42, 0.72, 0.62, 0.34, 0.15
_PLOT, _LETTER, _MEAN, _DIFFERENCE, _EFFECTIVE = 4.6, 0.098, 0.75, 1.75, 0.95
_LONGEST_NAME = 22
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LOWER_IS_BETTER = ("rmse",)
_TITLES = {"pearson": "Pearson correlation", "spearman": "Spearman correlation", "rmse": "root mean squared error"}


@dataclass(frozen=True)
class _Rows:
    """What is drawn, best method first."""

    methods: list[str]
    values: np.ndarray
    """(methods, groups), NaN where a method has no score."""
    groups: list[str]
    effective_n: np.ndarray
    differences: list[str]
    """Text of each row's difference to the baseline; empty without one."""
    ceiling: np.ndarray
    """Noise ceiling of each group; empty if not known."""


def benchmark(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    unit: str | None = None,
    baseline: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> Axes | None:
    """Draw how methods compare on held-out donors.

    One row per method, the best at the top, and one mark per held-out donor, which a thin line follows from method to
    method. The upright bar is the mean over donors. Numbers at the right are that mean, the effective number of cited
    rows, and with a baseline the mean difference to it with its 95 % interval over donors (three at least).

    Parameters
    ----------
    scores
        Made by :func:`ragst_sd.tl.cross_validate`. Frames of several runs on the same folds may be joined with
        `pandas.concat`.
    metric
        Metric to draw. Metrics of genes are averaged over genes (`variance_kept`: their median), then over the sections
        of a donor.
    unit
        Which of the units in `scores` to draw; the first if left out.
    baseline
        Method to compare with.
    figsize, dpi
        Size of a new figure in inches, and its resolution; `dpi` also holds for `save`.
    ax
        Axes whose place the picture fills with axes of its own; a new figure is made if left out.
    show
        Show a new figure; by default if it is neither saved nor returned.
    save
        File to write.
    return_ax
        Return the axes.

    Returns
    -------
    `None`, or if `return_ax` the Axes with the marks. For `metric="pearson"` they show the noise ceiling where the
    scores hold one: the mean over donors as a broken line, the range of donors as a band.

    Raises
    ------
    ValueError
        If `scores` is not such a frame, or does not hold the metric, the unit or the baseline.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> scores = rg.tl.cross_validate(reference, methods=["ridge", "knn"], n_genes=50, progress=False)
    >>> rg.pl.benchmark(scores, baseline="ridge", show=False)
    """
    from matplotlib.transforms import blended_transform_factory

    unit = _check(scores, unit)
    rows = _rows(scores[scores["unit"] == unit], metric, baseline)
    names = [_style.shorten(name, _LONGEST_NAME) for name in rows.methods]
    left = _MARGIN + 0.25 + _LETTER * max(len(name) for name in names)
    tables = _columns(rows)
    height = _ROW * len(names)
    stage = open_stage(
        left + _PLOT + sum(width for width, *_ in tables) + 2 * _MARGIN, _TOP + height + _BOTTOM + _LEGEND,
        ax=ax, figsize=figsize, dpi=dpi,
    )  # fmt: skip
    panel = stage.axes(left, _TOP, _PLOT, height, "benchmark")
    _draw(stage, panel, rows)
    panel.set_yticks(range(len(names)), names, fontsize=stage.points(10.5))
    for label, cites in zip(panel.get_yticklabels(), np.isfinite(rows.effective_n), strict=True):
        label.set_color(_style.EVIDENCE if cites else "black")
    panel.set_xlabel(f"{_title(metric)}, {unit}", fontsize=stage.points(10))
    stage.text(left, 0.3, "Accuracy on held-out donors" if metric == "pearson" else _title(metric).capitalize(),
               size=12, va="center", ha="left")  # fmt: skip

    middle = blended_transform_factory(stage.place.transAxes, panel.transData)
    edge = left + _PLOT
    for width, title, texts in tables:
        edge += width
        head = stage.text(edge, _TOP - 0.1, title, size=8.5, ha="right", va="bottom", color=_style.MUTED)
        for i, text in enumerate(texts):
            stage.place.text(
                head.get_position()[0], i, text, transform=middle, ha="right", va="center",
                fontsize=stage.points(10), gid=title.replace("\n", " "),
            )  # fmt: skip
    _legend(stage, rows, left, _TOP + height + _BOTTOM)
    return finish(stage, panel, show=show, save=save, return_ax=return_ax, dpi=dpi)


def _check(scores: pd.DataFrame, unit: str | None) -> str:
    import pandas as pd

    require_type(scores, pd.DataFrame, "scores", "Make it with `rg.tl.cross_validate`.")
    missing = [name for name in ("method", "fold", "sample", "gene", "unit", "metric", "value") if name not in scores]
    if missing or scores.empty:
        found = f"lacks the columns {listing(missing)}" if missing else "is empty"
        msg = f"`scores` {found}. Make it with `rg.tl.cross_validate`."
        raise ValueError(msg)
    units = list(dict.fromkeys(scores["unit"]))
    if unit is None:
        return str(units[0])
    require_choice(unit, units, "unit")
    return unit


def _rows(scores: pd.DataFrame, metric: str, baseline: str | None) -> _Rows:
    from ragst_sd.tl._folds import by_donor, group_means

    def table(name: str) -> pd.DataFrame:
        found = group_means(scores, name)
        return found.pivot_table(index="method", columns="fold", values="value", sort=False)

    # A noise ceiling belongs to no method: its name is empty.
    require_choice(metric, list(dict.fromkeys(scores.loc[scores["method"] != "", "metric"])), "metric")
    values = table(metric)
    if values.empty:
        msg = f"`scores` has no value of {metric!r} in this unit: all are NaN."
        raise ValueError(msg)
    mean = values.mean(axis=1).sort_values(ascending=metric in _LOWER_IS_BETTER, kind="stable")
    values = values.loc[mean.index]
    known = set(scores["metric"])
    effective = (
        group_means(scores, _keys.EFFECTIVE_N).groupby("method")["value"].mean().reindex(values.index).to_numpy(float)
        if _keys.EFFECTIVE_N in known
        else np.full(len(values), np.nan)
    )
    ceiling = np.zeros(0)
    if metric == "pearson" and _keys.NOISE_CEILING in known:
        ceiling = group_means(scores, _keys.NOISE_CEILING)["value"].dropna().to_numpy(float)
    texts: list[str] = []
    if baseline is not None:
        require_choice(baseline, list(values.index), "baseline")
        summary = by_donor(scores, metric, baseline=baseline).set_index("method").loc[values.index]
        texts = ["baseline" if line.Index == baseline else _interval(line) for line in summary.itertuples()]
    return _Rows([str(name) for name in values.index], values.to_numpy(float), [str(g) for g in values.columns],
                 effective, texts, ceiling)  # fmt: skip


def _interval(line: Any) -> str:
    if not np.isfinite(line.difference):
        return ""
    text = _style.number(line.difference, 3, sign=True)
    if not np.isfinite(line.low):
        return text
    return f"{text} ({_style.number(line.low, 3)} to {_style.number(line.high, 3)})"


def _columns(rows: _Rows) -> list[tuple[float, str, list[str]]]:
    """Width, title and texts of each column of numbers."""
    means = np.nanmean(rows.values, axis=1)
    columns = [(_MEAN, "mean", [_style.number(value, 3) for value in means])]
    if rows.differences:
        wide = any("(" in text for text in rows.differences)
        title = "difference\n(95 % interval)" if wide else "difference"
        columns.append((_DIFFERENCE + 0.35 if wide else _DIFFERENCE / 2, title, rows.differences))
    if np.isfinite(rows.effective_n).any():
        texts = [_style.number(n, 0) if np.isfinite(n) else "none" for n in rows.effective_n]
        columns.append((_EFFECTIVE, "rows cited\n(effective)", texts))
    return columns


def _draw(stage: Stage, ax: Axes, rows: _Rows) -> None:
    place = np.arange(len(rows.methods))
    if len(rows.ceiling):
        mean = float(rows.ceiling.mean())
        ax.axvspan(rows.ceiling.min(), rows.ceiling.max(), color="0.92", lw=0, zorder=0, gid="noise ceiling")
        ax.axvline(mean, color=_style.MUTED, lw=stage.points(1), ls=(0, (4, 3)), zorder=1, gid="noise ceiling")
        # Flush right, so that the words keep clear of the numbers beside the plot.
        ax.annotate(
            f"noise ceiling {_style.number(mean, 2)}", (max(mean, rows.ceiling.max()), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, stage.points(4)), textcoords="offset points", ha="right", va="bottom",
            fontsize=stage.points(8.5), color=_style.MUTED, annotation_clip=False,
        )  # fmt: skip
    for j, group in enumerate(rows.groups):
        ax.plot(rows.values[:, j], place, color="0.75", lw=stage.points(0.9), zorder=2, gid=group)
    colors = [_style.EVIDENCE if np.isfinite(n) else _style.MUTED for n in rows.effective_n]
    for i, color in enumerate(colors):
        mean = float(np.nanmean(rows.values[i]))
        ax.plot(
            [mean, mean], [i - 0.3, i + 0.3], color=color, lw=stage.points(3.2), solid_capstyle="butt", zorder=3,
            gid="mean",
        )  # fmt: skip
        for j in range(len(rows.groups)):
            ax.plot(
                rows.values[i, j], i, marker=_marker(rows, j), ms=stage.points(6.5), mfc=color, mec="white",
                mew=stage.points(0.8), ls="none", zorder=4, gid="donor",
            )  # fmt: skip
    ax.set_ylim(len(rows.methods) - 0.45, -0.55)
    ax.margins(x=0.05)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("0.6")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=stage.points(9), color="0.6")
    ax.grid(axis="x", color="0.93", lw=stage.points(0.8), zorder=0)
    ax.set_axisbelow(True)


def _marker(rows: _Rows, group: int) -> str:
    return _MARKERS[group] if len(rows.groups) <= len(_MARKERS) else "o"


def _legend(stage: Stage, rows: _Rows, left: float, top: float) -> None:
    """Donors by the shape of their marks, or their number where there are more than shapes; colours of methods."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    style: dict[str, Any] = {"color": _style.MUTED, "ls": "none", "mec": "white", "ms": stage.points(6.5)}
    if len(rows.groups) > len(_MARKERS):
        handles: list[Any] = [Line2D([], [], marker="o", label=f"one of {len(rows.groups)} held-out donors", **style)]
    else:
        handles = [
            Line2D([], [], marker=_marker(rows, j), label=_style.shorten(group, 14), **style)
            for j, group in enumerate(rows.groups)
        ]
    if np.isfinite(rows.effective_n).any():
        handles += [
            Patch(color=_style.EVIDENCE, label="cites measured spots"),
            Patch(color=_style.MUTED, label="cites none"),
        ]
    x, y = stage._at(left, top)
    stage.place.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(x, y), bbox_transform=stage.place.transAxes,
        ncols=len(handles), frameon=False, fontsize=stage.points(9), borderpad=0, borderaxespad=0, handletextpad=0.4,
        columnspacing=1.2, handlelength=1.0, handleheight=0.8,
    )  # fmt: skip


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))
