"""`rg.pl.retrieval`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle
from skimage.util import montage
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types, measured_columns
from ragst_sd._results import MIN_CV_PEARSON, predicted, require_columns
from ragst_sd._validate import name_list, require_key, require_positive
from ragst_sd.image.embedding import tiles_at
from ragst_sd.pl import _contributions, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._maps import distrust, require_citations
from ragst_sd.pl._section import Section, draw_image, extent_of, field_widths, read_section
from ragst_sd.reference.schema import knows_tiles


@draws
def retrieval(
    sdata: SpatialData,
    reference: AnnData,
    *,
    obs_names: str | Sequence[str],
    genes: str | Sequence[str],
    prediction_key: str = "predicted",
    n_shown: int = 6,
    min_cv_pearson: float = MIN_CV_PEARSON,
    **drawing: Unpack[Drawing],
) -> dict[str, Any] | None:
    """Plot the measured tissue that a predicted value came from.

    On the left are the section with the position of the spot (solid: the tile; dashed: wider fields of view of the
    encoder) and its tile. On the right are the cited spots by falling weight, with donor, sample, weight and measured
    value, and below each its contribution. The remaining cited spots are one bar. The bars add up to the prediction.
    Several spots are drawn below each other on one scale.

    Parameters
    ----------
    sdata
        Object with the image and a predicted table.
    reference
        The very reference that the prediction was made from, built with thumbnails.
    obs_names
        Spot, or spots: one row each.
    genes
        Gene; there is place for one.
    prediction_key
        Name of the predicted table.
    n_shown
        Cited spots that get a picture. A new figure grows with them.
    min_cv_pearson
        A gene whose `var["cv_pearson"]` is lower is drawn in grey and named as not to be trusted; one that was not
        assessed is left as it is.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` a dictionary: `"section"` and `"tile"` (Axes), `"neighbors"` (a list of Axes, one per
    cited spot shown), `"contributions"` (Axes). For a list of spots, a dictionary from spot to such a dictionary.

    Raises
    ------
    KeyError
        If the table, spot or gene does not exist, or the reference has no thumbnails.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If `genes` names several, or `obs_names` nothing; the method cites no spots, this spot has no prediction (it
        lies outside the image), no cited spot measured the gene, the reference is another one, or the image is not in
        the object.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> spot, gene = query.tables["predicted"].obs_names[0], reference.var_names[0]
    >>> axes = rg.pl.retrieval(query, reference, obs_names=spot, genes=gene, return_ax=True)
    >>> sorted(axes)
    ['contributions', 'neighbors', 'section', 'tile']
    """
    from ragst_sd.get import explain

    require_positive(n_shown, "n_shown", whole=True)
    (gene,), names = name_list(genes, "genes", most=1), name_list(obs_names, "obs_names")
    prediction = predicted(sdata, prediction_key, exact=True)
    table, encoder = prediction.table, prediction.header["encoder"]
    require_columns(table, (_keys.N_DONORS, _keys.EFFECTIVE_N, _keys.OUT_OF_REFERENCE))
    spots, column = prediction.spots(names), prediction.genes(gene)
    note = distrust(prediction, column, min_cv_pearson)[0]
    require_citations(prediction)
    _require_tiles(prediction.header)
    measured_columns(reference.var_names, table.var_names[column], cell_types(reference))
    parts = explain(sdata, reference, obs_names=names, genes=gene, prediction_key=prediction_key)
    todo = "Build it with `rg.tl.build_reference(..., thumbnails=True)`, fit it and predict again."
    require_key(_keys.THUMBNAIL, reference.obsm, "reference.obsm", todo)
    _contributions.require_values(prediction, spots, column)
    lines = [parts[parts["query"] == name] for name in names]
    steps = [_contributions.steps_of(part, "reference", int(n_shown)) for part in lines]
    section = read_section(prediction)
    widths_px = field_widths(encoder, section)
    tile_px, mpp = int(encoder["tile_px"]), float(encoder["mpp"])
    tiles = tiles_at(section.pyramid, section.centers[spots], tile_px, mpp=mpp, image_mpp=section.mpp)

    ends = np.concatenate([step["start"] + step["contribution"] for step in steps])
    decimals = _style.decimals_for(ends)
    low, high = min(ends.min(), 0.0), max(ends.max(), 0.0)
    # Room for the numbers at the ends of the bars.
    room = 0.27 * ((high - low) or 1.0)
    n_columns = max(map(len, steps))
    # Inches.
    widths, height = (3.0, 1.9, 1.05 * n_columns), 3.75 * len(names)
    axes = {}
    with picture(sum(widths), height, **drawing) as figure:
        grid = figure.add_gridspec(2 * len(names), 3, height_ratios=(0.85, 1.2) * len(names), width_ratios=widths)
        for i, (name, spot) in enumerate(zip(names, spots, strict=True)):
            overview, tile = (figure.add_subplot(grid[2 * i : 2 * i + 2, j]) for j in (0, 1))
            strip, bars = (figure.add_subplot(grid[2 * i + j, 2]) for j in (0, 1))
            _draw_spot(overview, tile, section, section.centers[spot], widths_px, tiles[i])
            words = "\n".join([_style.shorten(f"spot {name}", 34), *([note] if note else [])])
            total = _style.number(steps[i]["contribution"].iloc[-1], decimals)
            _style.set_title(overview, f"{gene} predicted {total}", words)
            strip.set_axis_off()
            rows = _contributions.split_lines(lines[i])[0]["reference"]
            neighbors = _draw_neighbors(strip, steps[i], rows, reference, gene, decimals, n_columns)
            _draw_thumbnail(strip, tiles[i], len(steps[i]) - 1, n_columns, "this spot", "", _style.QUERY)
            evidence = _contributions.facts(prediction, spot)
            evidence.insert(1, f"effective number {table.obs[_keys.EFFECTIVE_N].iloc[spot]:.1f}")
            color = _style.ADJUSTMENT if table.obs[_keys.OUT_OF_REFERENCE].iloc[spot] else _style.MUTED
            strip.set_title("  ·  ".join(evidence), fontsize="medium", color=color, pad=3.5 * _style.em())
            _draw_bars(bars, steps[i], decimals, n_columns, grey=bool(note))
            bars.set(ylim=(low - room * bool(low < 0), high + room))
            bars.set_ylabel("\n".join(["contribution", *wrap(str(prediction.header["unit"]), 14)]))
            axes[name] = {"section": overview, "tile": tile, "neighbors": neighbors, "contributions": bars}
    return axes[names[0]] if isinstance(obs_names, str) else axes


def _require_tiles(header: dict[str, Any]) -> None:
    """Raise a `ValueError` if it is not known which tiles were embedded."""
    if not knows_tiles(header["encoder"]):
        raise ValueError(
            f"The embedding {str(header['use_rep'])!r} is of unknown origin: it does not say of which tiles it was "
            "made, which this picture shows. State it with `rg.pp.use_features(..., model=..., tile_px=..., mpp=...)` "
            "for the sections of the reference and the query, build, fit and predict again."
        )


def _draw_spot(
    overview: Axes, tile: Axes, section: Section, center: np.ndarray, edges: list[float], pixels: np.ndarray
) -> None:
    """Draw the section with the place of a spot (solid: its tile; broken: wider fields of view), and its tile."""
    (x, y), half = center, edges[0] / 2
    box = extent_of(section, half, on_image=True)
    draw_image(overview, section.pyramid, box, edge_px=700)
    for i, edge in enumerate(edges):
        width = 1.0 if i else 2.0
        mark = Rectangle((x - edge / 2, y - edge / 2), edge, edge, fill=False, edgecolor=_style.QUERY, zorder=4)
        mark.set(linewidth=width, linestyle=(0, (3, 2)) if i else "solid", path_effects=_style.halo(2 * width))
        overview.add_patch(mark)
    # Away from the lines to the tile, which go to the right.
    is_low = y > (box[2] + box[3]) / 2
    _style.scale_bar(overview, section.mpp, "upper left" if is_low else "lower left")
    _style.frame(overview)

    tile.imshow(pixels, extent=(x - half, x + half, y + half, y - half), interpolation="bicubic")
    tile.set_anchor("NW")
    _style.scale_bar(tile, section.mpp)
    _style.frame(tile, _style.QUERY, 2.5)
    for side in (-1, 1):
        start, end = (x + half, y + side * half), (0.0, 0.5 - side / 2)
        line = ConnectionPatch(start, end, overview.transData, tile.transAxes, color=_style.QUERY, alpha=0.8)
        line.set_in_layout(False)
        overview.add_artist(line).set_clip_on(False)


def _draw_neighbors(
    strip: Axes, steps: pd.DataFrame, rows: pd.Series, reference: AnnData, gene: str, decimals: int, n_columns: int
) -> list[Axes]:
    """Draw the cited `rows` with donor, sample, weight and measured value; the axes of those that have their own."""
    thumbnails = reference.obsm[_keys.THUMBNAIL]
    tiles = [np.asarray(thumbnails[int(row)]) for row in reference.obs_names.get_indexer(rows)]
    shown = steps[steps["color"] == _style.EVIDENCE]
    axes = []
    for column, step in enumerate(shown.itertuples()):
        donor, sample = _style.shorten(str(step.donor), 11), _style.shorten(str(step.sample), 12)
        words = f"weight {step.weight:.1%}\n{_style.shorten(gene, 8)} {_contributions.value_text(step.value, decimals)}"
        name = donor if sample == donor else f"{donor}\n{sample}"
        axes.append(_draw_thumbnail(strip, tiles[column], column, n_columns, name, words, _style.EVIDENCE))
    others = steps[steps["color"] == _style.OTHERS]
    for step in others.itertuples():
        words = f"weight {step.weight:.1%}"
        if np.isfinite(step.value):
            words += f"\nmean {_style.number(step.value, decimals)}"
        rest = np.stack(tiles[len(shown) :][:9])
        small = montage(rest, fill=(255, 255, 255), padding_width=2, channel_axis=-1)[2:-2, 2:-2]
        _draw_thumbnail(strip, small, len(shown), n_columns, f"and {step.label}", words, "white").set_label("others")
    return axes


def _draw_thumbnail(
    strip: Axes, pixels: np.ndarray, column: int, n_columns: int, name: str, words: str, color: str
) -> Axes:
    """Draw a picture in a column of the strip, its name above and words below."""
    ax = strip.inset_axes(((column + 0.06) / n_columns, 0, 0.88 / n_columns, 1))
    ax.imshow(pixels, interpolation="antialiased")
    ax.set_title(name, loc="center", fontsize="small", pad=3)
    ax.set_xlabel(words, fontsize="small", labelpad=3)
    _style.frame(ax, color, 1.5)
    return ax


def _draw_bars(ax: Axes, steps: pd.DataFrame, decimals: int, n_columns: int, *, grey: bool) -> None:
    """Draw the steps from zero to the prediction."""
    _contributions.draw_steps(ax, steps, grey=grey, upright=True)
    tops, last = steps["start"] + steps["contribution"].clip(lower=0), len(steps) - 1
    style: dict[str, Any] = {"coords": "data", "ha": "center", "fontsize": "small"}
    for x, text in enumerate(_contributions.contribution_texts(steps, decimals)):
        _style.beside(ax, text, (x, tops[x]), (0, 2), fontweight="bold" if x == last else "normal", **style)
    n_shown = int((steps["color"] == _style.EVIDENCE).sum())
    names = steps["label"][n_shown:].replace(_contributions.SECTIONS, "sections")
    ax.set_xticks(range(len(steps)), [*map(str, range(1, n_shown + 1)), *names])
    ax.set(xlim=(-0.5, n_columns - 0.5), label="contributions")
    ax.tick_params(axis="x", length=0)
    ax.locator_params(axis="y", nbins=4, steps=[1, 2, 5, 10])
