"""Pictures of a data card."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._page import Picture
from ragst_sd.pl._style import EVIDENCE, MUTED, OTHER_GROUPS, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS = 15
_LONGEST_NAME = 30


def draw_pictures(facts: dict[str, Any]) -> list[Picture]:
    """Composition, and depth where there are counts."""
    caption = "Spots by organ, technology and donor; behind each bar the number of spots."
    pictures = [Picture("composition.png", _png(draw_composition(facts["compositions"])), caption)]
    if facts["counts"] is not None:
        caption = (
            f"Counts per spot in the {facts['n_genes']:,} genes kept: median (dot), middle half (thick line), 5 to "
            "95 % (thin line) of each section."
        )
        figure = draw_depth(facts["counts"], facts["rows"][_keys.SAMPLE])
        pictures.append(Picture("depth.png", _png(figure), caption))
    return pictures


def draw_composition(compositions: dict[str, pd.DataFrame]) -> Figure:
    """Bars of spots by organ, technology and donor; the groups that find no room are one bar."""
    from matplotlib.figure import Figure

    bars = {name: _folded(table["spots"]) for name, table in compositions.items()}
    heights = [len(spots) + 0.6 for spots in bars.values()]
    figure = Figure(figsize=(7.6, 0.34 * sum(heights) + 1.8), dpi=150, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    for ax, (name, spots) in zip(axes, bars.items(), strict=True):
        drawn = ax.barh(range(len(spots)), spots, height=0.68, color=EVIDENCE)
        if len(spots) < len(compositions[name]):
            drawn[-1].set_color(OTHER_GROUPS)
        ax.bar_label(drawn, fmt="{:,.0f}", padding=4, fontsize=9, color=MUTED)
        _name_lines(ax, name.capitalize(), list(spots.index))
    for ax in axes[:-1]:
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="x", length=0)
    longest = max(spots.max() for spots in bars.values())
    axes[-1].set(xlabel="spots", xlim=(0, 1.12 * longest))
    return figure


def _folded(spots: pd.Series) -> pd.Series:
    rest = spots.iloc[_MOST_BARS:]
    if len(rest) < 2:
        return spots
    folded = spots.iloc[:_MOST_BARS].copy()
    folded[f"{len(rest)} others"] = rest.sum()
    return folded


def draw_depth(counts: pd.Series, samples: pd.Series) -> Figure:
    """Quantiles of the counts per spot, section by section, the deepest on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    depth = counts.groupby(samples).quantile(shares).unstack().sort_values(0.5, ascending=False, kind="stable")
    title = "Depth by section"
    if len(depth) > 2 * _MOST_BARS:
        depth = depth.iloc[[*range(_MOST_BARS), *range(-_MOST_BARS, 0)]]
        title += f", the {_MOST_BARS} deepest and shallowest sections"
    places = range(len(depth))
    figure = Figure(figsize=(7.6, 0.26 * len(depth) + 1.2), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.hlines(places, depth[0.05], depth[0.95], color=MUTED, linewidth=1.0)
    ax.hlines(places, depth[0.25], depth[0.75], color=EVIDENCE, linewidth=4.0, alpha=0.55)
    ax.plot(depth[0.5], places, "o", color=EVIDENCE, markersize=6)
    ax.set(xscale="log", xlabel="counts per spot")
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    _name_lines(ax, title, list(depth.index))
    return figure


def _name_lines(ax: Axes, title: str, names: list[str]) -> None:
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.set_yticks(range(len(names)), [shorten(name, _LONGEST_NAME) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(labelsize=9)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
