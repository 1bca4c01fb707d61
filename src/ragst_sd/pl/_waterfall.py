"""One waterfall: rows of text and bars that add up to a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.pl import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ragst_sd.pl._trust import Intervals

# Inches.
ROW, HEAD, FOOT, _BARS = 0.25, 1.1, 0.65, 3.1
_HALF = 0.36
_BRACKET = 0.17
_UNTRUSTED = "0.6"


@dataclass(frozen=True)
class Line:
    """One step."""

    label: str
    weight: float
    """NaN where there is none: corrections have no weight."""
    value: float
    brings: float
    color: str


@dataclass(frozen=True)
class Waterfall:
    """One predicted value, taken apart."""

    title: str
    note: str
    """Words that the gene is not to be trusted; empty if nothing is known against it."""
    facts: str
    lines: list[Line]
    total: float
    truth: float
    """Measured value; NaN if not known."""
    intervals: Intervals | None
    interval: tuple[float, float]
    """NaN if not known."""
    kind: str
    unit: str

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.interval).all())

    @property
    def decimals(self) -> int:
        return _style.decimals_for([self.total, *(line.brings for line in self.lines)])


def draw_waterfall(ax: Axes, fall: Waterfall) -> None:
    """Draw bars that add up to a prediction, behind columns of their names and numbers."""
    ax.set_label("contributions")
    _draw_bars(ax, fall)
    decimals, n = fall.decimals, len(fall.lines)
    weights, values = [], []
    for line in fall.lines:
        has_weight = np.isfinite(line.weight)
        value = _style.number(line.value, decimals) if np.isfinite(line.value) else "not measured"
        weights.append(_style.percent(line.weight, 1) if has_weight else "")
        values.append(value if has_weight else "")
    total = _style.number(fall.total, decimals)
    columns = {
        fall.kind: [*(line.label for line in fall.lines), "predicted"],
        "weight": weights,
        "value": values,
        "contribution": [*(_style.number(line.brings, decimals, sign=True) for line in fall.lines), total],
    }
    left, em = -_style.write_columns(ax, columns, before=True, bold=n), _style.em()
    color = _style.MUTED if fall.note else "black"
    title: dict[str, Any] = {"fontsize": "x-large", "fontweight": "bold", "color": color}
    _style.beside(ax, f"{fall.title} {total}", (0, 1), (left, 4.4 * em), **title)
    words = "  ·  ".join(part for part in (fall.facts, fall.note) if part)
    _style.beside(ax, words, (0, 1), (left, 2.8 * em), color=_style.MUTED, gid="facts")
    if fall.intervals is not None and fall.has_interval:
        low, high = (_style.number(end, decimals) for end in fall.interval)
        words, caveat = f"{fall.intervals.name}: {low} to {high}", fall.intervals.caveat
        _style.beside(ax, words, (0, 0), (left, -1.4 * em), gid="interval text")
        if caveat:
            _style.beside(ax, caveat, (0, 0), (left, -2.8 * em), fontsize="small", color=_style.MUTED, gid="caveat")


def _draw_bars(ax: Axes, fall: Waterfall) -> None:
    from matplotlib.ticker import MaxNLocator

    values = np.array([line.brings for line in fall.lines])
    ends = np.cumsum(values)
    n = len(values)
    colors = [_UNTRUSTED] * (n + 1) if fall.note else [*(line.color for line in fall.lines), _style.QUERY]
    starts = [*(ends - values), 0.0]
    ax.barh(np.arange(n + 1), [*values, fall.total], left=starts, height=2 * _HALF, color=colors, zorder=2)
    ax.vlines(ends, np.arange(n) + _HALF, np.arange(n) + 1 - _HALF, color=_style.MUTED, lw=0.8, zorder=1)
    ax.axvline(0, color=_style.MUTED, lw=0.8, zorder=1)
    shown = [0.0, *ends, fall.total]
    if fall.intervals is not None and fall.has_interval:
        _draw_interval(ax, *fall.interval, n, fall.intervals.hatch)
        shown += fall.interval
    if np.isfinite(fall.truth):
        ax.axvline(fall.truth, color="black", lw=1.4, ls=(0, (4, 2)), zorder=4, gid="truth")
        shown.append(fall.truth)
    low, high = min(shown), max(shown)
    room = 0.03 * ((high - low) or 1.0)
    ax.set(ylim=(n + 0.5, -0.5), xlim=(low - (room if low < 0 else 0), high + room), yticks=[], xlabel=fall.unit)
    if np.isfinite(fall.truth):
        share = (fall.truth - low) / ((high - low) or 1.0)
        # Near the edges the words would run out of the panel or into the columns of numbers.
        align = "left" if share < 0.2 else "right" if share > 0.8 else "center"
        words, coords = f"measured {_style.number(fall.truth, fall.decimals)}", ("data", "axes fraction")
        _style.beside(ax, words, (fall.truth, 1), (0, 3), coords, ha=align, gid="measured")
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)


def _draw_interval(ax: Axes, low: float, high: float, row: int, hatch: str | None) -> None:
    """A bracket on the prediction: a line with caps, or a hatched box where it must not be read as one for new donors."""
    style: dict[str, Any]
    if hatch:
        style = {"facecolor": "white", "edgecolor": "black", "lw": 1.0, "hatch": hatch, "zorder": 3, "gid": "interval"}
        ax.barh(row, high - low, left=low, height=2 * _BRACKET, **style)
        return
    style = {"color": "black", "lw": 1.6, "zorder": 3, "path_effects": _style.halo(3.2), "gid": "interval"}
    ax.hlines(row, low, high, **style)
    ax.vlines([low, high], row - _BRACKET, row + _BRACKET, **style)
