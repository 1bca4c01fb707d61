"""Maps of one value per spot on the section, and their colour bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import FigureBase
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ragst_sd import _keys
from ragst_sd._results import Prediction
from ragst_sd._validate import require_between
from ragst_sd.pl import _style
from ragst_sd.pl._section import Section, draw_image, draw_rims, draw_spots, extent_of, free_corner

# For genes that are not to be trusted; the lightest grey still stands out from glass.
GREYS = LinearSegmentedColormap.from_list("distrust", ["0.88", "0.1"])
# Inches that a figure holds for a title, a line of the note below it, and a colour bar with its label.
TITLE, NOTE, BAR = 0.4, 0.17, 1.0
# Letters of a note that fit an inch.
LETTERS = 14


@dataclass(frozen=True)
class Map:
    """One map."""

    kind: str
    title: str
    values: np.ndarray
    limits: tuple[float, float]
    cmap: str | Colormap
    label: str
    """Of the colour bar; empty if there is none."""
    note: str = ""
    """What is said below the title, in small letters."""
    hatch: str | None = None
    on_scale: np.ndarray | None = None
    """All values that share the colour bar, where the map shares it."""


def require_fade(image_fade: float) -> None:
    """Raise a `ValueError` unless `image_fade` is a share of white."""
    require_between(image_fade, 0, 1, "image_fade", "0 leaves the picture as it is, 1 makes it white.")


def distrust(prediction: Prediction, genes: np.ndarray, min_cv_pearson: float) -> list[str]:
    """A note for each gene, by its column, if it is not to be trusted; else an empty text.

    A gene that was not assessed (`var["cv_pearson"]` is NaN or absent) has none: nothing is known against it.

    Raises
    ------
    ValueError
        If `min_cv_pearson` is not a correlation.
    """
    require_between(min_cv_pearson, -1, 1, "min_cv_pearson", "It is a correlation; -1 trusts every gene.")
    scores = prediction.table.var.reindex(columns=[_keys.CV_PEARSON]).iloc[genes, 0]
    words = "not to be trusted (cross-validated r = {})"
    return [words.format(_style.number(score, 2)) if score < min_cv_pearson else "" for score in scores]


def require_citations(prediction: Prediction) -> None:
    """Raise a `ValueError` if a prediction was made by a method that cites no measured spots."""
    if not len(prediction.cited):
        raise ValueError(
            f"The prediction was made by method {prediction.header['method']!r}, which cites no measured spots: there "
            'is nothing to show. `rg.get.explain(..., terms="all")` lists the rows that a regression rests on. Or fit '
            'a method that cites, for instance `rg.tl.fit(reference, method="knn")`, and predict again.'
        )


def map_size(section: Section, edge: float) -> tuple[float, float]:
    """Width and height in inches of a map whose longer edge is given."""
    left, right, top, bottom = extent_of(section, section.reach)
    shrink = edge / max(right - left, bottom - top)
    return (right - left) * shrink, (bottom - top) * shrink


def size_with_words(section: Section, edge: float, panels: list[Map]) -> tuple[float, float, int]:
    """Width in inches of a map without colour bar, height with title and note, and letters in a line of the note."""
    width, height = map_size(section, edge)
    letters = int(LETTERS * (width + BAR))
    lines = max(-(-len(panel.note) // letters) for panel in panels)
    return width, height + TITLE + NOTE * lines, letters


def axes_in_rows(figure: FigureBase, n: int, per_row: int, cell: SubplotSpec | None = None) -> list[Axes]:
    """`n` axes, `per_row` of them side by side, in a figure or a cell of its grid."""
    shape = (-(-n // per_row), per_row)
    grid = figure.add_gridspec(*shape) if cell is None else cell.subgridspec(*shape)
    return [figure.add_subplot(grid[i // per_row, i % per_row]) for i in range(n)]


def limits_of(values: np.ndarray, vmin: float | None = None, vmax: float | None = None) -> tuple[float, float]:
    """Limits of a colour scale that leaves out one value in a hundred at either end.

    Raises
    ------
    ValueError
        If the limits given leave no scale.
    """
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, (0.01, 0.99)) if len(finite) else (0.0, 1.0)
    if low == high and len(finite):
        low, high = finite.min(), finite.max()
    low, high = float(low if vmin is None else vmin), float(high if vmax is None else vmax)
    if low > high:
        raise ValueError(f"The colour scale would run from {low:.4g} to {high:.4g}. Give `vmin` below `vmax`.")
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def draw_section(ax: Axes, section: Section, has_value: np.ndarray, *, fade: float, scale_bar: bool = True) -> None:
    """Draw the picture of a section with hollow spots where there is no value, and a scale bar."""
    box = extent_of(section, section.reach)
    draw_image(ax, section.pyramid, box, edge_px=900, fade=fade)
    if not has_value.all():
        without = np.flatnonzero(~has_value)
        draw_rims(ax, section, without, _style.NO_VALUE, 0.9, label="no value", zorder=2)
    if scale_bar:
        _style.scale_bar(ax, section.mpp, free_corner(section, box))
    _style.frame(ax)


def draw_map(ax: Axes, section: Section, panel: Map, *, fade: float, letters: int = 80, scale_bar: bool = True) -> Any:
    """Draw a map with its title, note (wrapped at `letters`) and colour bar; the coloured spots are returned."""
    ax.set_label(panel.kind)
    has = np.isfinite(panel.values)
    draw_section(ax, section, has, fade=fade, scale_bar=scale_bar)
    # The middle of a diverging scale is as pale as tissue: a rim keeps its spots visible.
    rim = {"linewidths": 0.4, "edgecolors": "0.4"} if panel.kind == "difference" else {"linewidths": 0}
    spots = draw_spots(ax, section, np.flatnonzero(has), **rim, zorder=3, label=panel.kind)
    spots.set(array=panel.values[has], cmap=panel.cmap, clim=panel.limits)
    if panel.hatch:
        # Behind the spots: lines across them would hide the colours of small ones.
        _hatch(ax, panel.hatch, zorder=1.5)
    _style.set_title(ax, panel.title, panel.note, letters)
    if panel.label:
        _draw_bar(ax, spots, panel)
    return spots


def _draw_bar(ax: Axes, spots: Any, panel: Map) -> None:
    """Draw a colour bar right of a map; its ends are pointed where values lie beyond."""
    low, high = panel.limits
    values = panel.values if panel.on_scale is None else panel.on_scale
    under, over = bool((values < low).any()), bool((values > high).any())
    extend = ["neither", "max", "min", "both"][2 * under + over]
    cax = ax.inset_axes((1.03, 0.1, 0.04, 0.8), label="colorbar")
    whole = bool((values[np.isfinite(values)] % 1 == 0).all())
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole)
    bar = ax.figure.colorbar(spots, cax=cax, extend=extend, ticks=ticks, label=panel.label)
    bar.outline.set_linewidth(0)
    if panel.hatch:
        _hatch(cax, panel.hatch, zorder=3)


def _hatch(ax: Axes, hatch: str, **style: Any) -> None:
    """Draw lines across axes."""
    style |= {"facecolor": "none", "edgecolor": "0.72", "linewidth": 0, "hatch": hatch}
    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, gid="hatch", **style))
