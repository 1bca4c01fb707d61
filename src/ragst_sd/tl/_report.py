"""`rg.tl.report`."""

from __future__ import annotations

import logging
import os
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys, _results
from ragst_sd._annotation import single_region
from ragst_sd._caveats import sentences
from ragst_sd._elements import require_sdata
from ragst_sd._page import Picture, bears, number, to_html, to_markdown
from ragst_sd._replacing import replace_text
from ragst_sd._truth import if_it_fits, shown_truth
from ragst_sd.tl._report_facts import gather

logger = logging.getLogger(__name__)

_MADE_BY = "made by rg.tl.report"
_TEMPLATE = "tl/_report.md.jinja"
_SUFFIXES = (".md", ".html")
_DPI = 200
_TRUST = (
    "How far to trust the spots: how much the measured spots behind a value disagree, mean over genes, and the "
    "distance to the nearest measured tissue, as a percentile of that of held-out spots of the reference (0 is "
    "nearest). Dark is where errors are larger. Spots with an orange rim are out of reference; hollow spots have no "
    "prediction."
)


def report(
    sdata: SpatialData | AnnData,
    reference: AnnData,
    *,
    path: str | os.PathLike[str] = "report",
    prediction_key: str = "predicted",
    truth_key: str | Literal[False] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    pictures: bool = True,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write a report of one prediction: where it comes from, how far to trust it, and what not to conclude.

    The report uses the provenance, `.var` and `.obs` of the predicted table and the header of the reference; nothing is
    fitted or predicted again. It states what was not assessed. It adds a caveat for each of these: a reference with one
    donor, intervals that were not calibrated over donors, spots out of reference, genes that failed, and unknown
    licences.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself; then without maps.
    reference
        The very reference that the prediction was made from.
    path
        Where to write, with or without suffix: `<path>.md` and `<path>.html`.
    prediction_key
        Name of the predicted table.
    truth_key
        Measured table of the same section to compare with; see :func:`ragst_sd.tl.evaluate`. The only one of the same
        shapes if left out; `False` for none.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    pictures
        Draw maps into the HTML page, where the image and the shapes are in the object.
    overwrite
        Replace files that this function did not write. Its own it replaces in any case.

    Returns
    -------
    Paths of the Markdown and of the HTML page. The HTML page needs no other file; pictures are in it. Both are
    complete before they take their names.

    On the page: the most restrictive licence; what not to conclude; what was not assessed; maps of the gene that is
    predicted best on held-out donors and of how well grounded the spots are; sections of the reference with donors,
    licences, citations and their share of the prediction; accuracy on held-out donors and genes by trust
    (`.var["cv_pearson"]`, `["noise_ceiling"]`); agreement with the measured table, if there is one; spots out of
    reference, effective number of measured spots and share of evidence (`.obs`); intervals with their level and unit;
    encoder, fit, hashes and versions (`.uns["retrieval"]`).

    Raises
    ------
    FileExistsError
        If a file is there that this function did not write, unless `overwrite`.
    FileNotFoundError
        If the folder does not exist.
    KeyError
        If a table, layer or column does not exist.
    ValueError
        If the table has lost its provenance, the reference is missing or another one, or the measured table cannot be
        compared.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> paths = rg.tl.report(query, reference, path="donor3")
    >>> [path.name for path in paths]
    ['donor3.md', 'donor3.html']
    """
    prediction = _results.predicted(sdata, prediction_key, exact=True)
    bank = _results.matching_bank(prediction, reference)
    _results.require_columns(prediction.table, (*_results.OBS_COLUMNS, *_results.VAR_COLUMNS))
    paths = _paths(path, overwrite=overwrite)
    if truth_key and isinstance(sdata, AnnData):
        raise ValueError("`truth_key` names a table of a SpatialData; `sdata` is a bare table. Give the object.")
    truth, measured = shown_truth(prediction, truth_key), None
    if truth is not None:
        compared = {"prediction_key": prediction_key, "truth_key": truth, "layer": layer, "unit": unit}
        measured = if_it_fits(partial(_agreement, prediction, compared), truth_key)
    facts = gather(prediction, bank, measured)
    why_none = _why_no_maps(prediction, pictures=pictures)
    drawn = truth if measured is not None and layer is None and unit == "counts" else None
    maps = [] if why_none else _draw_maps(prediction, facts, truth_key=drawn)
    facts |= {topic: sentences(topic, facts) for topic in ("not_assessed", "not_to_conclude")}
    facts |= {"pictures": maps, "why_no_pictures": why_none, "min_cv_pearson": _results.MIN_CV_PEARSON}
    markdown, illustrated = (to_markdown(_TEMPLATE, {**facts, "as_html": as_html}) for as_html in (False, True))
    page = to_html(illustrated, title=f"Prediction card: {prediction_key}", pictures=maps)
    for file, text in zip(paths, (markdown, page), strict=True):
        replace_text(file, text)
    logger.info("Wrote %s and %s.", *paths)
    return paths


def _paths(path: str | os.PathLike[str], *, overwrite: bool) -> tuple[Path, Path]:
    """Both files, neither of which is anybody else's."""
    base = Path(path)
    if base.suffix.lower() in _SUFFIXES:
        base = base.with_suffix("")
    if not base.parent.is_dir():
        raise FileNotFoundError(f"`path` is {str(path)!r}: there is no folder {str(base.parent)!r}. Make it first.")
    markdown, page = (base.with_name(base.name + suffix) for suffix in _SUFFIXES)
    for file in (markdown, page):
        if file.exists() and not overwrite and not bears(file, _MADE_BY):
            raise FileExistsError(
                f"{file} exists and was not written by `rg.tl.report`. Choose another `path`, or replace it with "
                "`overwrite=True`."
            )
    return markdown, page


def _agreement(prediction: _results.Prediction, compared: dict[str, Any]) -> pd.DataFrame:
    """Agreement with measured values of the section, one line per gene."""
    from ragst_sd.tl._evaluate import evaluate

    table = prediction.table
    metrics = ["pearson", "rmse", *["coverage"] * ({_keys.LOWER, _keys.UPPER} <= set(table.layers))]
    long = evaluate(prediction.data, **compared, genes=None, n_genes=None, metrics=metrics)
    wide = long[long["gene"] != ""].groupby(["gene", "metric"])["value"].mean().unstack()
    wide = wide.reindex([gene for gene in table.var_names if gene in wide.index])
    wide[_keys.CV_PEARSON] = table.var[_keys.CV_PEARSON].reindex(wide.index)
    return wide.rename(columns={"coverage": "inside the interval"})


def _why_no_maps(prediction: _results.Prediction, *, pictures: bool) -> str:
    """Why nothing can be drawn; empty if it can."""
    sdata = prediction.data
    if not pictures:
        return "they were not asked for."
    if isinstance(sdata, AnnData):
        return "the report was written from a bare table, without its image."
    image = str(prediction.header["image_key"])
    if image not in sdata.images and image != _keys.PATCHES:
        return f"image `{image}` is not in the object."
    region = single_region(prediction.table)
    return "" if region in sdata.shapes or region in sdata.points else f"`{region}` is not in the object."


def _draw_maps(prediction: _results.Prediction, facts: dict[str, Any], *, truth_key: str | None) -> list[Picture]:
    """The best-trusted gene as predicted (and measured), and how far to trust each spot."""
    import ragst_sd.pl as pl

    pictures, sdata = [], require_sdata(prediction.data)
    table, score = prediction.table, facts["score"]
    shared: dict[str, Any] = {"prediction_key": prediction.key, "dpi": _DPI}
    values = np.asarray(table.X)
    allowed, beside = np.isfinite(values).any(axis=0), "predicted"
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
        pl.prediction(sdata, genes=gene, truth_key=truth_key or False, save=png, **shared)
        pictures.append(Picture("gene.png", png.getvalue(), f"{gene}, {beside}: {why}."))
    png = BytesIO()
    pl.reliability(sdata, truth_key=False, image_fade=0.5, save=png, **shared)
    return [*pictures, Picture("trust.png", png.getvalue(), _TRUST)]
