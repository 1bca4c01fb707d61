"""Maps of one value per spot on the section, and their colour bars."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._validate import require_type
from ragst_sd.pl import _style
from ragst_sd.pl._section import corner_is_free, draw_image, draw_spots, extent_of, spot_reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._section import Section

# Inches of the design.
PANEL, TITLE, NOTE, MARGIN, BAR, BAR_ROOM, BETWEEN = 3.2, 0.38, 0.17, 0.12, 0.12, 0.95, 0.15
_LETTER = 0.066
_IMAGE_PX = 900
# A few extreme spots would otherwise take the whole colour scale.
_TAILS = (0.01, 0.99)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Map:
    """One map."""

    kind: str
    title: str
    values: np.ndarray
    limits: tuple[float, float]
    cmap: str | Colormap
    label: str
    """Of the colour bar; empty if the next map shares it."""
    note: str = ""
    """Small words below the title."""
    hatch: str | None = None


def require_fade(image_fade: float) -> None:
    """Raise a `ValueError` unless a picture can be mixed with that much white."""
    if not 0 <= image_fade <= 1:
        msg = f"`image_fade` is {image_fade!r}; it must lie between 0 (the picture as it is) and 1 (white)."
        raise ValueError(msg)


def gene_list(gene: str | Sequence[str]) -> list[str]:
    """Names of genes, each once."""
    genes = [gene] if isinstance(gene, str) else list(dict.fromkeys(gene))
    for one in genes:
        require_type(one, str, "gene", "Give a name or a list of names.")
    if not genes:
        msg = "`gene` is empty; name at least one gene."
        raise ValueError(msg)
    return genes


def map_size(section: Section, edge: float = PANEL) -> tuple[Box, tuple[float, float]]:
    """The part of the section to draw, and the width and height in inches of a map whose longer edge is given."""
    box = extent_of(section, spot_reach(section))
    shrink = edge / max(box[1] - box[0], box[3] - box[2])
    return box, ((box[1] - box[0]) * shrink, (box[3] - box[2]) * shrink)


def limits_of(values: np.ndarray, vmin: float | None = None, vmax: float | None = None) -> tuple[float, float]:
    """Limits of a colour scale that leaves out one value in a hundred at either end.

    Raises
    ------
    ValueError
        If the limits given leave no scale.
    """
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, _TAILS) if len(finite) else (0.0, 1.0)
    if low == high and len(finite):
        low, high = finite.min(), finite.max()
    low, high = float(low if vmin is None else vmin), float(high if vmax is None else vmax)
    if low > high:
        msg = f"The colour scale would run from {low:.4g} to {high:.4g}. Give `vmin` below `vmax`."
        raise ValueError(msg)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def wrapped(note: str, width: float) -> list[str]:
    """Small words in lines that fit a width in inches."""
    return wrap(note, max(16, int(width / _LETTER)))


def draw_map(
    stage: Stage, section: Section, panel: Map, box: Box, place: tuple[float, float, float, float], *, fade: float,
    scale_bar: bool, note_width: float | None = None,
) -> tuple[Axes, Any]:  # fmt: skip
    """Draw a map at `place` (left, top, width, height) of the design; its axes and its coloured spots."""
    ax = stage.axes(*place, panel.kind)
    draw_image(ax, section.pyramid, box, edge_px=_IMAGE_PX, fade=fade)
    has = np.isfinite(panel.values)
    if not has.all():
        draw_spots(
            ax, section, np.flatnonzero(~has), facecolors="none", edgecolors=_style.NO_VALUE,
            linewidths=stage.points(0.9), zorder=2, label="no value",
        )  # fmt: skip
    spots = draw_spots(ax, section, np.flatnonzero(has), cmap=panel.cmap, linewidths=0, zorder=3, label=panel.kind)
    spots.set_array(panel.values[has])
    spots.set_clim(*panel.limits)
    if panel.hatch:
        # Behind the spots: lines across them would hide the colours of small ones.
        ax.add_patch(_hatched((box[0], box[2]), box[1] - box[0], box[3] - box[2], panel.hatch, zorder=1.5))
    lines = wrapped(panel.note, place[2] if note_width is None else note_width)
    pad = stage.points(4) + len(lines) * NOTE * 72 * stage.scale
    ax.set_title(panel.title, fontsize=stage.points(11), loc="left", pad=pad)
    if lines:
        ax.annotate(
            "\n".join(lines), (0, 1), xycoords="axes fraction", xytext=(0, stage.points(3.5)),
            textcoords="offset points", ha="left", va="bottom", fontsize=stage.points(9), color=_style.MUTED,
            annotation_clip=False, gid="note",
        )  # fmt: skip
    if scale_bar:
        _style.scale_bar(ax, section.mpp, stage.points(9), right=corner_is_free(section, box))
    _style.frame(ax)
    return ax, spots


def draw_bar(
    stage: Stage,
    spots: Any,
    label: str,
    limits: tuple[float, float],
    values: np.ndarray,
    left: float,
    top: float,
    height: float,
    *,
    hatch: str | None = None,
) -> None:
    """Draw the colour bar of a map; its ends are pointed where values lie beyond."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits
    under, over = bool((values < low).any()), bool((values > high).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[under, over]
    length = 0.8 * height
    cax = stage.axes(left, top + (height - length) / 2, BAR, length, "colorbar")
    whole = bool((values[np.isfinite(values)] % 1 == 0).all())
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole)
    bar = stage.figure.colorbar(spots, cax=cax, extend=extend, ticks=ticks)
    bar.outline.set_linewidth(0)
    bar.ax.tick_params(labelsize=stage.points(8.5))
    if hatch:
        cax.add_patch(_hatched((0, 0), 1, 1, hatch, transform=cax.transAxes, zorder=3))
    bar.set_label(label, fontsize=stage.points(9))


def _hatched(corner: tuple[float, float], width: float, height: float, hatch: str, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, width, height, facecolor="none", edgecolor="0.72", linewidth=0, hatch=hatch, gid="hatch", **style
    )
