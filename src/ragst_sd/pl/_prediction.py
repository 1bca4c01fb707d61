"""`rg.pl.prediction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._results import MIN_CV_PEARSON, predicted
from ragst_sd._truth import measured_values
from ragst_sd._validate import name_list, require_key
from ragst_sd.pl import _maps, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._section import read_section


@draws
def prediction(
    sdata: SpatialData,
    *,
    genes: str | Sequence[str],
    prediction_key: str = "predicted",
    truth_key: str | Literal[False] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    interval: bool = False,
    min_cv_pearson: float = MIN_CV_PEARSON,
    cmap: str | Colormap = _style.SEQUENTIAL,
    cmap_difference: str | Colormap = _style.DIVERGING,
    cmap_interval: str | Colormap = _style.WIDTH,
    vmin: float | None = None,
    vmax: float | None = None,
    image_fade: float = 0.4,
    **drawing: Unpack[Drawing],
) -> dict[str, dict[str, Axes]] | None:
    """Plot predicted expression on the section, next to the measured values.

    Spots have their true size and shape. Measured and predicted values share one colour scale, the difference
    (predicted minus measured) has its own around zero. Colour scales leave out one spot in a hundred at each end, as
    the pointed ends of the colour bar show. Spots without a value are hollow. Genes that failed cross-validation are
    drawn in grey and say so.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    genes
        Gene, or genes: one row each, or three in a row where nothing measured is shown.
    prediction_key
        Name of the predicted table.
    truth_key
        Measured table to compare with; it is normalised as the prediction is. The only one of the same shapes if left
        out; `False` for none.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    interval
        Add a map of the width of the prediction interval, which the table has if it was predicted with
        `intervals=`. It is hatched if the intervals were calibrated over anything but donors.
    min_cv_pearson
        Genes whose `var["cv_pearson"]` is lower are not to be trusted. Genes that were not assessed are left as they
        are.
    cmap, cmap_difference, cmap_interval
        Colour maps of values, of differences and of interval widths.
    vmin, vmax
        Limits of the colour scale of values.
    image_fade
        How far the picture of the tissue is mixed with white, from 0 to 1.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` a dictionary from gene to a dictionary with the Axes `"predicted"` and, with a truth,
    `"measured"` and `"difference"`, and with `interval` also `"interval"`. With a truth the title of `"predicted"`
    names Pearson's r over the spots.

    Raises
    ------
    KeyError
        If a table, gene or layer does not exist, or the table has no intervals.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the image or the shapes are not in the object, or the truth shares no spots or is not counts.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> axes = rg.pl.prediction(query, genes=reference.var_names[0], truth_key="table", return_ax=True)
    >>> list(axes[reference.var_names[0]])
    ['measured', 'predicted', 'difference']
    """
    genes = name_list(genes, "genes")
    _maps.require_fade(image_fade)
    prediction = predicted(sdata, prediction_key)
    columns = prediction.genes(genes)
    notes, values = _maps.distrust(prediction, columns, min_cv_pearson), prediction.values(columns)
    measured = measured_values(prediction, truth_key, layer=layer, unit=unit, genes=genes)
    if interval:
        todo = "The table has no intervals: predict again with `rg.tl.predict(..., intervals=0.9)`."
        for bound in (_keys.LOWER, _keys.UPPER):
            require_key(bound, prediction.table.layers, "table.layers", todo)
    intervals = prediction.intervals(columns) if interval else None
    section = read_section(prediction)
    maps: dict[str, list[_maps.Map]] = {}
    for j, (name, note) in enumerate(zip(genes, notes, strict=True)):
        shown, title = values[:, j], f"{name} predicted"
        on_scale, colors = shown, _maps.GREYS if note else cmap
        if measured is not None:
            truth = measured[name].to_numpy()
            on_scale = np.concatenate([shown, truth])
            title = f"predicted, r = {_correlation(shown, truth)}"
        limits = _maps.limits_of(on_scale, vmin, vmax)
        label = str(prediction.header["unit"])
        row = [_maps.Map("predicted", title, shown, limits, colors, label, note, on_scale=on_scale)]
        if measured is not None:
            row.insert(0, _maps.Map("measured", f"{name} measured", truth, limits, colors, label, on_scale=on_scale))
            difference, title = shown - truth, f"predicted {_style.MINUS} measured"
            furthest = max(map(abs, _maps.limits_of(difference)))
            ends = (-furthest, furthest)
            row.append(_maps.Map("difference", title, difference, ends, cmap_difference, "difference"))
        if intervals is not None:
            wide, label = intervals.width[:, j], f"width of the {intervals.name}"
            ends, about = _maps.limits_of(wide), (intervals.caveat, intervals.hatch)
            row.append(_maps.Map("interval", "interval width", wide, ends, cmap_interval, label, *about))
        maps[name] = row

    panels = [panel for row in maps.values() for panel in row]
    per_row = len(row) if len(row) > 1 else min(3, len(genes))
    width, height, letters = _maps.size_with_words(section, 3.2, panels)
    width = per_row * width + _maps.BAR * sum(bool(panel.label) for panel in panels[:per_row]) + 0.2
    height *= -(-len(panels) // per_row)
    axes = {}
    with picture(width, height, **drawing) as figure:
        places = iter(_maps.axes_in_rows(figure, len(panels), per_row))
        for name, row in maps.items():
            axes[name] = {panel.kind: next(places) for panel in row}
            for panel in row:
                place, first = axes[name][panel.kind], panel is row[0]
                _maps.draw_map(place, section, panel, fade=image_fade, letters=letters, scale_bar=first)
    return axes


def _correlation(values: np.ndarray, measured: np.ndarray) -> str:
    from ragst_sd._metrics import pearson

    both = np.isfinite(values) & np.isfinite(measured)
    return _style.number(pearson(values[both, None], measured[both, None])[0] if both.sum() > 1 else np.nan, 2)
