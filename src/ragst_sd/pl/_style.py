"""Colours, letters and scale bars that all pictures share; nothing here touches matplotlib's global settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# Okabe and Ito's palette, which stays apart under every common form of colour blindness.
EVIDENCE = "#0072B2"
OTHERS = "#56B4E9"
ADJUSTMENT = "#D55E00"
QUERY = "#009E73"
BAND = "#CDE8F8"
MUTED = "#767676"
NO_VALUE = "#8C8C8C"

# For groups and lines without a meaning of their own.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
OTHER_GROUPS = "#BBBBBB"

SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"
WIDTH = "plasma"
SHARE = "Blues"

_NICE = (1.0, 2.0, 5.0)
_BAR_SHARE = 0.3
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


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number for a picture: a true minus sign, and no minus before zero."""
    rounded = round(float(value), decimals) + 0.0
    text = f"{rounded:+.{decimals}f}" if sign and rounded else f"{rounded:.{decimals}f}"
    return text.replace("-", MINUS)


def halo(width: float = 2.5, color: str = "white") -> list[Any]:
    """A light rim that keeps lines and letters legible on tissue."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground=color)]


def bar_length(width_um: float) -> float:
    """Length in microns of a scale bar for a picture that is `width_um` wide: 1, 2 or 5 times a power of ten."""
    longest = _BAR_SHARE * width_um
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in _NICE if step * power <= longest))


def scale_bar(ax: Axes, mpp: float | None, fontsize: float, *, right: bool = False, upper: bool = False) -> None:
    """Draw a scale bar in a corner of axes in image pixels; nothing if the resolution is unknown."""
    from matplotlib.patches import Rectangle

    if mpp is None:
        return
    (x0, x1), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    width, height = x1 - x0, top - bottom
    length = bar_length(abs(width) * mpp)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    low, thick = bottom + (0.87 if upper else 0.05) * height, np.sign(height) * 0.014 * abs(width)
    left = x1 - 0.05 * width - length / mpp if right else x0 + 0.05 * width
    bar = Rectangle((left, low), length / mpp, thick, facecolor="black", edgecolor="none", zorder=5)
    bar.set_path_effects(halo(2.0))
    bar.set_gid("scale bar")
    ax.add_patch(bar)
    ax.text(
        left + (length / mpp if right else 0), low + 1.8 * thick, label,
        ha="right" if right else "left", va="bottom", fontsize=fontsize, color="black", zorder=5, path_effects=halo(),
    )  # fmt: skip


def frame(ax: Axes, color: str = "0.6", width: float = 0.8) -> None:
    """Axes that show a picture: no ticks, a thin rim."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, edgecolor=color, linewidth=width)
