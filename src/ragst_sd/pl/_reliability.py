"""`rg.pl.reliability`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._elements import require_sdata
from ragst_sd._results import MIN_CV_PEARSON, MORE_IS_BETTER, gene_index, predicted
from ragst_sd._validate import listing, require_choice
from ragst_sd.pl import _style
from ragst_sd.pl._curves import coverage, draw_calibration, draw_risk
from ragst_sd.pl._figure import finish, open_stage
from ragst_sd.pl._maps import (
    BAR_ROOM,
    MARGIN,
    NOTE,
    TITLE,
    Map,
    draw_bar,
    draw_map,
    gene_list,
    limits_of,
    map_size,
    require_fade,
    wrapped,
)
from ragst_sd.pl._measured import measured_values
from ragst_sd.pl._section import draw_spots, read_section
from ragst_sd.pl._trust import distrust, greys, has_intervals, intervals_of
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from ragst_sd.pl._curves import Coverage
    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._trust import Intervals

_WIDTH = "interval_width"
_OF_GENES = (_keys.DISAGREEMENT, _WIDTH)
# Title and colour-bar label of each map, and whether high values are the weak ones: dark is weak throughout.
_MAPS = {
    _keys.DISTANCE_PERCENTILE: ("distance to measured tissue", "percentile of held-out spots", True),
    _keys.APPEARANCE_DISTANCE: ("difference in appearance", "distance over the threshold", True),
    _keys.EFFECTIVE_N: ("measured spots cited", "effective number", False),
    _keys.N_DONORS: ("donors cited", "number of donors", False),
    _keys.EVIDENCE_SHARE: ("share of evidence", "evidence, not adjustment", False),
    _keys.DISAGREEMENT: ("disagreement of cited spots", "weighted SD", True),
    _WIDTH: ("interval width", "width", True),
}
_FIXED = {_keys.DISTANCE_PERCENTILE: (0.0, 100.0), _keys.EVIDENCE_SHARE: (0.0, 1.0)}
_PER_ROW = 4

# The design, in inches.
_MAP, _CURVE, _CURVE_TOP, _CURVE_BOTTOM, _CURVE_LEFT, _LEGEND = 2.6, 2.6, 0.8, 0.6, 0.65, 1.9


@dataclass(frozen=True)
class _Curves:
    calibration: Coverage | None
    risk: pd.DataFrame


def reliability(
    sdata: SpatialData,
    *,
    prediction_key: str = "predicted",
    gene: str | Sequence[str] | None = None,
    maps: Sequence[str] | None = None,
    truth_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    metric: str = "nrmse",
    min_cv_pearson: float = MIN_CV_PEARSON,
    image_fade: float = 0.4,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, Axes] | None:
    """Draw where a prediction is well grounded, and with a truth whether it knows how well.

    Maps of the section, dark where the ground is weak. Spots that no tissue of the reference is like are outlined. With
    `truth_key` two curves follow. Calibration: the share of measured values inside the intervals, at each level they were
    calibrated for, beside the diagonal; the mean over genes, and a band that holds 90 % of them. Risk and coverage:
    accuracy when only the best grounded spots are kept, by each of the maps. Panels whose input the table lacks are left out.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    prediction_key
        Name of the predicted table.
    gene
        Gene or genes that disagreement, interval width and the curves are about; all if left out.
    maps
        Some of `"distance_percentile"`, `"effective_n"`, `"n_donors"`, `"evidence_share"`, `"disagreement"` (mean over
        genes of `layers["disagreement"]`) and `"interval_width"` (mean over genes of `layers["upper"]` minus
        `["lower"]`), or any numeric column of the table's `.obs`. Left out: the first two; donors if their number
        varies, else the share of evidence if that varies; interval width, or disagreement if there are no intervals.
    truth_key
        Measured table for the curves; it is normalised as the prediction is.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    metric
        Accuracy that is drawn against the share of spots kept, of those that :func:`ragst_sd.get.risk_coverage` knows.
    min_cv_pearson
        If `gene` is one gene whose `var["cv_pearson"]` is lower, its maps are grey and say that it is not to be trusted.
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
    `None`, or if `return_ax` a dictionary of Axes: one per map under its name in `maps`, `"calibration"` (with a truth and
    intervals) and `"risk_coverage"` (with a truth).

    Raises
    ------
    KeyError
        If a table, gene, layer or map does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the image or the shapes are not in the object, the table has nothing to draw, the truth shares no spots, or
        the metric is not known.

    Notes
    -----
    The half-width at a level is its quantile (`varm["interval_quantiles"]`, levels in
    `uns["retrieval"]["interval_levels"]`) times the scale of the spot and gene, which is (upper - X) over the quantile of
    the level that the table was predicted with. Intervals that were calibrated over anything but donors are hatched: their
    level need not hold for a new donor.

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
    >>> axes = rg.pl.reliability(query, return_ax=True)
    >>> list(axes)[:2]
    ['distance_percentile', 'effective_n']
    """
    from ragst_sd import get

    require_sdata(sdata)
    require_fade(image_fade)
    table, header = predicted(sdata, prediction_key)
    genes = None if gene is None else gene_list(gene)
    columns = np.arange(table.n_vars) if genes is None else gene_index(table, genes)
    notes = [""] if genes is None or len(genes) > 1 else distrust(table, genes, min_cv_pearson)
    intervals = intervals_of(table, header, columns) if has_intervals(table) else None
    names = _chosen(table, intervals, maps)
    about = "" if genes is None else f", {genes[0]}" if len(genes) == 1 else f", {len(genes)} genes"
    panels = [_map(table, name, columns, intervals, about, notes[0]) for name in names]
    section = read_section(sdata, table, header, prediction_key)
    curves = None
    if truth_key is not None:
        truth: dict[str, Any] = {"truth_key": truth_key, "layer": layer, "unit": unit, "genes": genes}
        risk = get.risk_coverage(sdata, prediction_key=prediction_key, by=names, **truth)
        require_choice(metric, list(dict.fromkeys(risk["metric"])), "metric")
        calibration = None if intervals is None else _calibration(sdata, table, header, **truth)
        curves = _Curves(calibration, risk[risk["metric"] == metric])

    box, size = map_size(section, _MAP)
    per_row = min(_PER_ROW, len(panels))
    block = size[0] + BAR_ROOM
    room = TITLE + NOTE * max(len(wrapped(panel.note, block - 0.1)) for panel in panels)
    maps_height = -(-len(panels) // per_row) * (room + size[1]) + MARGIN
    width = max(per_row * block, _curves_width(curves)) + 2 * MARGIN
    height = maps_height + (0 if curves is None else _CURVE_TOP + _CURVE + _CURVE_BOTTOM) + MARGIN
    stage = open_stage(width, height, ax=ax, figsize=figsize, dpi=dpi)
    axes = {}
    for i, panel in enumerate(panels):
        left, top = MARGIN + (i % per_row) * block, MARGIN + (i // per_row) * (room + size[1]) + room - 0.05
        drawn, spots = draw_map(
            stage, section, panel, box, (left, top, *size), fade=image_fade, scale_bar=i == 0, note_width=block - 0.1
        )
        if panel.kind == _keys.DISTANCE_PERCENTILE:
            draw_spots(
                drawn, section, np.flatnonzero(table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool)), facecolors="none",
                edgecolors=_style.ADJUSTMENT, linewidths=stage.points(1.6), zorder=4, label=_keys.OUT_OF_REFERENCE,
            )  # fmt: skip
        draw_bar(
            stage,
            spots,
            panel.label,
            panel.limits,
            panel.values,
            left + size[0] + 0.08,
            top,
            size[1],
            hatch=panel.hatch,
        )
        axes[panel.kind] = drawn
    if curves is not None:
        axes |= _draw_curves(stage, curves, intervals, maps_height)
    return finish(stage, axes, show=show, save=save, return_ax=return_ax, dpi=dpi)


def _chosen(table: AnnData, intervals: Intervals | None, maps: Sequence[str] | None) -> list[str]:
    from pandas.api.types import is_numeric_dtype

    has = [name for name in table.obs if is_numeric_dtype(table.obs[name])]
    has += [_keys.DISAGREEMENT] if _keys.DISAGREEMENT in table.layers else []
    has += [] if intervals is None else [_WIDTH]
    if maps is not None:
        wanted = [maps] if isinstance(maps, str) else list(dict.fromkeys(maps))
        missing = [name for name in wanted if name not in has]
        if missing or not wanted:
            found = f"has {listing(missing)}, which the table has not" if missing else "is empty"
            msg = f"`maps` {found}. Available: {listing(has)}."
            raise KeyError(msg)
        return wanted
    known = [name for name in (_keys.DISTANCE_PERCENTILE, _keys.EFFECTIVE_N) if name in has and _any(table, name)]
    # A map of one colour says less than the next.
    varied = [name for name in (_keys.N_DONORS, _keys.EVIDENCE_SHARE) if name in has and _varies(table, name)]
    last = [name for name in (_WIDTH, _keys.DISAGREEMENT) if name in has]
    chosen = [*known, *varied[:1], *last[:1]]
    if not chosen:
        msg = f"The table has nothing to draw: none of {listing(_MAPS)}. Predict again with `rg.tl.predict`."
        raise ValueError(msg)
    return chosen


def _any(table: AnnData, name: str) -> bool:
    return bool(np.isfinite(table.obs[name].to_numpy(float)).any())


def _varies(table: AnnData, name: str) -> bool:
    values = table.obs[name].to_numpy(float)
    values = values[np.isfinite(values) & (table.obs[_keys.EFFECTIVE_N].notna().to_numpy())]
    return len(values) > 0 and bool(np.ptp(values) > 0)


def _map(
    table: AnnData, name: str, columns: np.ndarray, intervals: Intervals | None, about: str, distrusted: str
) -> Map:
    title, label, weak_is_high = _MAPS.get(name, (name.replace("_", " "), "", name not in MORE_IS_BETTER))
    cmap: Any = f"{_style.SEQUENTIAL}_r" if weak_is_high else _style.SEQUENTIAL
    note, hatch = "", None
    if name in _OF_GENES:
        many = len(columns) > 1
        label = f"{label}, mean of {len(columns)} genes" if many else label
        title, note = title + about, distrusted
        cmap = greys() if distrusted else cmap
        if name == _WIDTH and intervals is not None:
            values, hatch = _mean(intervals.width), intervals.hatch
            label = f"{intervals.name}{', mean over genes' if many else ''}"
            note = "; ".join(part for part in (intervals.caveat, distrusted) if part)
        else:
            label = f"SD{', mean over genes' if many else ''}"
            values = _mean(dense(table.layers[_keys.DISAGREEMENT][:, columns]))
    else:
        values = table.obs[name].to_numpy(float)
    if name == _keys.N_DONORS:
        # A spot outside the image cites nobody, which is not a small number of donors.
        values = np.where(values > 0, values, np.nan)
    if name == _keys.DISTANCE_PERCENTILE:
        outside = int(table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool).sum())
        note = f"outlined: {outside} of {table.n_obs} spots out of reference" if outside else "no spot out of reference"
    return Map(name, title, values, _FIXED.get(name) or limits_of(values), cmap, label, note, hatch)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the genes that have a value; NaN for spots without any."""
    has = np.isfinite(values)
    count = has.sum(axis=1)
    total = np.where(has, values, 0.0).sum(axis=1, dtype=float)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _calibration(
    sdata: SpatialData,
    table: AnnData,
    header: dict[str, Any],
    *,
    truth_key: str,
    layer: str | None,
    unit: str,
    genes: list[str] | None,
) -> Coverage | None:
    measured, shared = measured_values(sdata, table, header, truth_key, layer=layer, unit=unit, genes=genes)
    columns = gene_index(table, shared)
    return coverage(table, header, columns, intervals_of(table, header, columns), measured)


def _curves_width(curves: _Curves | None) -> float:
    if curves is None:
        return 0.0
    one = _CURVE_LEFT + _CURVE
    return one + _LEGEND + (0.0 if curves.calibration is None else one + 0.35)


def _draw_curves(stage: Stage, curves: _Curves, intervals: Intervals | None, top: float) -> dict[str, Axes]:
    axes, left = {}, MARGIN + _CURVE_LEFT
    if curves.calibration is not None and intervals is not None:
        ax = stage.axes(left, top + _CURVE_TOP, _CURVE, _CURVE, "calibration")
        draw_calibration(stage, ax, curves.calibration, intervals)
        axes["calibration"] = ax
        left += _CURVE + _CURVE_LEFT + 0.35
    ax = stage.axes(left, top + _CURVE_TOP, _CURVE, _CURVE, "risk_coverage")
    draw_risk(stage, ax, curves.risk)
    axes["risk_coverage"] = ax
    return axes
