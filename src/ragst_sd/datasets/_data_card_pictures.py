"""Pictures of a data card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd.datasets._data_card_facts import SPOTS
from ragst_sd.pl._style import EVIDENCE, MUTED, OTHER_GROUPS, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ragst_sd.datasets._data_card_facts import CardFacts

_MOST_BARS = 15
_BAR_IN, _LONGEST_NAME = 0.34, 30


def draw_pictures(facts: CardFacts) -> Iterator[tuple[str, str, Figure]]:
    """File name, caption and figure of each picture."""
    yield (
        "composition.png",
        "Spots by organ, technology and donor; behind each bar the number of spots.",
        _composition(facts),
    )
    if facts.counts is not None:
        yield (
            "depth.png",
            f"Counts per spot in the {facts.n_genes:,} genes kept: median (dot), middle half (thick line), 5 to 95 % (thin line) "
            "of each section.",
            _depth(facts),
        )


def _composition(facts: CardFacts) -> Figure:
    from matplotlib.figure import Figure

    tables = {
        "Organ": facts.composition(_keys.TISSUE),
        "Technology": facts.composition(_keys.TECHNOLOGY),
        "Donor": facts.composition(_keys.DONOR),
    }
    bars = [_bars([str(name) for name in table.index], table[SPOTS].to_numpy(int)) for table in tables.values()]
    heights = [len(names) for names, _ in bars]
    figure = Figure(figsize=(7.6, _BAR_IN * sum(heights) + 0.75 * len(heights) + 0.3), dpi=150, layout="constrained")
    axes = figure.subplots(len(bars), 1, sharex=True, gridspec_kw={"height_ratios": [n + 0.6 for n in heights]})
    longest = max(int(values.max()) for _, values in bars)
    for ax, title, (names, values) in zip(axes, tables, bars, strict=True):
        folded = len(names) > _MOST_BARS
        colors = [EVIDENCE] * (len(names) - folded) + [OTHER_GROUPS] * folded
        places = np.arange(len(names))
        ax.barh(places, values, height=0.68, color=colors)
        for place, value in zip(places, values, strict=True):
            ax.text(value + 0.012 * longest, place, f"{value:,}", va="center", fontsize=9, color=MUTED)
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
        _named(ax, names)
    for ax in axes[:-1]:
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="x", length=0)
    axes[-1].set_xlim(0, 1.12 * longest)
    axes[-1].set_xlabel("spots", fontsize=10)
    return figure


def _bars(names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The largest groups; those that find no room are one bar."""
    if len(names) <= _MOST_BARS + 1:
        return names, values
    rest = len(names) - _MOST_BARS
    return [*names[:_MOST_BARS], f"{rest} others"], np.append(values[:_MOST_BARS], values[_MOST_BARS:].sum())


def _depth(facts: CardFacts) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    counts, samples = np.asarray(facts.counts), facts.rows[_keys.SAMPLE].to_numpy()
    order = facts.sections["median_counts"].sort_values(ascending=False, kind="stable").index
    names, note = list(order), ""
    if len(names) > 2 * _MOST_BARS:
        names, note = [*order[:_MOST_BARS], *order[-_MOST_BARS:]], f", the {_MOST_BARS} deepest and shallowest sections"
    figure = Figure(figsize=(7.6, 0.26 * len(names) + 1.2), dpi=150, layout="constrained")
    ax = figure.subplots()
    for place, name in enumerate(names):
        low, first, middle, third, high = np.quantile(counts[samples == name], [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([low, high], [place, place], color=MUTED, linewidth=1.0)
        ax.plot([first, third], [place, place], color=EVIDENCE, linewidth=4.0, solid_capstyle="butt", alpha=0.55)
        ax.plot(middle, place, "o", color=EVIDENCE, markersize=6)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("counts per spot", fontsize=10)
    ax.set_title(f"Depth by section{note}", loc="left", fontsize=11, fontweight="bold")
    _named(ax, names)
    ax.grid(axis="x", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    return figure


def _named(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), [shorten(name, _LONGEST_NAME) for name in names], fontsize=9)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
