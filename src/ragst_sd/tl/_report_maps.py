"""The maps of a report, as PNG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._page import Picture, number

if TYPE_CHECKING:
    from spatialdata import SpatialData

_DPI = 200
_TRUST = (
    "How far to trust the spots: how much the measured spots behind a value disagree, mean over genes, and the distance "
    "to the nearest measured tissue, as a percentile of that of held-out spots of the reference (0 is nearest). Dark is "
    "where errors are larger. Spots with an orange rim are out of reference; hollow spots have no prediction."
)


def draw_maps(
    sdata: SpatialData, facts: dict[str, Any], *, prediction_key: str, truth_key: str | None
) -> list[Picture]:
    """The best-trusted gene as predicted (and measured), and how far to trust each spot."""
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
        pl.prediction(
            sdata, genes=gene, prediction_key=prediction_key, truth_key=truth_key or False, save=png, dpi=_DPI
        )
        pictures.append(Picture("gene.png", png.getvalue(), f"{gene}, {beside}: {why}."))
    png = BytesIO()
    pl.reliability(sdata, prediction_key=prediction_key, truth_key=False, image_fade=0.5, save=png, dpi=_DPI)
    return [*pictures, Picture("trust.png", png.getvalue(), _TRUST)]
