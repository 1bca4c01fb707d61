"""The panels of `rg.pl.retrieval`, laid out in inches of one design."""

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
    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._section import Section

_EDGE = 0.15
_COLUMN, _THUMBNAIL = 0.92, 0.82
_OVERVIEW_PX = 700
_MOSAIC = 3
_UNTRUSTED = "0.6"


@dataclass(frozen=True)
class Layout:
    """Where the panels of one spot lie, in inches of the design."""

    height: float
    title: tuple[float, float]
    """Baselines of the title and of the words below it."""
    overview: tuple[float, float, float]
    """Top, and the width and height that the section has to fit."""
    tile: tuple[float, float, float]
    """Left, top and edge."""
    beside: bool
    """Whether the tile lies right of the section, not below."""
    left: float
    """Where the columns of cited spots start."""
    thumbnails: float
    bars: tuple[float, float]
    """Top and height."""


SINGLE = Layout(
    height=6.0,
    title=(0.36, 0.55),
    overview=(0.88, 2.85, 2.45),
    tile=(0.525, 3.78, 2.1),
    beside=False,
    left=3.75,
    thumbnails=1.0,
    bars=(2.4, 3.1),
)
# One of several spots below each other.
ROW = Layout(
    height=3.75,
    title=(0.36, 0.53),
    overview=(0.88, 2.5, 2.35),
    tile=(2.8, 0.88, 1.5),
    beside=True,
    left=5.15,
    thumbnails=0.86,
    bars=(2.14, 1.15),
)


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
        steps = [("", float(value), _style.EVIDENCE) for value in weighted_values(self.shown)]
        if len(self.others):
            label = f"{len(self.others)} more" if len(self.shown) else f"{len(self.others)} rows"
            steps.append((label, float(weighted_values(self.others).sum()), _style.OTHERS))
        if self.correction:
            steps.append(("sections", self.correction, _style.ADJUSTMENT))
        return [*steps, ("adjustment", self.adjustment, _style.ADJUSTMENT)]

    @property
    def levels(self) -> np.ndarray:
        """What the steps have added up to, from zero to the prediction."""
        return np.cumsum([0.0, *(value for _, value, _ in self.steps)])


def weighted_values(rows: pd.DataFrame) -> pd.Series:
    """Weight times measured value; 0 for a row that did not measure the gene."""
    return (rows["weight"] * rows["value"]).fillna(0.0)


def design_size(evidence: Sequence[Evidence], layout: Layout) -> tuple[float, float]:
    """Width and height of the picture in inches."""
    return layout.left + max(one.n_columns for one in evidence) * _COLUMN + _EDGE, layout.height * len(evidence)


def _edge_px(field: FieldOfView) -> float:
    return field.window_px * field.downsample


def write_title(
    stage: Stage,
    layout: Layout,
    table: AnnData,
    header: dict[str, Any],
    spot: int,
    gene: str,
    evidence: Evidence,
    decimals: int,
) -> None:
    stage.text(
        _EDGE, layout.title[0], f"{gene} predicted {_style.number(evidence.total, decimals)}",
        size=14, fontweight="bold", ha="left", va="baseline", color=_style.MUTED if evidence.distrust else "black",
    )  # fmt: skip
    if evidence.distrust:
        stage.text(_EDGE, layout.title[1], evidence.distrust, size=8.5, ha="left", va="baseline", color=_style.MUTED)
    obs = table.obs.iloc[spot]
    n_rows = len(evidence.shown) + len(evidence.others)
    donors = int(obs[_keys.N_DONORS])
    facts = [
        f"{header['method']}: {n_rows} measured spots of {donors} {'donor' if donors == 1 else 'donors'}",
        f"effective number {float(obs[_keys.EFFECTIVE_N]):.1f}",
    ]
    if bool(obs[_keys.OUT_OF_REFERENCE]):
        facts.append("unlike any tissue of the reference")
    stage.text(
        layout.left, layout.title[0], "  ·  ".join(facts), size=10, ha="left", va="baseline",
        color=_style.ADJUSTMENT if len(facts) > 2 else _style.MUTED,
    )  # fmt: skip


def draw_overview(
    stage: Stage, layout: Layout, section: Section, spot: int, fields: list[FieldOfView], title: str
) -> Axes:
    from matplotlib.patches import Rectangle

    box = extent_of(section, _edge_px(fields[0]) / 2, on_image=True)
    across, down = box[1] - box[0], box[3] - box[2]
    top, width, height = layout.overview
    scale = min(width / across, height / down)
    ax = stage.axes(_EDGE, top, across * scale, down * scale, "section")
    draw_image(ax, section.pyramid, box, edge_px=_OVERVIEW_PX)
    for position, field in enumerate(fields):
        edge = _edge_px(field)
        x, y = section.centers[spot] - edge / 2
        wide = position > 0
        mark = Rectangle(
            (x, y), edge, edge, fill=False, edgecolor=_style.QUERY, zorder=4,
            linewidth=stage.points(1.0 if wide else 2.0), linestyle=(0, (3, 2)) if wide else "solid",
        )  # fmt: skip
        mark.set_path_effects(_style.halo(stage.points(2.0 if wide else 4.0)))
        ax.add_patch(mark)
    # Away from the lines that lead to the tile, which start at the spot and go down or to the right.
    in_left_half = bool(section.centers[spot, 0] < (box[0] + box[1]) / 2)
    in_lower_half = bool(section.centers[spot, 1] > (box[2] + box[3]) / 2)
    right, upper = (False, in_lower_half) if layout.beside else (in_left_half, True)
    _style.scale_bar(ax, section.mpp, stage.points(9), right=right, upper=upper)
    _style.frame(ax)
    ax.set_title(title, fontsize=stage.points(10), loc="left", pad=stage.points(4))
    return ax


def draw_tile(
    stage: Stage, layout: Layout, section: Section, spot: int, field: FieldOfView, pixels: np.ndarray
) -> Axes:
    left, top, edge = layout.tile
    ax = stage.axes(left, top, edge, edge, "tile")
    half = _edge_px(field) / 2
    x, y = section.centers[spot]
    ax.imshow(pixels, extent=(x - half, x + half, y + half, y - half), interpolation="bicubic")
    _style.scale_bar(ax, section.mpp, stage.points(9))
    _style.frame(ax, _style.QUERY, stage.points(2.5))
    return ax


def connect(stage: Stage, layout: Layout, overview: Axes, tile: Axes, center: np.ndarray, field: FieldOfView) -> None:
    """Lines from the place of the tile to the tile."""
    from matplotlib.patches import ConnectionPatch

    half = _edge_px(field) / 2
    for side in (-1, 1):
        start = (
            (center[0] + half, center[1] + side * half)
            if layout.beside
            else (center[0] + side * half, center[1] + half)
        )
        end = (0.0, 0.5 - side / 2) if layout.beside else (0.5 + side / 2, 1.0)
        line = ConnectionPatch(
            start, end, overview.transData, tile.transAxes,
            color=_style.QUERY, linewidth=stage.points(1.0), alpha=0.8, zorder=6,
        )  # fmt: skip
        line.set_clip_on(False)
        stage.place.add_artist(line)


def _column_left(layout: Layout, column: int) -> float:
    return layout.left + column * _COLUMN + (_COLUMN - _THUMBNAIL) / 2


def draw_neighbors(stage: Stage, layout: Layout, evidence: Evidence, reference: AnnData, gene: str) -> list[Axes]:
    pictures = reference.obsm[_keys.THUMBNAIL]
    places = reference.obs_names.get_indexer(evidence.shown["reference"])
    decimals = _style.decimals_for(evidence.shown["value"])
    axes = []
    for column, (place, row) in enumerate(zip(places, evidence.shown.itertuples(), strict=True)):
        ax = stage.axes(_column_left(layout, column), layout.thumbnails, _THUMBNAIL, _THUMBNAIL, "neighbor")
        ax.imshow(np.asarray(pictures[int(place)]), interpolation="lanczos")
        _style.frame(ax, _style.EVIDENCE, stage.points(1.2))
        donor, sample = _style.shorten(str(row.donor), 11), _style.shorten(str(row.sample), 12)
        middle = _column_left(layout, column) + _THUMBNAIL / 2
        above = layout.thumbnails - (0.05 if sample == donor else 0.2)
        stage.text(middle, above, donor, size=9, fontweight="bold", ha="center", va="bottom")
        if sample != donor:
            stage.text(middle, layout.thumbnails - 0.05, sample, size=8, ha="center", va="bottom", color=_style.MUTED)
        below = layout.thumbnails + _THUMBNAIL + 0.05
        stage.text(middle, below, f"weight {row.weight:.1%}", size=8, ha="center", va="top")
        value = _style.number(row.value, decimals) if np.isfinite(row.value) else "not measured"
        stage.text(middle, below + 0.16, f"{_style.shorten(gene, 8)} {value}", size=8, ha="center", va="top")
        axes.append(ax)
    if len(evidence.others):
        places = reference.obs_names.get_indexer(evidence.others["reference"])
        _draw_mosaic(stage, layout, len(axes), pictures, places, evidence)
    return axes


def _draw_mosaic(
    stage: Stage, layout: Layout, column: int, pictures: Any, places: np.ndarray, evidence: Evidence
) -> None:
    """A few of the cited spots that have no column of their own."""
    tiles = [np.asarray(pictures[int(place)]) for place in places[: _MOSAIC**2]]
    edge, across = tiles[0].shape[0], int(np.ceil(np.sqrt(len(tiles))))
    canvas = np.zeros((across * (edge + 2) - 2, across * (edge + 2) - 2, 4), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (edge + 2) * (i // across), (edge + 2) * (i % across)
        canvas[y : y + edge, x : x + edge, :3], canvas[y : y + edge, x : x + edge, 3] = tile, 255
    ax = stage.axes(_column_left(layout, column), layout.thumbnails, _THUMBNAIL, _THUMBNAIL, "others")
    ax.imshow(canvas, interpolation="antialiased")
    ax.set_axis_off()
    middle, below = _column_left(layout, column) + _THUMBNAIL / 2, layout.thumbnails + _THUMBNAIL + 0.05
    more = f"and {len(evidence.others)} more"
    stage.text(middle, layout.thumbnails - 0.05, more, size=9, ha="center", va="bottom", fontweight="bold")
    share, contribution = evidence.others["weight"].sum(), weighted_values(evidence.others).sum()
    stage.text(middle, below, f"weight {share:.1%}", size=8, ha="center", va="top")
    if share > 0:
        mean = _style.number(contribution / share, _style.decimals_for(evidence.shown["value"]))
        stage.text(middle, below + 0.16, f"mean {mean}", size=8, ha="center", va="top")


def draw_query_column(stage: Stage, layout: Layout, evidence: Evidence, pixels: np.ndarray) -> None:
    column = evidence.n_columns - 1
    ax = stage.axes(_column_left(layout, column), layout.thumbnails, _THUMBNAIL, _THUMBNAIL, "query")
    ax.imshow(pixels, interpolation="antialiased")
    _style.frame(ax, _style.QUERY, stage.points(2.0))
    middle = _column_left(layout, column) + _THUMBNAIL / 2
    stage.text(middle, layout.thumbnails - 0.05, "this spot", size=9, fontweight="bold", ha="center", va="bottom")


@dataclass(frozen=True)
class Scale:
    """What all spots of one picture share."""

    limits: tuple[float, float]
    decimals: int


def shared_scale(evidence: Sequence[Evidence], layout: Layout) -> Scale:
    """A scale that shows all steps of all spots, with room for the numbers above the bars."""
    levels = [one.levels for one in evidence]
    low, high = float(min(map(np.min, levels))), float(max(map(np.max, levels)))
    room = (high - low) or 1.0
    values = np.concatenate([*map(np.diff, levels), [one.total for one in evidence]])
    return Scale(
        (low - (0.04 * room if low < 0 else 0.0), high + room * 0.31 / layout.bars[1]), _style.decimals_for(values)
    )


def draw_bars(stage: Stage, layout: Layout, evidence: Evidence, unit: str, scale: Scale) -> Axes:
    """Draw the steps from zero to the prediction."""
    from matplotlib.ticker import MaxNLocator

    ax = stage.axes(layout.left, layout.bars[0], evidence.n_columns * _COLUMN, layout.bars[1], "contributions")
    steps, n_columns = evidence.steps, evidence.n_columns
    values, starts, ends = np.diff(evidence.levels), evidence.levels[:-1], evidence.levels[1:]
    colors = [*(color for *_, color in steps), _style.QUERY]
    if evidence.distrust:
        colors = [_UNTRUSTED] * n_columns
    ax.bar(np.arange(n_columns), [*values, evidence.total], bottom=[*starts, 0.0], width=0.72, color=colors, zorder=2)
    for column, end in enumerate(ends):
        ax.plot([column + 0.36, column + 0.64], [end, end], color=_style.MUTED, linewidth=stage.points(0.8), zorder=1)
    tops = [*np.maximum(starts, ends), max(evidence.total, 0.0)]
    for column, top in enumerate(tops):
        last = column == n_columns - 1
        text = _style.number(evidence.total if last else values[column], scale.decimals, sign=not last)
        ax.annotate(
            text, (column, top), (0, stage.points(2)), textcoords="offset points", ha="center", va="bottom",
            fontsize=stage.points(10 if last else 8.5), fontweight="bold" if last else "normal",
        )  # fmt: skip
    ax.axhline(0, color=_style.MUTED, linewidth=stage.points(0.8), zorder=1)
    ax.set(xlim=(-0.5, n_columns - 0.5), ylim=scale.limits)
    ranks = [f"{i + 1}" for i in range(len(evidence.shown))]
    ax.set_xticks(range(n_columns), [*ranks, *(label for label, *_ in steps[len(ranks) :]), "predicted"])
    # A low axis has no room for a unit in one line.
    written = [unit] if layout.bars[1] > 2 else wrap(unit, 14)
    ax.set_ylabel("\n".join(["contribution", *written]), fontsize=stage.points(9 if len(written) == 1 else 8))
    ax.yaxis.set_major_locator(MaxNLocator(5 if layout.bars[1] > 2 else 4, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize=stage.points(9), length=0, pad=stage.points(12), axis="x")
    for label in ax.get_xticklabels():
        label.set_verticalalignment("baseline")
    ax.tick_params(labelsize=stage.points(8), axis="y")
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax
