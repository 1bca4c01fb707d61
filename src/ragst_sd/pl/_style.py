"""Colours, letters, columns of text and scale bars of all pictures; matplotlib's global settings are not touched."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

# Okabe and Ito's palette, which stays apart under every common form of colour blindness.
EVIDENCE = "#0072B2"
OTHERS = "#56B4E9"
ADJUSTMENT = "#D55E00"
QUERY = "#009E73"
BAND = "#CDE8F8"
MUTED = "#767676"
NO_VALUE = "#8C8C8C"
# Bars of a gene that is not to be trusted.
UNTRUSTED = "0.6"

# For groups and lines without a meaning of their own.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
OTHER_GROUPS = "#BBBBBB"

SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"
WIDTH = "plasma"
SHARE = "Blues"
# Of values of which neither end is good or bad.
NEUTRAL = "cividis"

MINUS = "\N{MINUS SIGN}"


def shorten(text: str, longest: int) -> str:
    """Text of at most `longest` letters; the middle is left out, since names of samples differ at either end."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - tail :]}"


def decimals_for(values: Sequence[float] | np.ndarray) -> int:
    """Decimals that show the largest of `values` with about three digits; two at least, five at most."""
    finite = np.abs(np.asarray(values, dtype=float))
    largest = finite[np.isfinite(finite)].max(initial=0.0)
    return int(np.clip(2 - np.floor(np.log10(largest)), 2, 5)) if largest > 0 else 2


def number(value: float, decimals: int, *, sign: bool = False, missing: str = "n/a") -> str:
    """A number for a picture: a true minus sign, and no minus before zero."""
    if not np.isfinite(value):
        return missing
    rounded = round(float(value), decimals) + 0.0
    text = f"{rounded:+.{decimals}f}" if sign and rounded else f"{rounded:.{decimals}f}"
    return text.replace("-", MINUS)


def halo(width: float) -> list[Any]:
    """A light rim that keeps lines and letters legible on tissue."""
    return [withStroke(linewidth=width, foreground="white")]


def scale_bar(ax: Axes, mpp: float | None, loc: str = "lower left") -> None:
    """Draw a scale bar in a corner of axes in image pixels; nothing if the resolution is unknown."""
    if mpp is None:
        return
    left, right = ax.get_xlim()
    longest = 0.3 * (right - left) * mpp
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    small, thick = FontProperties(size="small"), 0.014 * (right - left)
    bar = AnchoredSizeBar(
        ax.transData, length / mpp, label, loc, size_vertical=thick, label_top=True, borderpad=0.5, fontproperties=small
    )
    bar.patch.set(alpha=0.7, linewidth=0)
    bar.set_gid("scale bar")
    ax.add_artist(bar)


def frame(ax: Axes, color: str = "0.6", width: float = 0.8) -> None:
    """Give axes that show a picture a thin rim and no ticks."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, edgecolor=color, linewidth=width)


def em() -> float:
    """Size in points of the letters of the picture that is drawn."""
    return float(mpl.rcParams["font.size"])


def set_title(ax: Axes, title: str, note: str = "", letters: int = 80) -> None:
    """Write a title above axes, and below it a note in small letters, wrapped at so many of them."""
    lines = [line for part in note.split("\n") for line in wrap(part, letters)]
    line_height = 1.15 * em()
    ax.set_title(title, pad=4 + line_height * len(lines))
    if lines:
        beside(ax, "\n".join(lines), (0, 1), (0, 3), va="bottom", fontsize="small", color=MUTED, gid="note")


def beside(
    ax: Axes,
    text: str,
    point: tuple[float, float],
    shift: tuple[float, float],
    coords: Any = "axes fraction",
    **style: Any,
) -> Any:
    """Write text at a point of axes (in `coords`), shifted by so many points, 72 of which make an inch."""
    return ax.annotate(text, point, shift, xycoords=coords, textcoords="offset points", **style)


def write_columns(ax: Axes, columns: dict[str, list[str]], *, before: bool = False, bold: int | None = None) -> float:
    """Write columns of text right of the rows 0, 1, ... of axes, or left of them with the first column flush left.

    The row `bold` is written in bold. Each text has the title of its column as `gid`.

    Returns
    -------
    The width of all columns in points.
    """
    widths = np.zeros(len(columns))
    for j, (title, texts) in enumerate(columns.items()):
        # What stands flush left may run over what follows: nothing else is as high as its title.
        lines = "\n".join(texts if before and j == 0 else [title, *texts]).split("\n")
        widths[j] = em() * (0.6 * max(map(len, lines)) + 1.0)
    reach = float(widths.sum())
    edges = np.cumsum(widths) - (reach + 0.6 * em() if before else 0)
    for j, (title, texts) in enumerate(columns.items()):
        x, align = (-reach, "left") if before and j == 0 else (edges[j], "right")
        head = {"fontsize": "small", "color": MUTED, "va": "bottom", "ha": align}
        beside(ax, title, (float(not before), 1), (x, 0.4 * em()), **head)
        for i, text in enumerate(texts):
            style = {"ha": align, "va": "center", "fontweight": "bold" if i == bold else "normal"}
            place = (float(not before), i)
            beside(ax, text, place, (x, 0), ("axes fraction", "data"), gid=title.replace("\n", " "), **style)
    return reach


def percent(share: float, decimals: int = 0) -> str:
    """A share in percent."""
    return f"{100 * share:.{decimals}f} %"
