"""`rg.pl.sources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._results import predicted
from ragst_sd._spot_layout import spot_pitch
from ragst_sd._validate import require_choice, require_positive
from ragst_sd.pl import _maps, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._section import Section, draw_discs, read_section

_GROUPS = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, "license", "citation")
_PER_ROW = 4
_RIM: dict[str, Any] = {"edgecolors": "0.25", "linewidths": 0.3, "zorder": 3}


@dataclass(frozen=True)
class _Sources:
    """What each group gives to each spot."""

    shares: pd.DataFrame
    """(spots, groups) share of the weight, the lumped ones together; NaN for spots that cite no rows."""
    n_rows: list[int]
    """Cited rows of each group."""
    colors: list[str]
    leader_colors: np.ndarray
    """(spots,) colour of the group with the largest share; groups that were lumped compete one by one."""
    leader_shares: np.ndarray
    """(spots,) share of that group."""

    @property
    def cites(self) -> np.ndarray:
        """(spots,) whether a spot cites rows."""
        return self.shares.notna().all(axis=1).to_numpy()


@draws
def sources(
    sdata: SpatialData,
    *,
    group_by: str = "donor",
    prediction_key: str = "predicted",
    n_shown: int = 7,
    image_fade: float = 0.5,
    **drawing: Unpack[Drawing],
) -> dict[str, Any] | None:
    """Plot which donors, organs or sources contribute to which region of a prediction.

    On the section, each spot is a disc in the colour of the group with the largest weight. Its area is the share of
    that group, so spots with equal shares of many groups are small. Next to it are the share of each group in the total
    weight and the number of its cited spots. Below, one map per group shows its share in every spot; these maps can be
    read without colours. The function uses only the provenance in the table and does not need the reference.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    group_by
        `"donor"`, `"sample"`, `"tissue"`, `"technology"`, `"license"` or `"citation"`.
    prediction_key
        Name of the predicted table.
    n_shown
        Number of groups with the largest weights, at most 7; the others are drawn as "other". One group more is still
        shown: it takes the place of the others.
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
        If the method cites no spots, the image or the shapes are not in the object, or the table has lost its
        provenance.

    Notes
    -----
    The share of group g in spot i is the sum of `obsm["retrieval_weights"]` over the cited rows of g, over their sum
    over all cited rows.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> axes = rg.pl.sources(query, group_by="donor", return_ax=True)
    >>> sorted(axes["groups"])
    ['donor1', 'donor2']
    """
    from ragst_sd.get import neighbors

    require_choice(group_by, _GROUPS, "group_by")
    require_positive(n_shown, "n_shown", whole=True)
    if n_shown >= len(_style.PALETTE):
        raise ValueError(f"`n_shown` is {n_shown}; there are colours for {len(_style.PALETTE) - 1} groups at most.")
    _maps.require_fade(image_fade)
    prediction = predicted(sdata, prediction_key)
    _maps.require_citations(prediction)
    cited = neighbors(sdata, prediction_key=prediction_key)
    shown = _sources(cited, prediction.table.obs_names, group_by, int(n_shown))
    section = read_section(prediction)
    # Discs of neighbouring spots do not touch even where one group has all the weight.
    several = len(np.unique(section.centers, axis=0)) > 1
    largest = 0.9 * (spot_pitch(section.centers) if several else 2 * section.reach)

    names = list(shown.shares)
    size, small = _maps.map_size(section, 3.9), _maps.map_size(section, 1.75)
    n_maps = len(names) if len(names) > 1 else 0
    # Inches of the section and of the small maps below it.
    heights = [size[1] + 1.0, -(-n_maps // _PER_ROW) * (small[1] + 0.35)][: 1 + bool(n_maps)]
    width, height = max(size[0] + 5.2, _PER_ROW * small[0] + _maps.BAR), sum(heights)
    with picture(width, height, **drawing) as figure:
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        upper = grid[0].subgridspec(1, 2, width_ratios=(size[0], 1.9))
        drawn, bars = figure.add_subplot(upper[0]), figure.add_subplot(upper[1])
        _maps.draw_section(drawn, section, shown.cites, fade=image_fade)
        _draw_leaders(drawn, section.centers, shown, largest)
        _style.set_title(drawn, f"{group_by.capitalize()} that leads", "area: its share of the spot's weight")
        _draw_weights(bars, shown, group_by)
        # Bars as thick for two groups as for eight.
        bars.set_ylim(max(len(names), size[1] / 0.3) - 0.5, -0.5)
        groups = {}
        if n_maps:
            groups = dict(zip(names, _maps.axes_in_rows(figure, n_maps, _PER_ROW, grid[1]), strict=True))
            _draw_groups(groups, section, shown, (1 + image_fade) / 2)
    return {"section": drawn, "weights": bars, "groups": groups}


def _sources(cited: pd.DataFrame, spots: pd.Index, group_by: str, n_shown: int) -> _Sources:
    """Shares by spot and group, from what `rg.get.neighbors` lists."""
    cited = cited.assign(group=labels(cited[group_by], missing=_keys.UNKNOWN))
    weights = cited.pivot_table(index="query", columns="group", values="weight", aggfunc="sum", fill_value=0.0)
    shares = weights.div(weights.sum(axis=1), axis=0).reindex(spots)
    shares = shares[shares.mean().sort_values(ascending=False, kind="stable").index]
    n_rows = cited.groupby("group")["reference"].nunique()[shares.columns].to_list()
    n = shares.shape[1]
    # One group more takes the place that the others would have.
    n_single = n if n <= n_shown + 1 else n_shown
    colors = [*_style.PALETTE[:n_single], *[_style.OTHER_GROUPS] * (n - n_single)]
    values = shares.to_numpy(float)
    leaders = np.array(colors)[values.argmax(axis=1)]
    if n_single < n:
        lumped = {f"other ({n - n_single} {group_by}s)": shares.iloc[:, n_single:].sum(axis=1, skipna=False)}
        shares = shares.iloc[:, :n_single].assign(**lumped)
        n_rows = [*n_rows[:n_single], sum(n_rows[n_single:])]
    return _Sources(shares, n_rows, colors[: shares.shape[1]], leaders, values.max(axis=1))


def _draw_leaders(ax: Axes, centers: np.ndarray, shown: _Sources, largest: float) -> None:
    """Discs in the colour of the group that leads, and below the section what their area says."""
    diameters = largest * np.sqrt(shown.leader_shares[shown.cites])
    colors = shown.leader_colors[shown.cites]
    draw_discs(ax, centers[shown.cites], diameters, facecolors=colors, label="leading group", **_RIM)
    ax.set_label("section")
    (left, right), (bottom, _) = ax.get_xlim(), ax.get_ylim()
    key = np.array([0.25, 0.5, 1.0])
    x = left + largest / 2 + np.arange(len(key)) * (0.26 * (right - left) + largest)
    y = np.full(len(key), bottom + largest)
    draw_discs(ax, np.column_stack([x, y]), largest * np.sqrt(key), facecolors="0.6", clip_on=False, **_RIM)
    for i, share in enumerate(key):
        point, words = (x[i] + largest / 2, y[i]), _style.percent(share)
        _style.beside(ax, words, point, (3, 0), "data", va="center", annotation_clip=False)


def _draw_weights(ax: Axes, shown: _Sources, group_by: str) -> None:
    """Bars of total weight, with names and numbers as columns of text."""
    total = shown.shares.mean()
    ax.barh(np.arange(len(total)), total, height=0.66, color=shown.colors, edgecolor="0.25", lw=0.5)
    ax.set(xlim=(0, total.max()), label="weights")
    ax.set_axis_off()
    _style.write_columns(ax, {group_by: [_style.shorten(name, 34) for name in total.index]}, before=True)
    weights = [_style.percent(share) for share in total]
    _style.write_columns(ax, {"weight": weights, "rows cited": [f"{count:,}" for count in shown.n_rows]})


def _draw_groups(groups: dict[str, Axes], section: Section, shown: _Sources, fade: float) -> None:
    """A map of the share of each group, on one scale."""
    # Groups that were lumped give more together than one does, and would darken the maps of all others.
    single = [color != _style.OTHER_GROUPS for color in shown.colors]
    limits = (0.0, float(shown.shares.loc[:, single].max().max()))
    all_shares = shown.shares.to_numpy()
    kind, last = "share of weight", min(_PER_ROW, len(groups)) - 1
    for i, (name, ax) in enumerate(groups.items()):
        label, title = kind if i == last else "", _style.shorten(name, 22)
        panel = _maps.Map(kind, title, all_shares[:, i], limits, _style.SHARE, label, on_scale=all_shares)
        _maps.draw_map(ax, section, panel, fade=fade, scale_bar=False)
