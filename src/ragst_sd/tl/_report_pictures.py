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
    png = BytesIO()
    pl.reliability(
        sdata, prediction_key=prediction_key, maps=[_keys.DISTANCE_PERCENTILE], image_fade=0.5, save=png, dpi=_DPI
    )
    out.append(Picture(png.getvalue(), _GROUNDEDNESS))
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
