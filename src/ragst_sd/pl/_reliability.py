"""`rg.pl.reliability`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_numeric_dtype
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._metrics import finite_mean
from ragst_sd._results import MIN_CV_PEARSON, Intervals, Prediction, predicted
from ragst_sd._truth import measured_values
from ragst_sd._validate import listing, name_list, names_among, require_choice
from ragst_sd.pl import _maps, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._section import draw_rims, read_section

_WIDTH = "interval_width"
# Title and colour-bar label of each map, and whether high values mean larger errors on held-out donors: these are drawn
# dark. The others have a colour scale of which neither end is good or bad.
_MAPS = {
    _keys.DISAGREEMENT: ("disagreement of cited spots", "SD", True),
    _WIDTH: ("interval width", "", True),
    _keys.DISTANCE_PERCENTILE: ("distance to measured tissue", "percentile of held-out spots", True),
    _keys.APPEARANCE_DISTANCE: ("difference in appearance", "distance over the threshold", True),
    _keys.EFFECTIVE_N: ("measured spots cited", "effective number", False),
    _keys.N_DONORS: ("donors cited", "number of donors", False),
    _keys.EVIDENCE_SHARE: ("share of evidence", "evidence, not adjustment", False),
}
_FIXED = {_keys.DISTANCE_PERCENTILE: (0.0, 100.0), _keys.EVIDENCE_SHARE: (0.0, 1.0)}

# Share of the genes that the band of the calibration curve holds; single genes reach far beyond.
_BAND = 0.9
_TITLES = {"rmse": "RMSE", "nrmse": "RMSE / SD of the gene", "mae": "mean absolute error", "pearson": "Pearson's r"}
# Orders that say what the others could reach at worst and at best.
_YARDSTICKS = {"random": (0, (1, 1)), "oracle": (0, (6, 2, 1, 2))}
_LINES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


@draws
def reliability(
    sdata: SpatialData,
    *,
    prediction_key: str = "predicted",
    genes: str | Sequence[str] | None = None,
    maps: Sequence[str] | None = None,
    truth_key: str | Literal[False] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    metric: str = "nrmse",
    min_cv_pearson: float = MIN_CV_PEARSON,
    image_fade: float = 0.4,
    **drawing: Unpack[Drawing],
) -> dict[str, Axes] | None:
    """Plot where a prediction can be trusted and, with a truth, whether its uncertainty is right.

    The maps of the section are dark where larger errors are expected. Disagreement of the cited spots, widths of
    intervals and, to a lesser extent, the distance to measured tissue order errors on held-out donors. The other
    columns do not, and have neutral colours. Spots that are unlike all tissue of the reference are outlined. With a
    truth, two curves follow. Calibration is the share of measured values inside the intervals at each calibrated level,
    with the diagonal: the mean over genes, and a band that contains 90 % of them. Risk and coverage is the accuracy
    when the most doubtful spots are left out, ordered by each of the maps. If the RMSE of a gene is above its standard
    deviation, the error in its level outweighs the gain from its pattern, for example between donors of different
    depth. No order of spots can detect this. Panels are left out if the table lacks their input.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    prediction_key
        Name of the predicted table.
    genes
        Gene or genes that disagreement, interval width and the curves are about; all if left out.
    maps
        Some of `"distance_percentile"`, `"effective_n"`, `"n_donors"`, `"evidence_share"`, `"disagreement"` (mean over
        genes of `layers["disagreement"]`) and `"interval_width"` (mean over genes of `layers["upper"]` minus
        `["lower"]`), or any numeric column of the table's `.obs`. Left out: disagreement, interval width and
        `"distance_percentile"`, as far as the table has them.
    truth_key
        Measured table for the curves; it is normalised as the prediction is. The only one of the same shapes if left
        out; `False` for none.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    metric
        Accuracy to plot against the share of spots kept: a metric of :func:`ragst_sd.get.risk_coverage`.
    min_cv_pearson
        If `genes` is one gene whose `var["cv_pearson"]` is lower, its maps are grey and say that it is not to be
        trusted.
    image_fade
        How far the picture of the tissue is mixed with white, from 0 to 1.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` a dictionary of Axes: one per map under its name in `maps`, `"calibration"` (with a truth
    and intervals) and `"risk_coverage"` (with a truth).

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
    `uns["retrieval"]["interval_levels"]`) times the scale of the spot and gene, which is (upper - X) over the quantile
    of the level that the table was predicted with. Intervals that were calibrated over anything but donors are
    hatched: their level need not hold for a new donor.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> axes = rg.pl.reliability(query, return_ax=True)
    >>> list(axes)[:2]
    ['disagreement', 'distance_percentile']
    """
    from ragst_sd import get

    _maps.require_fade(image_fade)
    prediction = predicted(sdata, prediction_key)
    table, genes = prediction.table, None if genes is None else name_list(genes, "genes")
    columns, about, note = prediction.genes(genes), "", ""
    if genes is not None and len(genes) == 1:
        about, note = f", {genes[0]}", _maps.distrust(prediction, columns, min_cv_pearson)[0]
    elif genes is not None:
        about = f", {len(genes)} genes"
    intervals = prediction.intervals(columns)
    names = _chosen(table, intervals, maps)
    panels = [_map(prediction, name, columns, intervals, about, note) for name in names]
    section = read_section(prediction)
    curves: dict[str, Callable[[Axes], None]] = {}
    measured = measured_values(prediction, truth_key, layer=layer, unit=unit, genes=genes)
    if measured is not None:
        truth: dict[str, Any] = {"truth_key": truth_key, "layer": layer, "unit": unit, "genes": genes}
        risk = get.risk_coverage(sdata, prediction_key=prediction_key, by=names, **truth)
        require_choice(metric, list(dict.fromkeys(risk["metric"])), "metric")
        inside = share_inside(prediction, measured)
        if intervals is not None and len(inside):
            curves["calibration"] = partial(draw_calibration, inside=inside, hatch=intervals.hatch)
        curves["risk_coverage"] = partial(draw_risk, frame=risk[risk["metric"] == metric])

    per_row = min(4, len(panels))
    width, height, letters = _maps.size_with_words(section, 2.6, panels)
    # Inches of the maps and of the curves below them.
    heights = [-(-len(panels) // per_row) * height, 3.9][: 1 + bool(curves)]
    width, height = max(per_row * (width + _maps.BAR), 5.0 * len(curves)), sum(heights)
    with picture(width, height, **drawing) as figure:
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        axes = dict(zip(names, _maps.axes_in_rows(figure, len(panels), per_row, grid[0]), strict=True))
        for name, panel in zip(names, panels, strict=True):
            _maps.draw_map(axes[name], section, panel, fade=image_fade, letters=letters, scale_bar=name == names[0])
        if _keys.DISTANCE_PERCENTILE in axes:
            outside = np.flatnonzero(table.obs[_keys.OUT_OF_REFERENCE])
            style: dict[str, Any] = {"label": _keys.OUT_OF_REFERENCE, "zorder": 4}
            draw_rims(axes[_keys.DISTANCE_PERCENTILE], section, outside, _style.ADJUSTMENT, 1.6, **style)
        if curves:
            places = _maps.axes_in_rows(figure, len(curves), len(curves), grid[1])
            for place, (name, draw) in zip(places, curves.items(), strict=True):
                axes[name] = place
                draw(place)
    return axes


def _chosen(table: AnnData, intervals: Intervals | None, maps: Sequence[str] | None) -> list[str]:
    """The maps to draw, as far as the table has what they show."""
    over_genes = {_keys.DISAGREEMENT: _keys.DISAGREEMENT in table.layers, _WIDTH: intervals is not None}
    chosen = [name for name, there in over_genes.items() if there]
    if maps is not None:
        has = [*table.obs.columns[list(map(is_numeric_dtype, table.obs.dtypes))], *chosen]
        return names_among(maps, has, "maps", ": the table has no", KeyError)
    chosen += [_keys.DISTANCE_PERCENTILE] if table.obs.count().get(_keys.DISTANCE_PERCENTILE, 0) else []
    if not chosen:
        raise ValueError(f"The table has nothing to draw: none of {listing(_MAPS)}. Predict again.")
    return chosen


def _map(
    prediction: Prediction, name: str, columns: np.ndarray, intervals: Intervals | None, about: str, distrusted: str
) -> _maps.Map:
    """The map of this name; `about` says which genes it is of, and `distrusted` that they are not to be trusted."""
    table = prediction.table
    title, label, orders_errors = _MAPS.get(name, (name.replace("_", " "), "", False))
    cmap: Any = f"{_style.SEQUENTIAL}_r" if orders_errors else _style.NEUTRAL
    notes, hatch = [""], None
    if name == _WIDTH and intervals is not None:
        values, hatch = finite_mean(intervals.width, axis=1), intervals.hatch
        label, notes = intervals.name, [intervals.caveat]
    elif name == _keys.DISAGREEMENT:
        values = finite_mean(prediction.values(columns, layer=name), axis=1)
    else:
        values = table.obs[name].to_numpy(float)
    if name in (_keys.DISAGREEMENT, _WIDTH):
        title += about
        label += ", mean over genes" * (len(columns) > 1)
        notes.append(distrusted)
        cmap = _maps.GREYS if distrusted else cmap
    if name == _keys.N_DONORS:
        # A spot outside the image cites no spots, which is not a small number of donors.
        values = np.where(values > 0, values, np.nan)
    if name == _keys.DISTANCE_PERCENTILE:
        n_outside = int(table.obs[_keys.OUT_OF_REFERENCE].sum())
        outlined = f"outlined: {n_outside} of {table.n_obs} spots out of reference"
        notes = [outlined if n_outside else "no spot out of reference"]
    note = "; ".join(part for part in notes if part)
    return _maps.Map(name, title, values, _FIXED.get(name) or _maps.limits_of(values), cmap, label, note, hatch)


def share_inside(prediction: Prediction, measured: pd.DataFrame) -> pd.DataFrame:
    """Share of the truth inside the intervals, by gene and calibrated level, and what a level was calibrated over.

    Genes without any interval or truth are left out. The half-width at level l is `varm["interval_quantiles"][:, l]`
    times a scale of each spot and gene, which the interval of the table gives: (upper - X) over the quantile of its own
    level.
    """
    header, columns = prediction.header, prediction.genes(list(measured))
    intervals, values = prediction.intervals(columns), prediction.values(columns)
    if intervals is None:
        return pd.DataFrame()
    levels = np.asarray(header[_keys.INTERVAL_LEVELS], dtype=float)
    units = labels(np.atleast_1d(header.get(_keys.INTERVAL_UNITS, [intervals.unit] * len(levels))))
    quantiles = np.asarray(prediction.table.varm[_keys.INTERVAL_QUANTILES], dtype=float)[columns]
    half = intervals.upper - values
    half[~(np.isfinite(half) & (half > 0))] = np.nan
    # The error in units of the scale, so that it can be compared with the quantile of any level; NaN where not known.
    score = np.abs(measured.to_numpy() - values) * quantiles[:, np.abs(levels - intervals.level).argmin()] / half
    inside = [np.where(np.isfinite(score), score <= limits, np.nan) for limits in quantiles.T]
    by_level = pd.MultiIndex.from_arrays([levels, units])
    by_gene = pd.DataFrame(np.transpose([finite_mean(spots, axis=0) for spots in inside]), columns=by_level)
    return by_gene.dropna().sort_index(axis=1)


def draw_calibration(ax: Axes, inside: pd.DataFrame, hatch: str | None) -> None:
    """Draw coverage against level; perfect intervals lie on the diagonal."""
    levels, units = (inside.columns.get_level_values(i) for i in range(2))
    mean = inside.mean()
    low, high = np.quantile(inside, [(1 - _BAND) / 2, (1 + _BAND) / 2], axis=0)
    ax.plot([0, 1], [0, 1], color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="diagonal")
    words = "one gene"
    if len(inside) > 1:
        band: dict[str, Any] = {"facecolor": _style.BAND, "edgecolor": "0.5", "lw": 0, "zorder": 0.5}
        ax.fill_between(levels, low, high, hatch=hatch, gid="range of genes", **band)
        words = f"mean of {len(inside)} genes, band: {_style.percent(_BAND)} of them"
    ax.plot(levels, mean, color=_style.EVIDENCE, lw=2, zorder=3, gid="coverage")
    for level, share, unit in zip(levels, mean, units, strict=True):
        fill = _style.EVIDENCE if unit == _keys.DONOR else "white"
        ax.plot(level, share, "o", ms=6, mew=1.6, mec=_style.EVIDENCE, mfc=fill, zorder=4, gid=unit)
    start = max(0.0, np.floor(10 * (min(levels.min(), low.min()) - 0.03)) / 10)
    ax.set(xlim=(start, 1), ylim=(start, 1), xlabel="nominal level of the interval", ylabel="share of truth inside")
    others = sorted(set(units) - {_keys.DONOR})
    if others:
        words += f"\nopen: calibrated over {' or '.join(f'{unit}s' for unit in others)}, not donors"
    _finish(ax, "calibration", "Calibration", words)


def draw_risk(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw one metric against the share of spots kept, best grounded first, one line per order."""
    styles = zip(cycle(_style.PALETTE), cycle(_LINES), strict=False)
    for name, line in frame.groupby("by", sort=False):
        line = line.sort_values("share")
        dashes: Any = _YARDSTICKS.get(name)
        color, width = _style.MUTED, 1.3
        if dashes is None:
            (color, dashes), width = next(styles), 2
        label = name.replace("_", " ")
        ax.plot(line["share"], line["value"], color=color, ls=dashes, lw=width, label=label, gid=name)
    metric = str(frame["metric"].iloc[0])
    words = "accuracy on the spots that are kept"
    if metric == "nrmse" and frame["value"].max() > 1:
        ax.axhline(1, color=_style.MUTED, lw=1, ls=(0, (4, 3)), zorder=1, gid="own mean")
        words += "\nabove 1: further off than the gene's own mean in this section,"
        words += "\nas where its level differs between donors"
    ax.margins(y=0.12)
    ax.set(xlim=(0, 1), xlabel="share of spots kept, those in doubt left out first")
    ax.set_ylabel(_TITLES.get(metric, metric.replace("_", " ")))
    ax.legend(loc="upper left", bbox_to_anchor=(1.04, 1.0), handlelength=2.6, title="spots ranked by", alignment="left")
    _finish(ax, "risk_coverage", "Risk and coverage", words)


def _finish(ax: Axes, name: str, title: str, words: str) -> None:
    """What both curves have: a square with few ticks, a grid, a title and words below it."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.grid()
    ax.set_box_aspect(1)
    ax.set(label=name, anchor="W")
    _style.set_title(ax, title, words)
