"""`rg.pl.perturbation`."""

from __future__ import annotations

from textwrap import fill
from typing import Any, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._validate import require_positive
from ragst_sd.pl import _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._maps import BAR, LETTERS, NOTE, TITLE, Map, draw_map, limits_of, require_fade, size_with_words
from ragst_sd.pl._responses import Measured, Shown, read_responses
from ragst_sd.pl._section import draw_rims, read_section
from ragst_sd.reference.responses import row_correlation
from ragst_sd.retrieval.training import dense

# Inches.
_MAP, _SCATTER, _SIDE, _ROW, _HEAD, _STATES = 3.9, 3.6, 5.4, 0.3, 0.6, 0.6
# What is said below a map.
_SCOPE = (
    "Direct response of the cells of each spot, predicted from a screen of other cells. Nothing is said about "
    "effects on neighbours or about causes, and no measurement in tissue stands behind it."
)
# Columns of the heat map that have names, at most.
_MOST_STATES = 12


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
    response, also from the two halves (the mean of both directions). As in :func:`ragst_sd.tl.evaluate_perturbation`,
    correlations are 0 where a response does not vary. The third is a heat map of the weights by cell state, unless all
    states share them. For a SpatialData object, the last panel is a map of the size of the response. If the response
    does not vary over the tissue more than by chance, the map has one colour and says so. Spots far from the cells of
    the screen are ringed.

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
    side = [_HEAD + _ROW * _bar_rows(shown, n_shown)]
    if has_states:
        side.append(_HEAD + _ROW * min(n_shown, len(shown.cited)) + _STATES)
    widths, height = [_SIDE], sum(side)
    if shown.measured is not None:
        widths, height = [_SCATTER, *widths], max(height, _SCATTER + TITLE)
    if on_tissue:
        section = read_section(shown.prediction, or_white=True)
        panel = _response_map(shown, cmap, vmin, vmax)
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
            far = np.flatnonzero(shown.prediction.table.obs[_keys.FAR_FROM_SCREEN].to_numpy(bool))
            if len(far):
                draw_rims(axes["map"], section, far, "0.15", 0.8, zorder=4, label="far from the screen")
            scope = fill(_SCOPE, int(1.1 * LETTERS * width))
            figure.supxlabel(scope, x=0.01, ha="left", fontsize="small", color=_style.MUTED, gid="scope")
        if shown.measured is not None:
            axes["response"] = figure.add_subplot(grid[-2].subgridspec(1, 1)[0])
            _draw_scatter(axes["response"], shown, shown.measured, int(n_genes))
        # The last row stays empty, so that bars are as thick beside a high map as beside a low one.
        cells = grid[-1].subgridspec(len(side) + 1, 1, height_ratios=[*side, max(height - sum(side), 1e-3)])
        axes["retrieved"] = figure.add_subplot(cells[0])
        _draw_retrieved(axes["retrieved"], shown, n_shown)
        if has_states:
            axes["weights"] = figure.add_subplot(cells[1])
            _draw_weights(axes["weights"], shown, n_shown, group_by, cmap_weights)
    return axes


def _draw_scatter(ax: Axes, shown: Shown, measured: Measured, n_genes: int) -> None:
    """Draw the predicted response of each gene against the measured one, with its standard error."""
    x, y = measured.values, measured.predicted
    low, high = min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    ax.plot([low, high], [low, high], color="0.75", lw=0.8, zorder=1, label="equal")
    ax.axhline(0, color="0.88", lw=0.8, zorder=0)
    ax.axvline(0, color="0.88", lw=0.8, zorder=0)
    if _keys.STANDARD_ERROR in measured.row.layers:
        error = dense(measured.row.layers[_keys.STANDARD_ERROR]).ravel()
        ax.errorbar(x, y, xerr=error, fmt="none", ecolor="0.7", elinewidth=0.5, zorder=2)
    ax.scatter(x, y, s=12, color=_style.EVIDENCE, linewidths=0, alpha=0.8, zorder=3, label="genes")
    _name_genes(ax, measured, n_genes, high - low)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel=measured.labels[0], ylabel=measured.labels[1])
    ax.set(box_aspect=1, anchor="NW", label="response")
    where = "" if shown.context == _keys.ALL_CONTEXTS else f" in {_style.shorten(shown.context, 14)}"
    facts = measured.row.obs.iloc[0]
    known = {
        f"{int(facts[_keys.N_CELLS]):,} cells measured": facts[_keys.N_CELLS] > 0,
        f"reliability {_style.number(facts[_keys.RELIABILITY], 2)}": np.isfinite(facts[_keys.RELIABILITY]),
    }
    note = ", ".join(text for text, there in known.items() if there)
    r = _style.number(row_correlation(y[None], x[None])[0], 2)
    _style.set_title(ax, f"{shown.perturbation}{where}, r = {r}", note)


def _name_genes(ax: Axes, measured: Measured, n_genes: int, size: float) -> None:
    """Write the names of the genes that respond most, as far as they have room."""
    points = np.column_stack([measured.values, measured.predicted])
    middle = 0.5 * (measured.values.min() + measured.values.max())
    style: dict[str, Any] = {"fontsize": "small", "zorder": 4, "path_effects": _style.halo(1.5), "gid": "gene"}
    named: list[int] = []
    for gene in np.argsort(-np.abs(points).max(axis=1), kind="stable")[:n_genes]:
        near = np.abs(points[named] - points[gene]) < [0.28 * size, 0.045 * size]
        if near.all(axis=1).any():
            continue
        named.append(gene)
        name, point = measured.row.var_names[gene], tuple(points[gene])
        shift, align = (-3, "right") if point[0] > middle else (3, "left")
        _style.beside(ax, name, point, (shift, 0), "data", ha=align, va="center", **style)


def _row_names(shown: Shown, n: int) -> list[str]:
    """Perturbation of the first cited rows, with their contexts where those are not the one shown."""
    names, contexts = (shown.cited[name].astype(str) for name in (_keys.PERTURBATION, _keys.CONTEXT))
    if contexts.nunique() > 1 or not set(contexts) <= {shown.context, _keys.ALL_CONTEXTS}:
        names = names + " in " + contexts
    return [_style.shorten(name, 24) for name in names[:n]]


def _bar_rows(shown: Shown, n_shown: int) -> int:
    """Rows that the list of retrieved perturbations takes: those shown, and one for all others."""
    return min(max(1, _used_here(shown)), n_shown + 1)


def _used_here(shown: Shown) -> int:
    """Number of rows that are cited in the context shown; those that only other contexts cite come after them."""
    return int((shown.cited["weight"] > 0).sum())


def _draw_retrieved(ax: Axes, shown: Shown, n_shown: int) -> None:
    """Draw the weights of the retrieved perturbations, how reliable each is, and its agreement with the truth."""
    n, title = min(n_shown, _used_here(shown)), "Retrieved perturbations"
    ax.set(ylim=(_bar_rows(shown, n_shown) - 0.5, -0.5), label="retrieved")
    ax.set_axis_off()
    if not n:
        words = f"{shown.prediction.header['method']!r} cites no measured response"
        if shown.perturbation == shown.prediction.header["control"]:
            words = "no response: this is the control"
        _style.set_title(ax, title)
        _style.beside(ax, words, (0, 1), (0, -0.5 * _style.em()), va="top", color=_style.MUTED, gid="no rows")
        return
    weights = shown.cited["weight"].to_numpy()
    ax.barh(np.arange(n), weights[:n], height=0.66, color=_style.EVIDENCE)
    ax.set_xlim(0, weights[0])
    columns = {
        "weight": [_style.percent(weight) for weight in weights[:n]],
        "reliability": [_style.number(value, 2) for value in shown.cited[_keys.RELIABILITY][:n]],
    }
    if shown.cited["agreement"].notna().any():
        columns["r measured"] = [_style.number(value, 2) for value in shown.cited["agreement"][:n]]
    _style.write_columns(ax, columns)
    reach = _titled_rows(ax, title, {"perturbation": _row_names(shown, n)})
    rest = _used_here(shown) - n
    if rest > 0:
        words, coords = f"{rest} more, {_style.percent(weights[n:].sum())}", ("axes fraction", "data")
        _style.beside(ax, words, (0, n), (-reach, 0), coords, va="center", color=_style.MUTED, gid="more")


def _draw_weights(ax: Axes, shown: Shown, n_shown: int, group_by: str, cmap: Any) -> None:
    """Draw the weights of the retrieved perturbations by the state of the cells, as a heat map."""
    states = [_style.shorten(state, 16) for state in shown.states[:_MOST_STATES]]
    values = shown.weights[:n_shown, : len(states) or None]
    highest = float(values.max())
    picture = ax.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=highest, interpolation="nearest")
    ax.set(xticks=[], yticks=[], label="weights")
    ax.spines[:].set_visible(False)
    if states:
        ax.set_xticks(range(len(states)), states, rotation=60, ha="right", rotation_mode="anchor")
        ax.tick_params(axis="x", length=0)
        hidden = len(shown.states) - len(states)
        note = f"by {group_by}" + (f", {hidden} more not shown" if hidden else "")
    else:
        ax.set_xlabel(f"{values.shape[1]:,} spots, ordered by their weights")
        note = "each column a spot and its neighbours"
    _titled_rows(ax, "Weight by cell state", {note: _row_names(shown, n_shown)})
    bar = ax.figure.colorbar(picture, cax=ax.inset_axes((1.04, 0, 0.06, 1), label="colorbar"), ticks=[0, highest])
    bar.outline.set_linewidth(0)
    bar.ax.set_yticklabels(["0", _style.number(highest, 2)])
    bar.ax.tick_params(length=0)


def _titled_rows(ax: Axes, title: str, column: dict[str, list[str]]) -> float:
    """Write the names of rows left of axes, and a title above them; the width of the names in points is returned."""
    reach = _style.write_columns(ax, column, before=True)
    _style.beside(ax, title, (0, 1), (-reach, 2 * _style.em()), fontsize=1.1 * _style.em())
    return reach


def _response_map(shown: Shown, cmap: str | Colormap, vmin: float | None, vmax: float | None) -> Map:
    """The map of the size of the response, which says whether it varies over the tissue."""
    header, title = shown.prediction.header, f"Response to {shown.perturbation}"
    values = shown.prediction.table.obs[_keys.RESPONSE_MAGNITUDE].to_numpy(float)
    constant, far = bool(header["constant"]), float(header["far_from_screen"])
    label = "root mean square response"
    p_value = _style.number(float(header["variance_p_value"]), 2)
    note = f"varies more than among shuffled spots (p = {p_value})"
    if constant:
        cmap, label = ListedColormap([_style.OTHERS]), ""
        words = "the same response for every state"
        if len(np.atleast_1d(header["variance_shuffled"])):
            words = "no more variation over the tissue than among shuffled spots"
        note = f"constant ({_style.number(values[0], 3)}): {words}"
    if far > 0:
        note += f". ringed: far from the screen's cells ({_style.percent(far)} of spots)"
    return Map("map", title, values, limits_of(values, vmin, vmax), cmap, label, note)
