"""The maps of a report, as PNG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._page import Picture, number

if TYPE_CHECKING:
    from spatialdata import SpatialData

_DPI = 110
_PANEL_IN, _BAR_IN = 4.2, 1.1
_GROUNDEDNESS = (
    "How well grounded the spots are: distance to the nearest measured tissue, as a percentile of that of held-out spots of the "
    "reference (0 is nearest). Spots with an orange rim are out of reference; hollow spots have no prediction."
)


def draw_maps(
    sdata: SpatialData, facts: dict[str, Any], *, prediction_key: str, truth_key: str | None
) -> list[Picture]:
    """The best-trusted gene as predicted (and measured), and how well grounded each spot is."""
    import ragst_sd.pl as pl

    pictures = []
    table, score = facts["table"], facts["score"]
    values = np.asarray(table.X)
    allowed = np.isfinite(values).any(axis=0)
    beside = "predicted"
    if truth_key is not None:
        allowed &= table.var_names.isin(sdata.tables[truth_key].var_names)
        beside = "measured, predicted and their difference"
    if allowed.any():
        score = np.where(allowed, score, np.nan)
        if np.isfinite(score).any():
            best = np.nanargmax(score)
            why = f"the gene that is predicted best on held-out {facts['held_out']}s (r = {number(score[best])})"
        else:
            best = np.flatnonzero(allowed)[np.nanvar(values[:, allowed], axis=0).argmax()]
            why = "the gene whose prediction varies most; how well it is predicted was not assessed"
        gene, png = str(table.var_names[best]), BytesIO()
        pl.prediction(sdata, gene=gene, prediction_key=prediction_key, truth_key=truth_key, save=png, dpi=_DPI)
        pictures.append(Picture("gene.png", png.getvalue(), f"{gene}, {beside}: {why}."))
    return [*pictures, Picture("groundedness.png", _groundedness(sdata, facts, prediction_key), _GROUNDEDNESS)]


def _groundedness(sdata: SpatialData, facts: dict[str, Any], prediction_key: str) -> bytes:
    from matplotlib.figure import Figure

    from ragst_sd.pl import _style
    from ragst_sd.pl._section import corner_is_free, draw_image, draw_spots, extent_of, read_section, spot_reach

    table, known = facts["table"], facts["predicted_spots"]
    section = read_section(sdata, table, facts["header"], prediction_key)
    percentile = table.obs[_keys.DISTANCE_PERCENTILE].to_numpy(float)
    out = table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool)
    box = extent_of(section, spot_reach(section))
    width, height = np.array([box[1] - box[0], box[3] - box[2]]) * _PANEL_IN / max(box[1] - box[0], box[3] - box[2])
    figure = Figure(figsize=(width + _BAR_IN, height + 0.5), layout="constrained")
    ax = figure.subplots()
    draw_image(ax, section.pyramid, box, edge_px=900, fade=0.5)
    draw_spots(ax, section, np.flatnonzero(~known), facecolors="none", edgecolors=_style.NO_VALUE, linewidths=0.9)
    # Those out of reference last, so that their rims lie on top.
    rows = np.flatnonzero(known)[np.argsort(out[known], kind="stable")]
    rims = np.where(out[rows], _style.ADJUSTMENT, "none")
    spots = draw_spots(ax, section, rows, cmap="viridis_r", edgecolors=rims, linewidths=1.4 * out[rows], zorder=3)
    spots.set_array(percentile[rows])
    spots.set_clim(0, 100)
    ax.set_title("distance to measured tissue", fontsize=11, loc="left")
    _style.scale_bar(ax, section.mpp, 9, right=corner_is_free(section, box))
    _style.frame(ax)
    bar = figure.colorbar(spots, ticks=[0, 25, 50, 75, 100], shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5)
    bar.set_label("percentile of held-out spots", fontsize=9)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()
