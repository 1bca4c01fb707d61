"""How well uncertainty is known: coverage of intervals against their level, and accuracy of the best grounded spots."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd.pl import _style
from ragst_sd.pl._trust import Intervals
from ragst_sd.retrieval.training import dense

# Share of the genes that the band of the calibration curve holds; single genes reach far beyond.
_BAND = 0.9
_TITLES = {"rmse": "RMSE", "nrmse": "RMSE / SD of the gene", "mae": "mean absolute error", "pearson": "Pearson's r"}
# Orders that say what the others could reach at worst and at best.
_YARDSTICKS = {"random": (0, (1, 1)), "oracle": (0, (6, 2, 1, 2))}
_LINES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Coverage:
    """Share of the truth inside the intervals, at each calibrated level."""

    levels: np.ndarray
    by_gene: np.ndarray
    """(genes, levels); genes without any interval are left out."""
    units: np.ndarray
    """What each level was calibrated over."""


def coverage(
    table: AnnData, header: dict[str, Any], columns: np.ndarray, intervals: Intervals, measured: np.ndarray
) -> Coverage | None:
    """Coverage of all calibrated levels; `None` if no gene has both a truth and an interval.

    The half-width at level l is `varm["interval_quantiles"][:, l]` times a scale of each spot and gene, which the
    interval of the table gives: (upper - X) over the quantile of its own level.
    """
    levels = np.asarray(header[_keys.INTERVAL_LEVELS], dtype=float)
    own = int(np.abs(levels - intervals.level).argmin())
    quantiles = np.asarray(table.varm[_keys.INTERVAL_QUANTILES], dtype=float)[columns]
    prediction = dense(table.X[:, columns])
    half = intervals.upper - prediction
    # The error in units of the scale, so that it can be compared with the quantile of any level; NaN where not known.
    error = np.abs(measured - prediction) * quantiles[:, own]
    known = np.isfinite(half) & (half > 0)
    score = np.divide(error, half, out=np.full(half.shape, np.nan), where=known)
    count = np.isfinite(score).sum(axis=0)
    inside = np.stack([(score <= limits).sum(axis=0) for limits in quantiles.T], axis=1)
    counted = count > 0
    if not counted.any():
        return None
    units = labels(np.atleast_1d(header.get(_keys.INTERVAL_UNITS, [intervals.unit] * len(levels))))
    order = np.argsort(levels)
    return Coverage(levels[order], (inside[counted] / count[counted, None])[:, order], units[order])


def draw_calibration(ax: Axes, share_inside: Coverage, intervals: Intervals) -> None:
    """Draw coverage against level; perfect intervals lie on the diagonal."""
    levels, by_gene = share_inside.levels, share_inside.by_gene
    mean = by_gene.mean(axis=0)
    low, high = np.quantile(by_gene, [(1 - _BAND) / 2, (1 + _BAND) / 2], axis=0)
    ax.plot([0, 1], [0, 1], color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="diagonal")
    words = "one gene"
    if len(by_gene) > 1:
        band: dict[str, Any] = {"facecolor": _style.BAND, "edgecolor": "0.5", "lw": 0, "zorder": 0.5}
        ax.fill_between(levels, low, high, hatch=intervals.hatch, gid="range of genes", **band)
        words = f"mean of {len(by_gene)} genes, band: {_style.percent(_BAND)} of them"
    ax.plot(levels, mean, color=_style.EVIDENCE, lw=2, zorder=3, gid="coverage")
    for level, share, unit in zip(levels, mean, share_inside.units, strict=True):
        fill = _style.EVIDENCE if unit == _keys.DONOR else "white"
        ax.plot(level, share, "o", ms=6, mew=1.6, mec=_style.EVIDENCE, mfc=fill, zorder=4, gid=unit)
    start = max(0.0, np.floor(10 * (min(levels.min(), low.min()) - 0.03)) / 10)
    ax.set(xlim=(start, 1), ylim=(start, 1), xlabel="nominal level of the interval", ylabel="share of truth inside")
    others = sorted(set(share_inside.units) - {_keys.DONOR})
    if others:
        words += f"\nopen: calibrated over {' or '.join(f'{unit}s' for unit in others)}, not donors"
    _finish(ax, "calibration", "Calibration", words)


def draw_risk(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw one metric against the share of spots kept, best grounded first, one line per order."""
    styles = zip(cycle(_style.PALETTE), cycle(_LINES), strict=False)
    for name, line in frame.groupby("by", sort=False):
        line = line.sort_values("share")
        dashes: Any = _YARDSTICKS.get(name)
        color, width = _style.MUTED, 1.3
        if dashes is None:
            (color, dashes), width = next(styles), 2
        label = name.replace("_", " ")
        ax.plot(line["share"], line["value"], color=color, ls=dashes, lw=width, label=label, gid=name)
    metric = str(frame["metric"].iloc[0])
    words = "accuracy on the spots that are kept"
    if metric == "nrmse" and frame["value"].max() > 1:
        ax.axhline(1, color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="own mean")
        words += "\nabove 1: further off than the gene's own mean in this section,\nas where its level differs between donors"
    ax.margins(y=0.12)
    ax.set(xlim=(0, 1), xlabel="share of spots kept, those in doubt left out first")
    ax.set_ylabel(_TITLES.get(metric, metric.replace("_", " ")))
    ax.legend(loc="upper left", bbox_to_anchor=(1.04, 1.0), handlelength=2.6, title="spots ranked by", alignment="left")
    _finish(ax, "risk_coverage", "Risk and coverage", words)


def _finish(ax: Axes, name: str, title: str, words: str) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.grid()
    ax.set_box_aspect(1)
    ax.set(label=name, anchor="W")
    _style.set_title(ax, title, words)
