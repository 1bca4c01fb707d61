"""The panels of `rg.pl.retrieval`."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.pl import _style
from ragst_sd.pl._section import draw_image, extent_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from ragst_sd.image.frames import FieldOfView
    from ragst_sd.pl._section import Section

_OVERVIEW_PX = 700
_MOSAIC = 3
_UNTRUSTED = "0.6"


@dataclass(frozen=True)
class Evidence:
    """One predicted value, taken apart."""

    shown: pd.DataFrame
    """Cited rows that get a picture, as `rg.get.explain` lists them."""
    others: pd.DataFrame
    """Cited rows that are lumped together."""
    correction: float
    """What brings the sections of all cited rows to the mean of the reference; 0 where they were not centred."""
    adjustment: float
    total: float
    distrust: str
    """Words that the gene is not to be trusted; empty if nothing is known against it."""

    @property
    def n_columns(self) -> int:
        """One per step, and one for the prediction."""
        return len(self.steps) + 1

    @property
    def steps(self) -> list[tuple[str, float, str]]:
        """Label, contribution and colour of each step from zero to the prediction; rows bring weight times value."""
        values = enumerate(_weighted_values(self.shown), start=1)
        steps = [(f"{rank}", float(value), _style.EVIDENCE) for rank, value in values]
        if len(self.others):
            label = f"{len(self.others)} more" if len(self.shown) else f"{len(self.others)} rows"
            steps.append((label, float(_weighted_values(self.others).sum()), _style.OTHERS))
        if self.correction:
            steps.append(("sections", self.correction, _style.ADJUSTMENT))
        return [*steps, ("adjustment", self.adjustment, _style.ADJUSTMENT)]

    @property
    def levels(self) -> np.ndarray:
        """What the steps have added up to, from zero to the prediction."""
        return np.cumsum([0.0, *(value for _, value, _ in self.steps)])


def _weighted_values(rows: pd.DataFrame) -> pd.Series:
    """Weight times measured value; 0 for a row that did not measure the gene."""
    return (rows["weight"] * rows["value"]).fillna(0.0)


def _edge_px(field: FieldOfView) -> float:
    return field.window_px * field.downsample


def draw_overview(ax: Axes, section: Section, spot: int, fields: list[FieldOfView], *, beside: bool) -> None:
    """Draw the section with the place of a spot: solid its tile, broken the wider fields of view."""
    from matplotlib.patches import Rectangle

    box = extent_of(section, _edge_px(fields[0]) / 2, on_image=True)
    draw_image(ax, section.pyramid, box, edge_px=_OVERVIEW_PX)
    for field in fields:
        edge = _edge_px(field)
        width, dashes = (2.0, "solid") if field is fields[0] else (1.0, (0, (3, 2)))
        mark = Rectangle(section.centers[spot] - edge / 2, edge, edge, fill=False, edgecolor=_style.QUERY, zorder=4)
        mark.set(linewidth=width, linestyle=dashes, path_effects=_style.halo(2 * width))
        ax.add_patch(mark)
    # Away from the lines that lead to the tile, which start at the spot and go to the right or down.
    in_left_half, in_lower_half = section.centers[spot] * [1, -1] < np.array([box[0] + box[1], -box[2] - box[3]]) / 2
    right, upper = (False, in_lower_half) if beside else (in_left_half, True)
    _style.scale_bar(ax, section.mpp, right=bool(right), upper=bool(upper))
    _style.frame(ax)


def draw_tile(ax: Axes, section: Section, center: np.ndarray, field: FieldOfView, pixels: np.ndarray) -> None:
    half = _edge_px(field) / 2
    x, y = center
    ax.imshow(pixels, extent=(x - half, x + half, y + half, y - half), interpolation="bicubic")
    _style.scale_bar(ax, section.mpp)
    _style.frame(ax, _style.QUERY, 2.5)


def connect(overview: Axes, tile: Axes, center: np.ndarray, field: FieldOfView, *, beside: bool) -> None:
    """Lines from the place of the tile to the tile, which lies beside or below the section."""
    from matplotlib.patches import ConnectionPatch

    half = _edge_px(field) / 2
    for side in (-1, 1):
        start = (half, side * half) if beside else (side * half, half)
        end = (0.0, 0.5 - side / 2) if beside else (0.5 + side / 2, 1.0)
        line = ConnectionPatch(
            tuple(center + start), end, overview.transData, tile.transAxes, color=_style.QUERY, alpha=0.8, zorder=6
        )
        line.set_in_layout(False)
        overview.add_artist(line).set_clip_on(False)


def draw_neighbors(strip: Axes, evidence: Evidence, reference: AnnData, gene: str, n_columns: int) -> list[Axes]:
    """Draw the cited spots, each with its donor, sample, weight and measured value; those shown one by one."""
    pictures = reference.obsm[_keys.THUMBNAIL]
    rows = reference.obs_names.get_indexer(evidence.shown["reference"])
    decimals = _style.decimals_for(evidence.shown["value"])
    axes = []
    for column, (place, row) in enumerate(zip(rows, evidence.shown.itertuples(), strict=True)):
        donor, sample = _style.shorten(str(row.donor), 11), _style.shorten(str(row.sample), 12)
        value = _style.number(row.value, decimals) if np.isfinite(row.value) else "not measured"
        words = [f"weight {row.weight:.1%}", f"{_style.shorten(gene, 8)} {value}"]
        ax = _thumbnail(strip, "neighbor", column, n_columns, [donor] if sample == donor else [donor, sample], words)
        ax.imshow(np.asarray(pictures[int(place)]), interpolation="lanczos")
        _style.frame(ax, _style.EVIDENCE, 1.2)
        axes.append(ax)
    if len(evidence.others):
        share = float(evidence.others["weight"].sum())
        words = [f"weight {share:.1%}"]
        if share > 0:
            words.append(f"mean {_style.number(_weighted_values(evidence.others).sum() / share, decimals)}")
        ax = _thumbnail(strip, "others", len(axes), n_columns, [f"and {len(evidence.others)} more"], words)
        tiles = [np.asarray(pictures[int(i)]) for i in reference.obs_names.get_indexer(evidence.others["reference"])]
        ax.imshow(_mosaic(tiles[: _MOSAIC**2]), interpolation="antialiased")
        ax.set_axis_off()
    return axes


def draw_query(strip: Axes, evidence: Evidence, pixels: np.ndarray, n_columns: int) -> None:
    ax = _thumbnail(strip, "query", evidence.n_columns - 1, n_columns, ["this spot"], [])
    ax.imshow(pixels, interpolation="antialiased")
    _style.frame(ax, _style.QUERY, 2.0)


def _thumbnail(strip: Axes, label: str, column: int, n_columns: int, names: list[str], numbers: list[str]) -> Axes:
    """Axes above a bar, with names above and numbers below."""
    ax = strip.inset_axes(((column + 0.06) / n_columns, 0, 0.88 / n_columns, 1), label=label)
    style: dict[str, Any] = {"ha": "center", "fontsize": "small"}
    line = 1.15 * _style.em() * (len(names) > 1)
    _style.beside(ax, names[0], (0.5, 1), (0, 3 + line), ha="center", fontweight="bold")
    for text, place, shift, va in ((names[1:], 1, 3, "baseline"), (numbers, 0, -3, "top")):
        color = _style.MUTED if place else "black"
        _style.beside(ax, "\n".join(text), (0.5, place), (0, shift), va=va, color=color, **style)
    return ax


def _mosaic(tiles: list[np.ndarray]) -> np.ndarray:
    """A few of the cited spots that have no column of their own; RGBA."""
    edge, across = tiles[0].shape[0], int(np.ceil(np.sqrt(len(tiles))))
    canvas = np.zeros((across * (edge + 2) - 2, across * (edge + 2) - 2, 4), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (edge + 2) * (i // across), (edge + 2) * (i % across)
        canvas[y : y + edge, x : x + edge, :3], canvas[y : y + edge, x : x + edge, 3] = tile, 255
    return canvas


def shared_limits(evidence: Sequence[Evidence], *, low_axis: bool) -> tuple[float, float]:
    """Limits of an axis that shows all steps of all spots, with room for the numbers above the bars."""
    levels = np.concatenate([part.levels for part in evidence])
    low, high = float(levels.min()), float(levels.max())
    room = (high - low) or 1.0
    return low - (0.04 * room if low < 0 else 0.0), high + room * (0.27 if low_axis else 0.1)


def draw_bars(
    ax: Axes,
    evidence: Evidence,
    unit: str,
    decimals: int,
    limits: tuple[float, float],
    n_columns: int,
    *,
    low_axis: bool,
) -> None:
    """Draw the steps from zero to the prediction."""
    from matplotlib.ticker import MaxNLocator

    n, values, ends = evidence.n_columns, np.diff(evidence.levels), evidence.levels[1:]
    starts = evidence.levels[:-1]
    colors = [_UNTRUSTED] * n if evidence.distrust else [*(color for *_, color in evidence.steps), _style.QUERY]
    ax.bar(np.arange(n), [*values, evidence.total], bottom=[*starts, 0.0], width=0.72, color=colors, zorder=2)
    ax.hlines(ends, np.arange(n - 1) + 0.36, np.arange(n - 1) + 0.64, color=_style.MUTED, lw=0.8, zorder=1)
    ax.axhline(0, color=_style.MUTED, lw=0.8, zorder=1)
    for column, top in enumerate(np.maximum(starts, ends)):
        text = _style.number(values[column], decimals, sign=True)
        _style.beside(ax, text, (column, top), (0, 2), "data", ha="center", fontsize="small")
    text = _style.number(evidence.total, decimals)
    _style.beside(ax, text, (n - 1, max(evidence.total, 0.0)), (0, 2), "data", ha="center", fontweight="bold")
    ax.set(xlim=(-0.5, n_columns - 0.5), ylim=limits, label="contributions")
    ax.set_xticks(range(n), [*(label for label, *_ in evidence.steps), "predicted"])
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("\n".join(["contribution", *(wrap(unit, 14) if low_axis else [unit])]))
    ax.yaxis.set_major_locator(MaxNLocator(4 if low_axis else 5, steps=[1, 2, 5, 10]))
    ax.spines["bottom"].set_visible(False)
