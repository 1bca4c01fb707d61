"""Pictures of a data card."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ragst_sd import _keys
from ragst_sd._page import Picture
from ragst_sd.pl._style import EVIDENCE, shorten

_MOST_LINES = 30


def draw_pictures(facts: dict[str, Any]) -> list[Picture]:
    """Composition, and depth where there are counts."""
    caption = "Spots by organ, technology and donor."
    pictures = [Picture("composition.png", _png(draw_composition(facts["compositions"])), caption)]
    if facts["counts"] is not None:
        caption = (
            f"Counts per spot in the {facts['n_genes']:,} genes kept: median, middle half (box), and 5 to 95 % (line) "
            "of each section."
        )
        figure = draw_depth(facts["counts"], facts["rows"][_keys.SAMPLE])
        pictures.append(Picture("depth.png", _png(figure), caption))
    return pictures


def draw_composition(compositions: dict[str, pd.DataFrame]) -> Figure:
    """Bars of spots by organ, technology and donor, of the largest groups."""
    bars = {name: table["spots"].head(_MOST_LINES) for name, table in compositions.items()}
    heights = [len(spots) + 2 for spots in bars.values()]
    figure = Figure(figsize=(7.6, 0.3 * sum(heights)), dpi=150, layout="constrained")
    for ax, (name, spots) in zip(figure.subplots(3, 1, height_ratios=heights), bars.items(), strict=True):
        title = name.capitalize() + _without(len(compositions[name]) - len(spots))
        spots.rename(_short)[::-1].plot.barh(ax=ax, color=EVIDENCE, xlabel="spots", ylabel="", title=title)
        ax.bar_label(ax.containers[0], fmt="{:,.0f}", padding=4)
        ax.margins(x=0.15)
    return figure


def draw_depth(counts: pd.Series, samples: pd.Series) -> Figure:
    """Boxes of the counts per spot of each section, the deepest on top."""
    deepest = counts.groupby(samples).median().sort_values(ascending=False, kind="stable").head(_MOST_LINES).index
    figure = Figure(figsize=(7.6, 4.8), dpi=150, layout="constrained")
    ax = figure.subplots()
    values = [counts[samples == name] for name in deepest]
    ax.boxplot(values, whis=(5, 95), showfliers=False, tick_labels=[_short(name) for name in deepest])
    ax.tick_params(axis="x", rotation=90)
    ax.set(yscale="log", ylabel="counts per spot", title="Depth" + _without(samples.nunique() - len(deepest)))
    return figure


def _without(n: int) -> str:
    return f", without {n} others" if n else ""


def _short(name: object) -> str:
    return shorten(str(name), 30)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
