"""The maps of a report, as PNG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.tl._report_facts import number
from ragst_sd.tl._report_page import Picture, plain

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ragst_sd.tl._report_facts import Facts

_DPI = 110
_PANEL, _TITLE, _MARGIN, _BAR_ROOM = 4.2, 0.38, 0.12, 1.1


def draw_maps(sdata: SpatialData, facts: Facts, *, prediction_key: str, truth_key: str | None) -> list[Picture]:
    """The best-trusted gene as predicted (and measured), and how well grounded each spot is."""
    import ragst_sd.pl as pl

    gene, why = _gene_to_show(facts, None if truth_key is None else sdata.tables[truth_key].var_names)
    out = []
    if gene is not None:
        png = BytesIO()
        pl.prediction(sdata, gene=gene, prediction_key=prediction_key, truth_key=truth_key, save=png, dpi=_DPI)
        beside = "measured, predicted and their difference" if truth_key is not None else "predicted"
        out.append(Picture(png.getvalue(), f"{plain(gene)}, {beside}: {why}."))
    out.append(Picture(_groundedness(sdata, facts, prediction_key), _GROUNDEDNESS))
    return out


_GROUNDEDNESS = (
    "How well grounded the spots are: distance to the nearest measured tissue, as a percentile of that of held-out spots of the "
    "reference (0 is nearest). Spots with an orange rim are out of reference; hollow spots have no prediction."
)


def _gene_to_show(facts: Facts, measured: Any | None) -> tuple[str | None, str]:
    """The gene that held-out donors trust most, or else the one whose prediction varies most."""
    names = facts.table.var_names
    allowed = np.ones(len(names), dtype=bool) if measured is None else names.isin(measured)
    x = np.asarray(facts.table.X)
    allowed &= np.isfinite(x).any(axis=0)
    if not allowed.any():
        return None, ""
    if facts.assessed and np.isfinite(facts.cv_pearson[allowed]).any():
        best = int(np.nanargmax(np.where(allowed, facts.cv_pearson, np.nan)))
        return str(
            names[best]
        ), f"the gene that is predicted best on held-out {facts.held_out}s (r = {number(facts.cv_pearson[best])})"
    spread = np.full(len(names), -1.0)
    spread[allowed] = np.nanvar(x[:, allowed], axis=0)
    return str(
        names[int(np.argmax(spread))]
    ), "the gene whose prediction varies most; how well it is predicted was not assessed"


def _groundedness(sdata: SpatialData, facts: Facts, prediction_key: str) -> bytes:
    from ragst_sd.pl import _style
    from ragst_sd.pl._figure import finish, open_stage
    from ragst_sd.pl._section import corner_is_free, draw_image, draw_spots, extent_of, read_section, spot_reach

    section = read_section(sdata, facts.table, facts.header, prediction_key)
    percentile = facts.table.obs[_keys.DISTANCE_PERCENTILE].to_numpy(float)
    out, known = facts.table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool), facts.predicted_spots
    box = extent_of(section, spot_reach(section))
    shrink = _PANEL / max(box[1] - box[0], box[3] - box[2])
    width, height = (box[1] - box[0]) * shrink, (box[3] - box[2]) * shrink
    stage = open_stage(width + _BAR_ROOM + 2 * _MARGIN, height + _TITLE + 2 * _MARGIN, ax=None, figsize=None, dpi=_DPI)
    ax = stage.axes(_MARGIN, _MARGIN + _TITLE, width, height, "groundedness")
    draw_image(ax, section.pyramid, box, edge_px=900, fade=0.5)
    draw_spots(ax, section, np.flatnonzero(~known), facecolors="none", edgecolors=_style.NO_VALUE, linewidths=0.9)
    spots = draw_spots(ax, section, np.flatnonzero(known & ~out), cmap="viridis_r", linewidths=0, zorder=3)
    far = draw_spots(
        ax,
        section,
        np.flatnonzero(known & out),
        cmap="viridis_r",
        edgecolors=_style.ADJUSTMENT,
        linewidths=1.4,
        zorder=4,
    )
    for one, which in ((spots, known & ~out), (far, known & out)):
        one.set_array(percentile[which])
        one.set_clim(0, 100)
    ax.set_title("distance to measured tissue", fontsize=stage.points(11), loc="left", pad=stage.points(4))
    _style.scale_bar(ax, section.mpp, stage.points(9), right=corner_is_free(section, box))
    _style.frame(ax)
    cax = stage.axes(_MARGIN + width + 0.12, _MARGIN + _TITLE + 0.1 * height, 0.12, 0.8 * height, "colorbar")
    bar = stage.figure.colorbar(spots, cax=cax, ticks=[0, 25, 50, 75, 100])
    bar.outline.set_linewidth(0)
    bar.ax.tick_params(labelsize=stage.points(8.5))
    bar.set_label("percentile of held-out spots", fontsize=stage.points(9))
    png = BytesIO()
    finish(stage, ax, show=False, save=png, return_ax=False, dpi=_DPI)
    return png.getvalue()
