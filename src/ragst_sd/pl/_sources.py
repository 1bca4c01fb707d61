"""`rg.pl.sources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._elements import require_sdata
from ragst_sd._pitch import spot_pitch
from ragst_sd._results import predicted
from ragst_sd._validate import require_choice, require_positive
from ragst_sd.pl import _style
from ragst_sd.pl._figure import finish, open_stage
from ragst_sd.pl._maps import MARGIN, draw_bar, map_size, require_fade
from ragst_sd.pl._section import corner_is_free, draw_image, draw_spots, read_section, spot_reach

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._maps import Box
    from ragst_sd.pl._section import Section

_GROUPS = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, "license", "citation")
# Discs of neighbouring spots do not touch even where one group has all the weight.
_DISC = 0.9
_KEY = (0.25, 0.5, 1.0)
_IMAGE_PX = 900

# The design, in inches.
_MAP, _HEAD, _SMALL, _SMALL_HEAD, _PER_ROW = 3.9, 0.55, 1.75, 0.3, 4
_GAP, _BARS, _SHARE, _ROWS, _LINE = 0.35, 1.9, 0.55, 0.85, 0.3
_LETTER, _LONGEST_NAME = 0.088, 34


@dataclass(frozen=True)
class _Sources:
    """What each group gives to each spot."""

    names: list[str]
    shares: np.ndarray
    """(spots, groups) share of the weight, the lumped ones together; NaN for spots that cite nobody."""
    leader: np.ndarray
    """(spots,) group that gives most; one of those that were lumped counts by itself, with the last colour."""
    leads_by: np.ndarray
    """(spots,) share of that group."""
    n_rows: np.ndarray
    """Cited rows of each group."""
    colors: list[str]

    @property
    def total(self) -> np.ndarray:
        return np.nanmean(self.shares, axis=0)

    @property
    def has(self) -> np.ndarray:
        return np.isfinite(self.shares).all(axis=1)


def sources(
    sdata: SpatialData,
    *,
    group_by: str = "donor",
    prediction_key: str = "predicted",
    n_shown: int = 7,
    image_fade: float = 0.5,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, Any] | None:
    """Draw which donors, organs or sources feed which region of a prediction.

    On the section each spot is a disc in the colour of the group that most of its weight comes from; the area is the
    share of that group, so that spots fed by many groups alike are small. Beside it each group's share of all weight, and
    how many of its measured spots are cited. Below one map per group of its share in every spot, which needs no colours to
    be told apart. Works from the provenance in the table alone, without the reference.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    group_by
        `"donor"`, `"sample"`, `"tissue"`, `"technology"`, `"license"` or `"citation"`.
    prediction_key
        Name of the predicted table.
    n_shown
        Groups by falling weight before the others are lumped as "other", 7 at most. One group more is still shown: it
        takes the place of the others.
    image_fade
        How far the picture of the tissue is mixed with white, from 0 to 1.
    figsize, dpi
        Size of a new figure in inches, and its resolution; `dpi` also holds for `save`.
    ax
        Axes whose place the picture fills with axes of its own; a new figure is made if left out.
    show
        Show a new figure; by default if it is neither saved nor returned.
    save
        File to write.
    return_ax
        Return the axes.

    Returns
    -------
    `None`, or if `return_ax` a dictionary: `"section"` (Axes with the discs), `"weights"` (Axes with the bars) and
    `"groups"` (a dictionary from group to the Axes of its map; empty if there is one group only).

    Raises
    ------
    KeyError
        If the table does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the method cites no spots, the image or the shapes are not in the object, or the table has lost its provenance.

    Notes
    -----
    The share of group g in spot i is the sum of `obsm["retrieval_weights"]` over the cited rows of g, over their sum over
    all cited rows.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> axes = rg.pl.sources(query, group_by="donor", return_ax=True)
    >>> sorted(axes["groups"])
    ['donor1', 'donor2']
    """
    from ragst_sd.get import neighbors

    require_sdata(sdata)
    require_choice(group_by, _GROUPS, "group_by")
    require_positive(n_shown, "n_shown", whole=True)
    if n_shown >= len(_style.PALETTE):
        msg = f"`n_shown` is {n_shown}; there are colours for {len(_style.PALETTE) - 1} groups at most."
        raise ValueError(msg)
    require_fade(image_fade)
    table, header = predicted(sdata, prediction_key)
    cited = neighbors(sdata, prediction_key=prediction_key)
    if not len(cited):
        msg = (
            f"The prediction was made by method {header['method']!r}, which cites no measured spots: it has no sources to "
            'show. Fit a method that cites, for instance `rg.tl.fit(reference, method="knn")`, and predict again.'
        )
        raise ValueError(msg)
    found = _sources(cited, table.obs_names, group_by, int(n_shown))
    section = read_section(sdata, table, header, prediction_key)

    box, size = map_size(section, _MAP)
    _, small = map_size(section, _SMALL)
    n_small = len(found.names) if len(found.names) > 1 else 0
    n_across = max(_PER_ROW, int((size[0] + _GAP + _table_width(found)) // (small[0] + 0.15)))
    n_down = -(-n_small // n_across)
    upper = _HEAD + max(size[1], 0.28 + (len(found.names) + 2.2) * _LINE) + 0.12
    width = max(size[0] + _GAP + _table_width(found), min(n_small, n_across) * (small[0] + 0.15) + 0.85) + 2 * MARGIN
    height = upper + n_down * (small[1] + _SMALL_HEAD) + (0.3 if n_down else 0) + 2 * MARGIN
    stage = open_stage(width, height, ax=ax, figsize=figsize, dpi=dpi)
    drawn = _draw_discs(stage, section, found, box, size, image_fade, f"{group_by} that leads")
    disc = _DISC * _spacing(section) / (box[1] - box[0]) * size[0]
    bars = _draw_weights(stage, found, MARGIN + size[0] + _GAP, group_by, disc)
    groups = _draw_groups(stage, section, found, box, small, upper + MARGIN, n_across, image_fade)
    axes = {"section": drawn, "weights": bars, "groups": groups}
    return finish(stage, axes, show=show, save=save, return_ax=return_ax, dpi=dpi)


def _sources(cited: pd.DataFrame, spots: pd.Index, group_by: str, n_shown: int) -> _Sources:
    cited = cited.assign(group=cited[group_by].fillna(_keys.UNKNOWN).astype(str).replace("", _keys.UNKNOWN))
    weights = cited.pivot_table(index="query", columns="group", values="weight", aggfunc="sum", fill_value=0.0)
    shares = weights.div(weights.sum(axis=1), axis=0).reindex(spots)
    order = shares.mean().sort_values(ascending=False, kind="stable").index
    rows = cited.groupby("group")["reference"].nunique()
    values, counts = shares[order].to_numpy(float), rows[order].to_numpy()
    leader, leads_by = values.argmax(axis=1), values.max(axis=1)
    names, colors = [str(name) for name in order], list(_style.PALETTE[: len(order)])
    if len(order) > n_shown + 1:
        lumped = f"other ({len(order) - n_shown} {group_by}s)"
        names, colors = [*names[:n_shown], lumped], [*colors[:n_shown], _style.OTHER_GROUPS]
        values = np.column_stack([values[:, :n_shown], values[:, n_shown:].sum(axis=1)])
        counts = np.append(counts[:n_shown], counts[n_shown:].sum())
    return _Sources(names, values, np.minimum(leader, len(names) - 1), leads_by, counts, colors)


def _name_width(found: _Sources) -> float:
    return _LETTER * max(8, *(len(_style.shorten(name, _LONGEST_NAME)) for name in found.names)) + 0.1


def _table_width(found: _Sources) -> float:
    return _name_width(found) + _BARS + _SHARE + _ROWS


def _spacing(section: Section) -> float:
    """Distance between neighbouring spots in pixels."""
    if len(np.unique(section.centers, axis=0)) < 2:
        return 2 * spot_reach(section)
    return spot_pitch(section.centers)


def _draw_discs(
    stage: Stage, section: Section, found: _Sources, box: Box, size: tuple[float, float], fade: float, title: str
) -> Axes:
    ax = stage.axes(MARGIN, MARGIN + _HEAD, *size, "section")
    draw_image(ax, section.pyramid, box, edge_px=_IMAGE_PX, fade=fade)
    has = found.has
    if not has.all():
        draw_spots(
            ax, section, np.flatnonzero(~has), facecolors="none", edgecolors=_style.NO_VALUE,
            linewidths=stage.points(0.9), zorder=2, label="no value",
        )  # fmt: skip
    diameter = _DISC * _spacing(section) * np.sqrt(found.leads_by[has])
    _add_discs(
        ax, diameter, section.centers[has], facecolors=[found.colors[group] for group in found.leader[has]],
        edgecolors="0.25", linewidths=stage.points(0.3), label="leading group",
    )  # fmt: skip
    _style.scale_bar(ax, section.mpp, stage.points(9), right=corner_is_free(section, box))
    _style.frame(ax)
    ax.set_title(title[0].upper() + title[1:], fontsize=stage.points(12), loc="left", pad=stage.points(18))
    ax.annotate(
        "area: its share of the spot's weight", (0, 1), xycoords="axes fraction", xytext=(0, stage.points(4)),
        textcoords="offset points", ha="left", va="bottom", fontsize=stage.points(9), color=_style.MUTED,
        annotation_clip=False,
    )  # fmt: skip
    return ax


def _add_discs(ax: Axes, diameter: np.ndarray, centers: np.ndarray, **style: Any) -> Any:
    from matplotlib.collections import EllipseCollection

    discs = EllipseCollection(
        diameter, diameter, np.zeros(len(diameter)), units="xy", offsets=centers, offset_transform=ax.transData,
        zorder=3, **style,
    )  # fmt: skip
    return ax.add_collection(discs, autolim=False)


def _draw_weights(stage: Stage, found: _Sources, left: float, group_by: str, disc: float) -> Axes:
    """Bars of total weight, with names and numbers as columns of text."""
    top, n = MARGIN + _HEAD + 0.28, len(found.names)
    ax = stage.axes(left + _name_width(found), top, _BARS, n * _LINE, "weights")
    ax.barh(np.arange(n), found.total, height=0.66, color=found.colors, edgecolor="0.25", lw=stage.points(0.5))
    ax.set(xlim=(0, max(found.total.max(), 1e-9)), ylim=(n - 0.5, -0.5))
    ax.set_axis_off()
    share, rows = left + _name_width(found) + _BARS + _SHARE, left + _table_width(found)
    for x, align, words in (
        (left, "left", group_by),
        (share, "right", "weight"),
        (rows, "right", "rows cited"),
    ):
        stage.text(x, top - 0.06, words, size=9, ha=align, va="bottom", color=_style.MUTED)
    for i, (name, total, count) in enumerate(zip(found.names, found.total, found.n_rows, strict=True)):
        middle = top + (i + 0.5) * _LINE
        stage.text(left, middle, _style.shorten(name, _LONGEST_NAME), size=10, ha="left", va="center", gid="group")
        stage.text(share, middle, f"{total:.0%}".replace("%", " %"), size=10, ha="right", va="center", gid="share")
        stage.text(rows, middle, f"{int(count):,}", size=10, ha="right", va="center", gid="rows")
    _draw_key(stage, left, top + (n + 0.6) * _LINE, disc)
    return ax


def _draw_key(stage: Stage, left: float, top: float, disc: float) -> None:
    """Discs of known shares, as large as on the section."""
    step, height = max(0.85, disc + 0.6), max(disc, 0.2)
    ax = stage.axes(left, top, step * len(_KEY), height, "key")
    ax.set(xlim=(0, step * len(_KEY)), ylim=(0, height))
    ax.set_axis_off()
    diameter = np.sqrt(_KEY) * disc
    middles = step * np.arange(len(_KEY)) + disc / 2
    centers = np.column_stack([middles, np.full(len(_KEY), height / 2)])
    _add_discs(ax, diameter, centers, facecolors="0.6", edgecolors="0.25", linewidths=stage.points(0.3))
    for middle, share in zip(middles, _KEY, strict=True):
        ax.text(
            middle + disc / 2 + 0.06,
            height / 2,
            f"{share:.0%}".replace("%", " %"),
            fontsize=stage.points(9),
            va="center",
        )


def _draw_groups(
    stage: Stage,
    section: Section,
    found: _Sources,
    box: Box,
    size: tuple[float, float],
    top: float,
    n_across: int,
    fade: float,
) -> dict[str, Axes]:
    if len(found.names) < 2:
        return {}
    # Groups that were lumped give more together than one does, and would darken the maps of all others.
    single = found.shares[:, : -1 if found.colors[-1] == _style.OTHER_GROUPS else None]
    limits = (0.0, float(np.nanmax(single)))
    has, diameter = found.has, np.full(found.has.sum(), _DISC * _spacing(section))
    axes = {}
    for i, name in enumerate(found.names):
        left = MARGIN + (i % n_across) * (size[0] + 0.15)
        ax = stage.axes(left, top + (i // n_across) * (size[1] + _SMALL_HEAD) + _SMALL_HEAD, *size, name)
        draw_image(ax, section.pyramid, box, edge_px=_IMAGE_PX // 2, fade=(1 + fade) / 2)
        discs = _add_discs(ax, diameter, section.centers[has], cmap=_style.SHARE, linewidths=0, label="share of weight")
        discs.set_array(found.shares[has, i])
        discs.set_clim(*limits)
        ax.set_title(_style.shorten(name, 24), fontsize=stage.points(9.5), loc="left", pad=stage.points(3))
        _style.frame(ax)
        axes[name] = ax
    last = MARGIN + min(len(found.names), n_across) * (size[0] + 0.15) - 0.05
    draw_bar(stage, discs, "share of weight", limits, found.shares[has], last, top + _SMALL_HEAD, size[1])
    return axes
