"""One waterfall: rows of text and bars that add up to a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.pl import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from ragst_sd.pl._figure import Stage

# Inches of the design.
_EDGE, _ROW, _TOP, _BOTTOM = 0.15, 0.25, 1.02, 0.78
_LABEL, _WEIGHT, _VALUE, _BRINGS, _GAP, _BARS = 2.35, 0.62, 0.72, 0.9, 0.14, 3.1
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
    interval: tuple[float, float] | None
    interval_text: str
    caveat: str
    hatch: str | None
    kind: str
    unit: str

    @property
    def decimals(self) -> int:
        return _style.decimals_for([self.total, *(line.brings for line in self.lines)])


def waterfall_size(fall: Waterfall) -> tuple[float, float]:
    """Width and height in inches."""
    width = _EDGE + _LABEL + _WEIGHT + _VALUE + _BRINGS + _GAP + _BARS + 2 * _EDGE
    return width, _TOP + (len(fall.lines) + 1) * _ROW + _BOTTOM


def draw_waterfall(stage: Stage, fall: Waterfall, left: float, top: float) -> Axes:
    """Draw a waterfall whose upper left corner is given; the axes with the bars."""
    left += _EDGE
    columns = np.cumsum([left + _LABEL, _WEIGHT, _VALUE, _BRINGS])
    n_rows = len(fall.lines) + 1
    ax = stage.axes(columns[-1] + _GAP, top + _TOP, _BARS, n_rows * _ROW, "contributions")
    _draw_bars(stage, ax, fall)
    _write_head(stage, fall, left, top)
    for place, name in zip(columns, (fall.kind, "weight", "value", "contribution"), strict=True):
        first = place == columns[0]
        stage.text(
            left if first else place, top + _TOP - 0.08, name, size=9, ha="left" if first else "right", va="bottom",
            color=_style.MUTED,
        )  # fmt: skip
    decimals = fall.decimals
    for i, line in enumerate(fall.lines):
        middle = top + _TOP + (i + 0.5) * _ROW
        _cell(stage, left, middle, line.label, "label", ha="left")
        if np.isfinite(line.weight):
            _cell(stage, columns[1], middle, f"{line.weight:.1%}".replace("%", " %"), "weight")
            value = _style.number(line.value, decimals) if np.isfinite(line.value) else "not measured"
            _cell(stage, columns[2], middle, value, "value")
        _cell(stage, columns[3], middle, _style.number(line.brings, decimals, sign=True), "contribution")
    middle = top + _TOP + (n_rows - 0.5) * _ROW
    _cell(stage, left, middle, "predicted", "label", ha="left", fontweight="bold")
    _cell(stage, columns[3], middle, _style.number(fall.total, decimals), "contribution", fontweight="bold")
    _write_foot(stage, fall, left, top + _TOP + n_rows * _ROW)
    return ax


def _cell(stage: Stage, x: float, y: float, text: str, column: str, *, ha: str = "right", **style: str) -> Text:
    return stage.text(x, y, text, size=9.5, ha=ha, va="center", gid=column, **style)


def _write_head(stage: Stage, fall: Waterfall, left: float, top: float) -> None:
    title = f"{fall.title} {_style.number(fall.total, fall.decimals)}"
    color = _style.MUTED if fall.note else "black"
    stage.text(left, top + 0.34, title, size=14, fontweight="bold", ha="left", va="baseline", color=color)
    words = "  ·  ".join(part for part in (fall.facts, fall.note) if part)
    stage.text(left, top + 0.56, words, size=9.5, ha="left", va="baseline", color=_style.MUTED, gid="facts")


def _write_foot(stage: Stage, fall: Waterfall, left: float, top: float) -> None:
    """The interval in words, left of the axis label."""
    if fall.interval is None or not np.isfinite(fall.interval).all():
        return
    low, high = (_style.number(end, fall.decimals) for end in fall.interval)
    stage.text(
        left, top + 0.16, f"{fall.interval_text}: {low} to {high}", size=9.5, ha="left", va="center", gid="interval"
    )
    if fall.caveat:
        stage.text(left, top + 0.36, fall.caveat, size=9, ha="left", va="center", color=_style.MUTED, gid="caveat")


def _draw_bars(stage: Stage, ax: Axes, fall: Waterfall) -> None:
    from matplotlib.ticker import MaxNLocator

    values = np.array([line.brings for line in fall.lines])
    ends = np.cumsum(values)
    n = len(values)
    colors = [_UNTRUSTED] * (n + 1) if fall.note else [*(line.color for line in fall.lines), _style.QUERY]
    ax.barh(
        np.arange(n + 1), [*values, fall.total], left=[*(ends - values), 0.0], height=2 * _HALF, color=colors, zorder=2
    )
    for i, end in enumerate(ends):
        ax.plot([end, end], [i + _HALF, i + 1 - _HALF], color=_style.MUTED, lw=stage.points(0.8), zorder=1)
    ax.axvline(0, color=_style.MUTED, lw=stage.points(0.8), zorder=1)
    shown = [0.0, *ends, fall.total]
    if fall.interval is not None and np.isfinite(fall.interval).all():
        _draw_interval(stage, ax, fall.interval, fall.hatch, n)
        shown += list(fall.interval)
    if np.isfinite(fall.truth):
        ax.axvline(fall.truth, color="black", lw=stage.points(1.4), ls=(0, (4, 2)), zorder=4, gid="truth")
        shown.append(fall.truth)
    low, high = min(shown), max(shown)
    room = 0.03 * ((high - low) or 1.0)
    ax.set(ylim=(n + 0.5, -0.5), xlim=(low - (room if low < 0 else 0), high + room))
    if np.isfinite(fall.truth):
        _name_truth(stage, ax, fall)
    ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="x", labelsize=stage.points(9), color="0.6")
    ax.set_xlabel(fall.unit, fontsize=stage.points(9.5))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("0.6")


def _name_truth(stage: Stage, ax: Axes, fall: Waterfall) -> None:
    low, high = ax.get_xlim()
    share = (fall.truth - low) / (high - low)
    # Near the edges the words would run out of the panel or into the columns of numbers.
    align = "left" if share < 0.2 else "right" if share > 0.8 else "center"
    ax.annotate(
        f"measured {_style.number(fall.truth, fall.decimals)}", (fall.truth, 1),
        xycoords=("data", "axes fraction"), xytext=(0, stage.points(3)), textcoords="offset points",
        ha=align, va="bottom", fontsize=stage.points(9), annotation_clip=False,
    )  # fmt: skip


def _draw_interval(stage: Stage, ax: Axes, interval: tuple[float, float], hatch: str | None, row: int) -> None:
    """A bracket on the prediction: a line with caps, or a hatched box where it must not be read as one for new donors."""
    from matplotlib.patches import Rectangle

    low, high = interval
    if hatch:
        box = Rectangle(
            (low, row - _BRACKET), high - low, 2 * _BRACKET, facecolor="white", edgecolor="black",
            lw=stage.points(1.0), hatch=hatch, zorder=3, gid="interval",
        )  # fmt: skip
        ax.add_patch(box)
        return
    lines: list[tuple[list[float], list[float]]] = [([low, high], [row, row])]
    lines += [([end, end], [row - _BRACKET, row + _BRACKET]) for end in (low, high)]
    for x, y in lines:
        ax.plot(x, y, color="black", lw=stage.points(1.6), solid_capstyle="butt", zorder=3, gid="interval",
                path_effects=_style.halo(stage.points(3.2)))  # fmt: skip
