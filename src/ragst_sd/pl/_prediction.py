"""`rg.pl.prediction`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._elements import require_sdata
from ragst_sd._results import gene_index, predicted
from ragst_sd._validate import require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import finish, open_stage
from ragst_sd.pl._measured import measured_values
from ragst_sd.pl._section import corner_is_free, draw_image, draw_spots, extent_of, read_section, spot_reach
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._section import Section

# The design, in inches.
_PANEL, _TITLE, _MARGIN, _BAR, _BAR_ROOM, _BETWEEN = 3.2, 0.38, 0.12, 0.12, 0.95, 0.15
_PER_ROW = 3
_IMAGE_PX = 900
# A few extreme spots would otherwise take the whole colour scale.
_TAILS = (0.01, 0.99)


@dataclass(frozen=True)
class _Panel:
    """One map."""

    kind: str
    title: str
    values: np.ndarray
    limits: tuple[float, float]
    cmap: str | Colormap
    label: str
    """Of the colour bar; empty if the next panel shares it."""


def prediction(
    sdata: SpatialData,
    *,
    gene: str | Sequence[str],
    prediction_key: str = "predicted",
    truth_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    cmap: str | Colormap = _style.SEQUENTIAL,
    cmap_difference: str | Colormap = _style.DIVERGING,
    vmin: float | None = None,
    vmax: float | None = None,
    image_fade: float = 0.4,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, dict[str, Axes]] | None:
    """Draw predicted expression on the section, and beside it what was measured.

    Spots have their true size and shape. Measured and predicted values share one colour scale, the difference
    (predicted minus measured) has its own around zero. Colour scales leave out one spot in a hundred at either end,
    which the pointed ends of the colour bar tell. Spots without a value are hollow.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    gene
        Gene, or genes: one row each, or three in a row without `truth_key`.
    prediction_key
        Name of the predicted table.
    truth_key
        Measured table to compare with; it is normalised as the prediction is.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    cmap, cmap_difference
        Colour maps of values and of differences.
    vmin, vmax
        Limits of the colour scale of values.
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
    `None`, or if `return_ax` a dictionary from gene to a dictionary with the Axes `"predicted"` and, with a truth,
    `"measured"` and `"difference"`. The title of `"predicted"` then names Pearson's r over the spots.

    Raises
    ------
    KeyError
        If a table, gene or layer does not exist.
    ValueError
        If the image or the shapes are not in the object, or the truth shares no spots or is not counts.

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
    >>> axes = rg.pl.prediction(query, gene=reference.var_names[0], truth_key="table", return_ax=True)
    >>> list(axes[reference.var_names[0]])
    ['measured', 'predicted', 'difference']
    """
    require_sdata(sdata)
    genes = _genes(gene)
    if not 0 <= image_fade <= 1:
        msg = f"`image_fade` is {image_fade!r}; it must lie between 0 (the picture as it is) and 1 (white)."
        raise ValueError(msg)
    table, header = predicted(sdata, prediction_key)
    values = dense(table.X[:, gene_index(table, genes)])
    measured = None if truth_key is None else measured_values(sdata, table, header, truth_key, layer, unit, genes)
    section = read_section(sdata, table, header, prediction_key)
    maps = {"cmap": cmap, "cmap_difference": cmap_difference, "vmin": vmin, "vmax": vmax, "unit": str(header["unit"])}
    rows = [
        _panels(one, values[:, j], None if measured is None else measured[:, j], **maps) for j, one in enumerate(genes)
    ]

    box = extent_of(section, spot_reach(section))
    shrink = _PANEL / max(box[1] - box[0], box[3] - box[2])
    size = ((box[1] - box[0]) * shrink, (box[3] - box[2]) * shrink)
    per_row = 1 if measured is not None else min(_PER_ROW, len(rows))
    block = _block_width(rows[0], size[0])
    n_rows = -(-len(rows) // per_row)
    height = n_rows * (_TITLE + size[1]) + 2 * _MARGIN
    stage = open_stage(per_row * block + 2 * _MARGIN, height, ax=ax, figsize=figsize, dpi=dpi)
    axes = {}
    for i, (one, panels) in enumerate(zip(genes, rows, strict=True)):
        left = _MARGIN + (i % per_row) * block
        top = _MARGIN + (i // per_row) * (_TITLE + size[1]) + _TITLE - 0.05
        axes[one] = _draw_row(stage, section, panels, box, size, left, top, image_fade)
    return finish(stage, axes, show=show, save=save, return_ax=return_ax, dpi=dpi)


def _genes(gene: str | Sequence[str]) -> list[str]:
    genes = [gene] if isinstance(gene, str) else list(dict.fromkeys(gene))
    for one in genes:
        require_type(one, str, "gene", "Give a name or a list of names.")
    if not genes:
        msg = "`gene` is empty; name at least one gene."
        raise ValueError(msg)
    return genes


def _panels(
    gene: str,
    values: np.ndarray,
    measured: np.ndarray | None,
    *,
    cmap: str | Colormap,
    cmap_difference: str | Colormap,
    vmin: float | None,
    vmax: float | None,
    unit: str,
) -> list[_Panel]:
    if measured is None:
        return [_Panel("predicted", f"{gene} predicted", values, _limits(values, vmin, vmax), cmap, unit)]
    limits = _limits(np.concatenate([values, measured]), vmin, vmax)
    difference = values - measured
    furthest = max(map(abs, _limits(difference, None, None)))
    return [
        _Panel("measured", f"{gene} measured", measured, limits, cmap, ""),
        _Panel("predicted", f"predicted, r = {_correlation(values, measured)}", values, limits, cmap, unit),
        _Panel(
            "difference", f"predicted {_style.MINUS} measured", difference, (-furthest, furthest), cmap_difference,
            "difference",
        ),
    ]  # fmt: skip


def _limits(values: np.ndarray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, _TAILS) if len(finite) else (0.0, 1.0)
    if low == high and len(finite):
        low, high = finite.min(), finite.max()
    low, high = float(low if vmin is None else vmin), float(high if vmax is None else vmax)
    if low > high:
        msg = f"The colour scale would run from {low:.4g} to {high:.4g}. Give `vmin` below `vmax`."
        raise ValueError(msg)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _correlation(values: np.ndarray, measured: np.ndarray) -> str:
    from ragst_sd.tl._metrics import pearson

    both = np.isfinite(values) & np.isfinite(measured)
    score = pearson(values[both, None], measured[both, None])[0] if both.sum() > 1 else np.nan
    return _style.number(score, 2) if np.isfinite(score) else "n/a"


def _block_width(panels: list[_Panel], width: float) -> float:
    """Width of the panels of one gene with their colour bars."""
    return sum(width + (_BAR_ROOM if panel.label else _BETWEEN) for panel in panels)


def _draw_row(
    stage: Stage,
    section: Section,
    panels: list[_Panel],
    box: tuple[float, float, float, float],
    size: tuple[float, float],
    left: float,
    top: float,
    fade: float,
) -> dict[str, Axes]:
    axes = {}
    for i, panel in enumerate(panels):
        ax = stage.axes(left, top, *size, panel.kind)
        draw_image(ax, section.pyramid, box, edge_px=_IMAGE_PX, fade=fade)
        has = np.isfinite(panel.values)
        if not has.all():
            draw_spots(
                ax, section, np.flatnonzero(~has), facecolors="none", edgecolors=_style.NO_VALUE,
                linewidths=stage.points(0.9), zorder=2, label="no value",
            )  # fmt: skip
        spots = draw_spots(ax, section, np.flatnonzero(has), cmap=panel.cmap, linewidths=0, zorder=3, label=panel.kind)
        spots.set_array(panel.values[has])
        spots.set_clim(*panel.limits)
        ax.set_title(panel.title, fontsize=stage.points(11), loc="left", pad=stage.points(4))
        if i == 0:
            _style.scale_bar(ax, section.mpp, stage.points(9), right=corner_is_free(section, box))
        _style.frame(ax)
        axes[panel.kind] = ax
        left += size[0] + _BETWEEN
        if panel.label:
            shown = [other.values for other in panels if other.limits == panel.limits]
            _draw_bar(stage, spots, panel, np.concatenate(shown), left - _BETWEEN + 0.08, top, size[1])
            left += _BAR_ROOM - _BETWEEN
    return axes


def _draw_bar(
    stage: Stage, spots: Any, panel: _Panel, values: np.ndarray, left: float, top: float, height: float
) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = panel.limits
    under, over = bool((values < low).any()), bool((values > high).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[under, over]
    length = 0.8 * height
    cax = stage.axes(left, top + (height - length) / 2, _BAR, length, "colorbar")
    bar = stage.figure.colorbar(spots, cax=cax, extend=extend, ticks=MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.outline.set_linewidth(0)
    bar.ax.tick_params(labelsize=stage.points(8.5))
    bar.set_label(panel.label, fontsize=stage.points(9))
