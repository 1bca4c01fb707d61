"""`rg.pl.perturbation`."""

from __future__ import annotations

from textwrap import fill
from typing import Unpack

from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from spatialdata import SpatialData

from ragst_sd._validate import require_positive
from ragst_sd.pl import _response_panels as panels
from ragst_sd.pl import _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._maps import BAR, LETTERS, NOTE, TITLE, draw_map, require_fade, size_with_words
from ragst_sd.pl._responses import read_responses
from ragst_sd.pl._section import read_section

# Inches.
_MAP, _SCATTER, _SIDE, _ROW, _HEAD, _STATES = 3.9, 3.6, 5.4, 0.3, 0.6, 0.6
_SCOPE = (
    "Direct response of the cells of each spot, predicted from a screen of other cells. Nothing is said about "
    "effects on neighbours or about causes, and no measurement in tissue stands behind it."
)


@draws
def perturbation(
    data: SpatialData | AnnData,
    reference: AnnData | None = None,
    *,
    prediction_key: str = "perturbed",
    perturbation: str | None = None,
    context: str | None = None,
    truth: AnnData | None = None,
    group_by: str = "context",
    n_shown: int = 8,
    n_genes: int = 10,
    cmap: str | Colormap = _style.SEQUENTIAL,
    cmap_weights: str | Colormap = _style.SHARE,
    vmin: float | None = None,
    vmax: float | None = None,
    image_fade: float = 0.5,
    **drawing: Unpack[Drawing],
) -> dict[str, Axes] | None:
    """Plot a predicted response: against the measured response, with the cited responses, and on the tissue.

    The first panel shows the predicted against the measured response by gene. It needs a reference that measured the
    same perturbation in this context, and a prediction that left it out. The two must not share controls, because their
    noise would count as agreement. So the prediction is repeated from responses against one half of the controls and
    compared with the response against the other half. Bars show the standard error of the measurement (against all
    controls). Without `truth`, this panel is missing if each spot has its own response, and for `"pt_rag"`, whose
    network was trained on all controls, and on the response itself if the reference contains it. The second panel shows
    the retrieved perturbations with their weights, the reliability of each, and its correlation with the measured
    response, also from the two halves (the mean of both directions). The third is a heat map of the weights by cell
    state, unless all states share them. For a SpatialData object, the last panel is a map of the size of the response.
    If the response does not vary over the tissue more than by chance, the map has one colour and says so. Spots far
    from the cells of the screen are ringed.

    Parameters
    ----------
    data
        Table that :func:`ragst_sd.tl.perturb` returned, or a SpatialData with the table that it wrote.
    reference
        The very reference that the prediction was made from. If it measured the perturbation itself, in the context
        shown, that is drawn, and the correlation of each retrieved response with it.
    prediction_key
        Name of the predicted table of a SpatialData.
    perturbation
        Which one to draw, if the table holds several.
    context
        Context of response and weights; the first by name if left out.
    truth
        Another reference of measured responses to compare with, for instance of the perturbations that were held out,
        measured against controls that the prediction has not seen.
    group_by
        Column of `.obs` whose groups are the columns of the heat map. Where there is one group only and weights
        differ, each column is a spot (or cell).
    n_shown
        Retrieved perturbations to list.
    n_genes
        Genes to name, those that respond most; fewer where there is no room.
    cmap, cmap_weights
        Colour maps of the map on the tissue and of the heat map.
    vmin, vmax
        Limits of the colour scale of the map.
    image_fade
        How far the picture of the tissue is mixed with white, from 0 to 1.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` a dictionary with the Axes that are drawn: `"map"`, `"response"`, `"retrieved"`,
    `"weights"`.

    Raises
    ------
    KeyError
        If the table, the perturbation, the context or a column does not exist.
    ValueError
        If the table holds no responses or several perturbations, the reference is another one, or `truth` shares
        controls with it.

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(2.0, size=(120, 210)).astype("float32"))
    >>> adata.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2", "IRF1"], 30)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "IRF1": [0.8, 0.1]}
    >>> reference = rg.tl.build_perturbation_reference(adata, embedding=embedding)
    >>> rg.tl.fit(reference, method="knn", n_neighbors=2)
    >>> controls = adata[adata.obs["perturbation"] == "control"]
    >>> predicted = rg.tl.perturb(controls, reference, perturbations="STAT1")
    >>> axes = rg.pl.perturbation(predicted, reference, return_ax=True)
    >>> list(axes)
    ['response', 'retrieved']
    """
    require_positive(n_shown, "n_shown", whole=True)
    require_positive(n_genes, "n_genes", whole=True)
    require_fade(image_fade)
    shown = read_responses(data, prediction_key, perturbation, context, reference, truth, group_by)
    n_shown, on_tissue, has_states = int(n_shown), isinstance(data, SpatialData), bool(shown.weights.shape[1])
    side = [_HEAD + _ROW * panels.bar_rows(shown, n_shown)]
    if has_states:
        side.append(_HEAD + _ROW * min(n_shown, len(shown.cited)) + _STATES)
    widths, height = [_SIDE], sum(side)
    if shown.measured is not None:
        widths, height = [_SCATTER, *widths], max(height, _SCATTER + TITLE)
    if on_tissue:
        section = read_section(data, shown.table, shown.header, prediction_key, or_white=True)
        panel = panels.response_map(shown, cmap, vmin, vmax)
        map_width, map_height, letters = size_with_words(section, _MAP, [panel])
        widths, height = [map_width + BAR, *widths], max(height, map_height)
    width, total = sum(widths), height + 2 * NOTE * on_tissue
    with picture(width, total, **drawing) as figure:
        # Each panel in a grid of its own: its words then count as part of its width.
        grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
        axes = {}
        if on_tissue:
            axes["map"] = figure.add_subplot(grid[0].subgridspec(1, 1)[0])
            draw_map(axes["map"], section, panel, fade=image_fade, letters=letters)
            panels.ring_far_spots(axes["map"], section, shown.table)
            scope = fill(_SCOPE, int(1.1 * LETTERS * width))
            figure.supxlabel(scope, x=0.01, ha="left", fontsize="small", color=_style.MUTED, gid="scope")
        if shown.measured is not None:
            axes["response"] = figure.add_subplot(grid[-2].subgridspec(1, 1)[0])
            panels.scatter(axes["response"], shown, shown.measured, int(n_genes))
        # The last row stays empty, so that bars are as thick beside a high map as beside a low one.
        cells = grid[-1].subgridspec(len(side) + 1, 1, height_ratios=[*side, max(height - sum(side), 1e-3)])
        axes["retrieved"] = figure.add_subplot(cells[0])
        panels.bars(axes["retrieved"], shown, n_shown)
        if has_states:
            axes["weights"] = figure.add_subplot(cells[1])
            panels.heat(axes["weights"], shown, n_shown, group_by, cmap_weights)
    return axes if drawing.get("return_ax") else None
