"""`rg.pl.benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing, require_choice, require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import describe_figure_parameters, picture

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# Inches.
_ROW, _ABOVE_BELOW, _WIDTH, _COLUMN = 0.42, 1.7, 7.0, 1.4
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


@describe_figure_parameters
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
    {figure_parameters}

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
    unit = _check(scores, unit)
    rows = _rows(scores[scores["unit"] == unit], metric, baseline)
    columns = _columns(rows)
    width, height = _WIDTH + _COLUMN * (len(columns) - 1), _ABOVE_BELOW + _ROW * len(rows.methods)
    with picture(width, height, ax=ax, figsize=figsize, dpi=dpi, show=show, save=save, return_ax=return_ax) as figure:
        panel = figure.subplots()
        _draw(panel, rows)
        panel.set_yticks(range(len(rows.methods)), [_style.shorten(name, _LONGEST_NAME) for name in rows.methods])
        panel.tick_params(axis="y", length=0, labelsize="medium")
        for label, cites in zip(panel.get_yticklabels(), np.isfinite(rows.effective_n), strict=True):
            label.set_color(_style.EVIDENCE if cites else "black")
        panel.set(xlabel=f"{_title(metric)}, {unit}", label="benchmark")
        title = "Accuracy on held-out donors" if metric == "pearson" else _title(metric).capitalize()
        panel.set_title(title, fontsize="large", pad=22)
        _style.write_columns(panel, columns)
        _legend(figure, rows)
    return panel if return_ax else None


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


def _columns(rows: _Rows) -> dict[str, list[str]]:
    """Numbers beside the rows, by the title of their column."""
    columns = {"mean": [_style.number(value, 3) for value in np.nanmean(rows.values, axis=1)]}
    if rows.differences:
        with_interval = any("(" in text for text in rows.differences)
        columns["difference\n(95 % interval)" if with_interval else "difference"] = rows.differences
    if np.isfinite(rows.effective_n).any():
        texts = [_style.number(n, 0) if np.isfinite(n) else "none" for n in rows.effective_n]
        columns["rows cited\n(effective)"] = texts
    return columns


def _draw(ax: Axes, rows: _Rows) -> None:
    place = np.arange(len(rows.methods))
    if len(rows.ceiling):
        mean, highest = float(rows.ceiling.mean()), float(rows.ceiling.max())
        ax.axvspan(rows.ceiling.min(), highest, color="0.92", lw=0, zorder=0, gid="noise ceiling")
        ax.axvline(mean, color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="noise ceiling")
        # Flush right, so that the words keep clear of the numbers beside the plot.
        words, coords = f"noise ceiling {_style.number(mean, 2)}", ("data", "axes fraction")
        _style.beside(ax, words, (highest, 1), (0, 4), coords, ha="right", fontsize="small", color=_style.MUTED)
    for j, group in enumerate(rows.groups):
        ax.plot(rows.values[:, j], place, color="0.75", lw=0.9, zorder=2, gid=group)
    for i, (values, cited) in enumerate(zip(rows.values, rows.effective_n, strict=True)):
        color, mean = _style.EVIDENCE if np.isfinite(cited) else _style.MUTED, float(np.nanmean(values))
        ax.plot([mean, mean], [i - 0.3, i + 0.3], color=color, lw=3.2, solid_capstyle="butt", zorder=3, gid="mean")
        for j, value in enumerate(values):
            ax.plot(value, i, _marker(rows, j), ms=6.5, mfc=color, mec="white", mew=0.8, zorder=4, gid="donor")
    ax.set_ylim(len(rows.methods) - 0.45, -0.55)
    ax.margins(x=0.05)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def _marker(rows: _Rows, group: int) -> str:
    return _MARKERS[group] if len(rows.groups) <= len(_MARKERS) else "o"


def _legend(figure: FigureBase, rows: _Rows) -> None:
    """Donors by the shape of their marks, or their number where there are more than shapes; colours of methods."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n = len(rows.groups)
    names = [f"one of {n} held-out donors"] if n > len(_MARKERS) else [_style.shorten(name, 14) for name in rows.groups]
    style: dict[str, Any] = {"color": _style.MUTED, "ls": "none", "mec": "white", "ms": 6.5}
    handles: list[Any] = [Line2D([], [], marker=_marker(rows, j), label=name, **style) for j, name in enumerate(names)]
    if np.isfinite(rows.effective_n).any():
        colors = {"cites measured spots": _style.EVIDENCE, "cites none": _style.MUTED}
        handles += [Patch(color=color, label=name) for name, color in colors.items()]
    spacing = {"handletextpad": 0.4, "columnspacing": 1.2, "handlelength": 1.0, "handleheight": 0.8}
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), **spacing)


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))
