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
from ragst_sd.pl._figure import describe_figure_parameters, picture
from ragst_sd.pl._maps import BAR, axes_in_rows, draw_bar, draw_section, map_size, require_fade
from ragst_sd.pl._section import draw_discs, read_section, spot_reach

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from ragst_sd.pl._section import Section

_GROUPS = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, "license", "citation")
# Discs of neighbouring spots do not touch even where one group has all the weight.
_DISC = 0.9
_KEY = (0.25, 0.5, 1.0)
# Inches.
_MAP, _SMALL, _AROUND, _TABLE, _ROW = 3.9, 1.75, 1.0, 5.2, 0.3
_PER_ROW = 4
_LONGEST_NAME = 34
_SMALL_PX = 450


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


@describe_figure_parameters
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
    {figure_parameters}

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
    shown = _sources(cited, table.obs_names, group_by, int(n_shown))
    section = read_section(sdata, table, header, prediction_key)

    size, small = map_size(section, _MAP), map_size(section, _SMALL)
    n_maps = len(shown.names) if len(shown.names) > 1 else 0
    heights = [size[1] + _AROUND, -(-n_maps // _PER_ROW) * (small[1] + 0.35)][: 1 + bool(n_maps)]
    width, height = max(size[0] + _TABLE, _PER_ROW * small[0] + BAR), sum(heights)
    with picture(width, height, ax=ax, figsize=figsize, dpi=dpi, show=show, save=save, return_ax=return_ax) as figure:
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        upper = grid[0].subgridspec(1, 2, width_ratios=(size[0], 1.9))
        drawn, bars = figure.add_subplot(upper[0]), figure.add_subplot(upper[1])
        _draw_leaders(drawn, section, shown, image_fade, f"{group_by} that leads")
        _draw_weights(bars, shown, group_by, max(len(shown.names), size[1] / _ROW))
        groups = {}
        if n_maps:
            groups = dict(zip(shown.names, axes_in_rows(figure, n_maps, _PER_ROW, grid[1]), strict=True))
            _draw_groups(groups, section, shown, image_fade)
    return {"section": drawn, "weights": bars, "groups": groups} if return_ax else None


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


def _spacing(section: Section) -> float:
    """Distance between neighbouring spots in pixels."""
    if len(np.unique(section.centers, axis=0)) < 2:
        return 2 * spot_reach(section)
    return spot_pitch(section.centers)


def _draw_leaders(ax: Axes, section: Section, shown: _Sources, fade: float, title: str) -> None:
    """Discs in the colour of the group that leads, and below them what their area says."""
    has = shown.has
    draw_section(ax, section, has, fade=fade)
    style: dict[str, Any] = {"edgecolors": "0.25", "linewidths": 0.3, "zorder": 3}
    largest = _DISC * _spacing(section)
    colors = [shown.colors[group] for group in shown.leader[has]]
    diameter = largest * np.sqrt(shown.leads_by[has])
    draw_discs(ax, section.centers[has], diameter, facecolors=colors, label="leading group", **style)
    ax.set_label("section")
    _style.set_title(ax, title[0].upper() + title[1:], "area: its share of the spot's weight")

    # As wide as the section in the same units, so that discs are as large as those above.
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    width, height = right - left, bottom - top
    share = max(0.06, 1.1 * largest / height)
    key = ax.inset_axes((0, -share - 0.02, 1, share), label="key")
    key.set(xlim=(0, width), ylim=(-share * height / 2, share * height / 2))
    key.set_axis_off()
    x = largest / 2 + np.arange(len(_KEY)) * (0.26 * width + largest)
    draw_discs(key, np.column_stack([x, 0 * x]), largest * np.sqrt(_KEY), facecolors="0.6", **style)
    for place, part in zip(x, _KEY, strict=True):
        _style.beside(key, _style.percent(part), (place + largest / 2, 0), (3, 0), "data", va="center")


def _draw_weights(ax: Axes, shown: _Sources, group_by: str, n_rows: float) -> None:
    """Bars of total weight, with names and numbers as columns of text."""
    n = len(shown.names)
    ax.barh(np.arange(n), shown.total, height=0.66, color=shown.colors, edgecolor="0.25", lw=0.5)
    ax.set(xlim=(0, max(shown.total.max(), 1e-9)), ylim=(n_rows - 0.5, -0.5), label="weights")
    ax.set_axis_off()
    names = [_style.shorten(name, _LONGEST_NAME) for name in shown.names]
    _style.write_columns(ax, {group_by: names}, before=True)
    rows = [f"{int(count):,}" for count in shown.n_rows]
    _style.write_columns(ax, {"weight": [_style.percent(total) for total in shown.total], "rows cited": rows})


def _draw_groups(groups: dict[str, Axes], section: Section, shown: _Sources, fade: float) -> None:
    """A map of the share of each group, on one scale."""
    # Groups that were lumped give more together than one does, and would darken the maps of all others.
    single = shown.shares[:, : -1 if shown.colors[-1] == _style.OTHER_GROUPS else None]
    has = shown.has
    diameter = np.full(has.sum(), _DISC * _spacing(section))
    style: dict[str, Any] = {
        "cmap": _style.SHARE,
        "clim": (0.0, float(np.nanmax(single))),
        "linewidths": 0,
        "zorder": 3,
    }
    for i, (name, ax) in enumerate(groups.items()):
        draw_section(ax, section, np.ones_like(has), fade=(1 + fade) / 2, edge_px=_SMALL_PX, scale_bar=False)
        shares = shown.shares[has, i]
        discs = draw_discs(ax, section.centers[has], diameter, array=shares, label="share of weight", **style)
        ax.set_title(_style.shorten(name, 22), fontsize="medium")
        if i == min(_PER_ROW, len(shown.names)) - 1:
            draw_bar(ax, discs, "share of weight", shown.shares[has])
