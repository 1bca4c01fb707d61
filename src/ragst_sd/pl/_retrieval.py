"""`rg.pl.retrieval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import measured_columns
from ragst_sd._elements import require_sdata
from ragst_sd._reference import reference_header
from ragst_sd._results import MIN_CV_PEARSON, gene_index, predicted, require_columns, spot_index
from ragst_sd._validate import require_positive, require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import describe_figure_parameters, picture
from ragst_sd.pl._maps import name_list
from ragst_sd.pl._retrieval_panels import (
    Evidence,
    connect,
    draw_bars,
    draw_neighbors,
    draw_overview,
    draw_query,
    draw_tile,
    shared_limits,
)
from ragst_sd.pl._section import read_section
from ragst_sd.pl._trust import distrust

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.gridspec import SubplotSpec
    from spatialdata import SpatialData

    from ragst_sd.image.frames import FieldOfView
    from ragst_sd.pl._section import Section

# Inches: height of one spot and of one of several, of its title, width left of the cited spots, and of a cited spot.
_ALONE, _ROW, _TITLE, _LEFT, _LEFT_ROW, _COLUMN = 6.0, 3.75, 0.45, 3.6, 5.2, 1.05


@describe_figure_parameters
def retrieval(
    sdata: SpatialData,
    reference: AnnData,
    *,
    obs_name: str | Sequence[str],
    gene: str,
    prediction_key: str = "predicted",
    n_shown: int = 6,
    min_cv_pearson: float = MIN_CV_PEARSON,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, Any] | None:
    """Show which measured tissue a predicted value came from.

    Left the section, with the place of the spot (solid: the tile; dashed: wider fields of view of the encoder), and its
    tile. Right the cited spots by falling weight, with donor, sample, weight and the value measured there, and below
    each what it contributed; the remaining cited spots are lumped. The steps add up to the prediction. Several spots are
    drawn below each other, on one scale.

    Parameters
    ----------
    sdata
        Object with the image and a predicted table.
    reference
        The very reference that the prediction was made from, built with thumbnails.
    obs_name
        Spot, or spots: one row each.
    gene
        Gene.
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
        If the table, spot or gene does not exist.
    TypeError
        If `sdata` is no SpatialData, `gene` not one name, or `obs_name` neither one nor several.
    ValueError
        If the method cites no spots, this spot has no prediction (it lies outside the image), no cited spot measured
        the gene, the reference is another one or has no thumbnails, or the image is not in the object.

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
    >>> spot, gene = query.tables["predicted"].obs_names[0], reference.var_names[0]
    >>> axes = rg.pl.retrieval(query, reference, obs_name=spot, gene=gene, return_ax=True)
    >>> sorted(axes)
    ['contributions', 'neighbors', 'section', 'tile']
    """
    require_sdata(sdata)
    require_positive(n_shown, "n_shown", whole=True)
    require_type(gene, str, "gene", "This picture takes one.")
    names = name_list(obs_name, "obs_name", "spot")
    table, header = predicted(sdata, prediction_key)
    require_columns(table, (_keys.N_DONORS, _keys.EFFECTIVE_N, _keys.OUT_OF_REFERENCE))
    spots = [int(spot) for spot in spot_index(table, names, "obs_name")]
    note = distrust(table, [gene], min_cv_pearson)[0]
    evidence = [
        _evidence(sdata, reference, table, header, spot, gene, prediction_key, int(n_shown), note) for spot in spots
    ]
    section = read_section(sdata, table, header, prediction_key)
    fields = _fields(section, header)

    alone = len(spots) == 1
    limits = shared_limits(evidence, low_axis=not alone)
    numbers = [value for part in evidence for value in (*np.diff(part.levels), part.total)]
    decimals = _style.decimals_for(numbers)
    left, row_height = (_LEFT, _ALONE) if alone else (_LEFT_ROW, _ROW)
    columns = max(part.n_columns for part in evidence)
    axes = {}
    width, height = left + columns * _COLUMN, row_height * len(spots)
    with picture(width, height, ax=ax, figsize=figsize, dpi=dpi, show=show, save=save, return_ax=return_ax) as figure:
        heights = [_TITLE, row_height - _TITLE] * len(spots)
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(left, columns * _COLUMN))
        for i, (name, spot, part) in enumerate(zip(names, spots, evidence, strict=True)):
            total = _style.number(part.total, decimals)
            style: dict[str, Any] = {
                "fontsize": "x-large",
                "fontweight": "bold",
                "color": _style.MUTED if part.distrust else "black",
            }
            _write(figure, grid[2 * i, 0], f"{gene} predicted {total}", **style)
            if part.distrust:
                _write(figure, grid[2 * i, 0], part.distrust, color=_style.MUTED, va="top", fontsize="small")
            unlike = bool(table.obs[_keys.OUT_OF_REFERENCE].iloc[spot])
            color = _style.ADJUSTMENT if unlike else _style.MUTED
            _write(figure, grid[2 * i, 1], _facts(table, header, spot, part), color=color)

            overview, tile = _draw_spot(figure, grid[2 * i + 1, 0], section, spot, fields, beside=not alone)
            overview.set_title(_style.shorten(f"spot {name}", 34), fontsize="medium")
            cell = grid[2 * i + 1, 1].subgridspec(2, 1, height_ratios=(0.85, 3.2 if alone else 1.2))
            strip, bars = figure.add_subplot(cell[0]), figure.add_subplot(cell[1])
            draw_bars(bars, part, str(header["unit"]), decimals, limits, columns, low_axis=not alone)
            strip.set_axis_off()
            neighbors = draw_neighbors(strip, part, reference, gene, columns)
            draw_query(strip, part, np.asarray(tile.images[0].get_array()), columns)
            axes[name] = {"section": overview, "tile": tile, "neighbors": neighbors, "contributions": bars}
    if not return_ax:
        return None
    return axes[names[0]] if isinstance(obs_name, str) else axes


def _write(figure: FigureBase, cell: SubplotSpec, text: str, va: str = "baseline", **style: Any) -> None:
    ax = figure.add_subplot(cell, label="words")
    ax.set_axis_off()
    # Words may run beyond their cell.
    ax.text(0, 0.45 if va == "baseline" else 0.25, text, va=va, **style).set_in_layout(False)


def _facts(table: AnnData, header: dict[str, Any], spot: int, evidence: Evidence) -> str:
    obs = table.obs.iloc[spot]
    n_rows, donors = len(evidence.shown) + len(evidence.others), int(obs[_keys.N_DONORS])
    facts = [
        f"{header['method']}: {n_rows} measured spots of {donors} {'donor' if donors == 1 else 'donors'}",
        f"effective number {float(obs[_keys.EFFECTIVE_N]):.1f}",
    ]
    if bool(obs[_keys.OUT_OF_REFERENCE]):
        facts.append("unlike any tissue of the reference")
    return "  ·  ".join(facts)


def _draw_spot(
    figure: FigureBase, cell: SubplotSpec, section: Section, spot: int, fields: list[FieldOfView], *, beside: bool
) -> tuple[Axes, Axes]:
    """The section and the tile of a spot, beside each other or one below the other."""
    shape: tuple[int, int] = (1, 2) if beside else (2, 1)
    ratios: dict[str, Any] = {"width_ratios": (2.5, 1.5)} if beside else {"height_ratios": (1.2, 1)}
    parts = cell.subgridspec(*shape, **ratios)
    overview, tile = figure.add_subplot(parts[0], label="section"), figure.add_subplot(parts[1], label="tile")
    draw_overview(overview, section, spot, fields, beside=beside)
    draw_tile(tile, section, section.centers[spot], fields[0], _tile_pixels(section, spot, fields[0]))
    connect(overview, tile, section.centers[spot], fields[0], beside=beside)
    return overview, tile


def _evidence(
    sdata: SpatialData,
    reference: AnnData,
    table: AnnData,
    header: dict[str, Any],
    spot: int,
    gene: str,
    prediction_key: str,
    n_shown: int,
    note: str,
) -> Evidence:
    from ragst_sd.get import explain

    name, column = table.obs_names[spot], int(gene_index(table, gene)[0])
    if str(header.get("task")) != "histology":
        msg = f"This picture shows tissue; table {prediction_key!r} was predicted for the task {header.get('task')!r}."
        raise ValueError(msg)
    if not len(header[_keys.CITED]):
        msg = (
            f"The prediction was made by method {header['method']!r}, which cites no measured spots: there is nothing to "
            'show. Fit a method that cites, for instance `rg.tl.fit(reference, method="knn")`, and predict again.'
        )
        raise ValueError(msg)
    if (np.asarray(table.obsm[_keys.ROWS][spot]) < 0).all():
        msg = (
            f"Spot {name!r} has no prediction: it lies outside image {header['image_key']!r}. Choose one whose "
            f"`obs[{_keys.EFFECTIVE_N!r}]` is not NaN."
        )
        raise ValueError(msg)
    reference_header(reference)
    if _keys.THUMBNAIL not in reference.obsm:
        msg = (
            f"The reference has no pictures of its spots (`obsm[{_keys.THUMBNAIL!r}]`). Build it with "
            "`rg.tl.build_reference(..., thumbnails=True)`, fit it and predict again."
        )
        raise ValueError(msg)
    measured_columns(reference, table.var_names[[column]])
    parts = explain(sdata, reference, obs_name=name, gene=gene, prediction_key=prediction_key)
    rows, adjustment = parts.iloc[:-1], float(parts["contribution"].iloc[-1])
    total = float(table.X[spot, column])
    if not np.isfinite(total):
        msg = f"None of the spots cited for {name!r} measured {gene!r}: there is no prediction to show."
        raise ValueError(msg)
    correction = float(np.nansum(rows["weight"] * rows["correction"]))
    return Evidence(rows.iloc[:n_shown], rows.iloc[n_shown:], correction, adjustment, total, note)


def _fields(section: Section, header: dict[str, Any]) -> list[FieldOfView]:
    """The tile, and then the wider fields of view that the encoder saw."""
    from ragst_sd.image.embedding import plan_fields

    geometry = header["encoder"]
    mpp = float(geometry["mpp"])
    context = sorted({1.0, *(float(one) for one in np.ravel(geometry["context"]) if one > 1)})
    return plan_fields(
        section.pyramid,
        tile_px=int(geometry["tile_px"]),
        mpp=None if np.isnan(mpp) else mpp,
        image_mpp=None if np.isnan(mpp) else section.mpp,
        context=context,
    )


def _tile_pixels(section: Section, spot: int, field: FieldOfView) -> np.ndarray:
    from ragst_sd.image.tiles import iter_tiles

    batches = iter_tiles(
        section.pyramid.levels[field.level],
        section.centers[[spot]],
        field,
        chunk=section.pyramid.chunks[field.level],
        value_max=section.pyramid.value_max,
        batch_size=1,
    )
    return next(batches)[1][0].permute(1, 2, 0).numpy()
