"""`rg.pl.composite`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from spatialdata import SpatialData

from ragst_sd._results import MIN_CV_PEARSON, predicted
from ragst_sd._validate import name_list
from ragst_sd.pl import _maps, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._section import draw_spots, read_section

_COLORS = ("#E69F00", "#009E73", "#5659CC")


@draws
def composite(
    sdata: SpatialData,
    *,
    genes: str | Sequence[str],
    prediction_key: str = "predicted",
    min_cv_pearson: float = MIN_CV_PEARSON,
    image_fade: float = 0.5,
    **drawing: Unpack[Drawing],
) -> Axes | None:
    """Plot up to three predicted genes in one map, one colour each.

    The colours of a spot are mixed like inks: a spot with little of all genes is white, one with much of several genes
    is dark. Each gene has its own scale, from its 2nd to its 98th percentile over the spots.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    genes
        One to three genes.
    prediction_key
        Name of the predicted table.
    min_cv_pearson
        Genes whose `var["cv_pearson"]` is lower are named as not to be trusted below the map.
    image_fade
        How far the picture of the tissue is mixed with white, from 0 to 1.
    {figure_parameters}

    Returns
    -------
    `None`, or the Axes of the map if `return_ax`.

    Raises
    ------
    KeyError
        If the table or a gene does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If there are more than three genes, or the image or the shapes are not in the object.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> ax = rg.pl.composite(query, genes=reference.var_names[:3], return_ax=True)
    >>> len(ax.texts)
    3
    """
    names = name_list(genes, "genes")
    if len(names) > len(_COLORS):
        raise ValueError(
            f"`genes` names {len(names)} genes; one map shows {len(_COLORS)} at most. `rg.pl.prediction` shows more."
        )
    _maps.require_fade(image_fade)
    prediction = predicted(sdata, prediction_key)
    columns = prediction.genes(names)
    values, notes = prediction.values(columns), _maps.distrust(prediction, columns, min_cv_pearson)
    section = read_section(prediction)
    known = np.isfinite(values).all(axis=1)
    low, high = np.percentile(values[known], [2, 98], axis=0) if known.any() else (0.0, 1.0)
    shares = np.clip((values[known] - low) / np.where(high > low, high - low, 1), 0, 1)
    inks = 1 - np.array([to_rgb(color) for color in _COLORS[: len(names)]])
    width, height = _maps.map_size(section, 5.0)
    with picture(width, height + _maps.TITLE, **drawing) as figure:
        drawn = figure.add_subplot()
        _maps.draw_section(drawn, section, known, fade=image_fade)
        colors = 1 - np.clip(shares @ inks, 0, 1)
        draw_spots(drawn, section, np.flatnonzero(known), facecolors=colors, linewidths=0, zorder=3)
        for i, (name, note) in enumerate(zip(names, notes, strict=True)):
            words = f"{name} (not to be trusted)" if note else name
            color = _style.UNTRUSTED if note else _COLORS[i]
            drawn.text(i / len(names), 1.02, words, color=color, weight="bold", transform=drawn.transAxes)
    return drawn
