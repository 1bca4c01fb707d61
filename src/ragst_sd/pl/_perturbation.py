"""`rg.pl.perturbation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._validate import require_positive
from ragst_sd.pl import _style
from ragst_sd.pl._figure import finish, open_stage
from ragst_sd.pl._maps import BAR_ROOM, MARGIN, NOTE, TITLE, draw_bar, draw_map, map_size, require_fade, wrapped
from ragst_sd.pl._response_map import response_map, response_section, ring_far_spots
from ragst_sd.pl._response_panels import BELOW, SCATTER, bars, bars_size, heat, heat_size, scatter
from ragst_sd.pl._responses import read_responses

if TYPE_CHECKING:
    import os

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

_GAP = 0.45
_SCOPE = (
    "Direct response of the cells of each spot, predicted from a screen of other cells. Nothing is said about effects on "
    "neighbours or about causes, and no measurement in tissue stands behind it."
)


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
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, Axes] | None:
    """Draw a predicted response to a perturbation: against the measured one, with what it rests on, and on the tissue.

    Predicted against measured response by gene, where the reference is given and measured the very perturbation in this
    context, and the prediction left it out. Both share no controls, whose noise would count as agreement: the prediction is
    made once more from responses against one half of the controls, and drawn against what was measured against the other
    one. Bars show the standard error of the measurement (against all controls). There is no such panel without `truth`
    where each spot has a response of its own, and for `"pt_rag"`, whose network has learned from all controls, and from the
    very response if the reference holds it. The retrieved perturbations with their weights, beside the reliability of each
    and its own correlation with the measured response, from the two halves likewise (the mean of both ways). A heat map of the weights by
    cell state, unless all states share them. Of a SpatialData a map of the size of the response; where it does not vary over
    the tissue more than by chance the map has one colour and says so, and spots far from the screen's cells are ringed.

    Parameters
    ----------
    data
        Table that :func:`ragst_sd.tl.perturb` returned, or a SpatialData with the table that it wrote.
    reference
        The very reference that the prediction was made from. If it measured the perturbation itself, in the context shown,
        that is drawn, and the correlation of each retrieved response with it.
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
    `None`, or if `return_ax` a dictionary with the Axes that are drawn: `"map"`, `"response"`, `"retrieved"`, `"weights"`.

    Raises
    ------
    KeyError
        If the table, the perturbation, the context or a column does not exist.
    ValueError
        If the table holds no responses or several perturbations, the reference is another one, or `truth` shares controls
        with it.

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
    from spatialdata import SpatialData

    require_positive(n_shown, "n_shown", whole=True)
    require_positive(n_genes, "n_genes", whole=True)
    require_fade(image_fade)
    shown = read_responses(
        data, prediction_key=prediction_key, perturbation=perturbation, context=context, reference=reference,
        truth=truth, group_by=group_by,
    )  # fmt: skip
    panel = section = None
    if isinstance(data, SpatialData):
        section = response_section(data, shown.table, shown.header, prediction_key)
        panel = response_map(shown.table, shown.header, shown.perturbation, cmap, vmin, vmax)
        box, size = map_size(section, 3.9)
        room = size[0] + (BAR_ROOM if panel.label else 0)
        title = TITLE + NOTE * len(wrapped(panel.note, room))
    list_size, grid = bars_size(shown, int(n_shown)), heat_size(shown, int(n_shown))
    left_width = 0.0 if panel is None else room
    left_height = 0.0 if panel is None else title + size[1]
    middle = 0.0 if shown.measured is None else SCATTER
    side = max(list_size[0], grid[0])
    widths = [one for one in (left_width, middle, side) if one]
    width = sum(widths) + _GAP * (len(widths) - 1) + 2 * MARGIN
    height = max(left_height, 0.0 if not middle else SCATTER + BELOW, list_size[1] + grid[1])
    scope = [] if panel is None else wrapped(_SCOPE, width - 2 * MARGIN)
    stage = open_stage(
        width, height + 2 * MARGIN + NOTE * len(scope) + (0.1 if scope else 0), ax=ax, figsize=figsize, dpi=dpi
    )
    axes, left = {}, MARGIN
    if panel is not None and section is not None:
        top = MARGIN + title - 0.05
        axes["map"], spots = draw_map(
            stage, section, panel, box, (left, top, *size), fade=image_fade, scale_bar=True, note_width=room
        )
        ring_far_spots(axes["map"], stage, section, shown.table)
        if panel.label:
            draw_bar(stage, spots, panel.label, panel.limits, panel.values, left + size[0] + 0.08, top, size[1])
        left += left_width + _GAP
    if shown.measured is not None:
        axes["response"] = scatter(stage, shown, shown.measured, left, MARGIN, int(n_genes))
        left += SCATTER + _GAP
    axes["retrieved"] = bars(stage, shown, left, MARGIN, int(n_shown))
    if grid[1]:
        axes["weights"] = heat(stage, shown, left, MARGIN + list_size[1], int(n_shown), group_by, cmap_weights)
    if scope:
        stage.text(
            MARGIN,
            MARGIN + height + 0.1,
            "\n".join(scope),
            size=9,
            ha="left",
            va="top",
            color=_style.MUTED,
            gid="scope",
        )
    return finish(stage, axes, show=show, save=save, return_ax=return_ax, dpi=dpi)
