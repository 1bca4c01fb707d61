"""`rg.pl.explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import is_scrna
from ragst_sd._results import MIN_CV_PEARSON, gene_index, predicted, require_columns, spot_index
from ragst_sd._validate import require_choice, require_positive, require_type
from ragst_sd.pl import _style
from ragst_sd.pl._figure import describe_figure_parameters, picture
from ragst_sd.pl._maps import axes_in_rows, name_list
from ragst_sd.pl._measured import measured_values
from ragst_sd.pl._trust import distrust, has_intervals, intervals_of
from ragst_sd.pl._waterfall import FOOT, HEAD, ROW, Line, Waterfall, draw_waterfall

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_GROUPS = ("reference", _keys.DONOR, _keys.SAMPLE)
_PER_ROW = 2
_LONGEST_LABEL = 30
_WIDTH = 8.0


@describe_figure_parameters
def explain(
    sdata: SpatialData | AnnData,
    reference: AnnData,
    *,
    obs_name: str,
    gene: str | Sequence[str],
    group_by: str = "reference",
    n_shown: int = 12,
    prediction_key: str = "predicted",
    truth_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    min_cv_pearson: float = MIN_CV_PEARSON,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_ax: bool = False,
) -> dict[str, Axes] | None:
    """Draw what each measured spot brought to a predicted value.

    A waterfall from zero to the prediction, one bar per cited spot (or donor, or sample) by falling weight, with its
    weight, the value measured there and their product. The rest is lumped. Then come what brings the sections of the cited
    spots to the mean of the reference, and the adjustment. All numbers are those of :func:`ragst_sd.get.explain`.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself.
    reference
        The very reference that the prediction was made from.
    obs_name
        Spot.
    gene
        Gene, or genes: a waterfall each, two in a row.
    group_by
        What a bar stands for: `"reference"` (a cited spot), `"donor"` or `"sample"`. The value of a group is the weighted
        mean of what was measured in its cited spots. Bars of a gene from single cells are always cell types.
    n_shown
        Bars before the rest is lumped.
    prediction_key
        Name of the predicted table.
    truth_key
        Measured table; the value measured at this spot becomes a broken line. It is normalised as the prediction is.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    min_cv_pearson
        A gene whose `var["cv_pearson"]` is lower is drawn in grey and named as not to be trusted; one that was not
        assessed is left as it is.
    {figure_parameters}

    Returns
    -------
    `None`, or if `return_ax` a dictionary from gene to the Axes with the bars. If the table has intervals (`layers["lower"]`
    and `["upper"]`), the prediction carries its interval as a bracket; a hatched one was calibrated over anything but
    donors, which the axis says.

    Raises
    ------
    KeyError
        If a table, spot, gene or layer does not exist, or the table lacks a column of `.obs`.
    TypeError
        If `obs_name` is not one name.
    ValueError
        If the table has lost its provenance, the reference is another one, or the spot has no prediction of the gene.

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
    >>> axes = rg.pl.explain(query, reference, obs_name=spot, gene=gene, truth_key="table", return_ax=True)
    >>> axes[gene].get_xlabel()
    'log1p(counts per 10,000)'
    """
    from ragst_sd.get import explain as parts_of

    require_type(obs_name, str, "obs_name", "This picture takes one.")
    require_positive(n_shown, "n_shown", whole=True)
    require_choice(group_by, _GROUPS, "group_by")
    genes = name_list(gene)
    table, header = predicted(sdata, prediction_key)
    require_columns(table, (_keys.N_DONORS, _keys.OUT_OF_REFERENCE))
    spot, columns = int(spot_index(table, obs_name, "obs_name")[0]), gene_index(table, genes)
    notes = distrust(table, genes, min_cv_pearson)
    parts = parts_of(sdata, reference, obs_name=obs_name, gene=genes, prediction_key=prediction_key)
    totals = np.asarray(table.X[spot, columns], dtype=float).ravel()
    _require_values(obs_name, genes, totals)
    truth = np.full(len(genes), np.nan)
    if truth_key is not None:
        truth = measured_values(sdata, table, header, truth_key, layer=layer, unit=unit, genes=genes)[0][spot]
    intervals = intervals_of(table, header, columns) if has_intervals(table) else None

    falls = [
        Waterfall(
            title=f"{name} predicted",
            note=notes[j],
            facts=_facts(obs_name, table, header, spot, lines, scrna=scrna),
            lines=_lines(lines, "reference" if scrna else group_by, int(n_shown), scrna=scrna),
            total=totals[j],
            truth=float(truth[j]),
            intervals=intervals,
            interval=(np.nan, np.nan) if intervals is None else (intervals.lower[spot, j], intervals.upper[spot, j]),
            kind="cell type" if scrna else {"reference": "measured spot"}.get(group_by, group_by),
            unit=str(header["unit"]),
        )
        for j, (name, scrna) in enumerate(zip(genes, is_scrna(table, columns), strict=True))
        for lines in [parts[parts["gene"] == name]]
    ]
    per_row = min(_PER_ROW, len(falls))
    height = HEAD + (max(len(fall.lines) for fall in falls) + 1) * ROW + FOOT
    width, height = per_row * _WIDTH, -(-len(falls) // per_row) * height
    with picture(width, height, ax=ax, figsize=figsize, dpi=dpi, show=show, save=save, return_ax=return_ax) as figure:
        axes = dict(zip(genes, axes_in_rows(figure, len(falls), per_row), strict=True))
        for place, fall in zip(axes.values(), falls, strict=True):
            draw_waterfall(place, fall)
    return axes if return_ax else None


def _require_values(spot: str, genes: list[str], totals: np.ndarray) -> None:
    missing = [gene for gene, total in zip(genes, totals, strict=True) if not np.isfinite(total)]
    if missing:
        msg = (
            f"Spot {spot!r} has no prediction of {', '.join(map(repr, missing))}: it lies outside the image, or no cited "
            "spot measured the gene. Choose another spot or gene."
        )
        raise ValueError(msg)


def _facts(spot: str, table: AnnData, header: dict[str, Any], row: int, lines: pd.DataFrame, *, scrna: bool) -> str:
    facts = [_style.shorten(f"spot {spot}", 34)]
    cited = len(lines) - 1 if len(header[_keys.CITED]) else 0
    if scrna:
        facts.append("measured in no spot: given from single cells")
        cited = int((np.asarray(table.obsm[_keys.ROWS])[row] >= 0).sum())
    donors = int(table.obs[_keys.N_DONORS].iloc[row])
    facts.append(
        f"{header['method']}: {cited} measured spots of {donors} {'donor' if donors == 1 else 'donors'}"
        if cited
        else f"{header['method']}: cites no measured spots"
    )
    if bool(table.obs[_keys.OUT_OF_REFERENCE].iloc[row]):
        facts.append("unlike any tissue of the reference")
    return "  ·  ".join(facts)


def _lines(parts: pd.DataFrame, group_by: str, n_shown: int, *, scrna: bool) -> list[Line]:
    """The steps from zero to the prediction; cited rows bring weight times value, corrections are one step.

    Cell types bring their contribution: what corrects the logarithm of a mixture has no meaning of its own.
    """
    rows, adjustment = parts.iloc[:-1], float(parts["contribution"].iloc[-1])
    rows = rows.assign(brings=(rows["weight"] * rows["value"]).fillna(0.0), measured=rows["value"].notna())
    if scrna:
        rows = rows.assign(brings=rows["contribution"], correction=0.0)
    groups = rows.groupby(group_by, sort=False).agg(
        weight=("weight", "sum"), brings=("brings", "sum"), measured=("measured", "sum"), n=("weight", "size"),
        donor=("donor", "first"), sample=("sample", "first"), own=("value", "first"),
    )  # fmt: skip
    groups = groups.sort_values("weight", ascending=False, kind="stable")
    shown, others = groups.iloc[:n_shown], groups.iloc[n_shown:]
    lines = [
        Line(
            _label(str(name), group, group_by),
            group.weight,
            group.own if scrna else _mean(group),
            group.brings,
            _style.EVIDENCE,
        )
        for name, group in zip(shown.index, shown.itertuples(), strict=True)
    ]
    if len(others):
        lumped = others[["weight", "brings", "measured"]].sum()
        plural = "" if group_by == "reference" else f" {group_by}s" if len(others) > 1 else f" {group_by}"
        lines.append(
            Line(
                f"{len(others)} more{plural}",
                lumped.weight,
                np.nan if scrna else _mean(lumped),
                lumped.brings,
                _style.OTHERS,
            )
        )
    correction = float(np.nansum(rows["weight"] * rows["correction"]))
    if correction:
        lines.append(Line("sections brought to one mean", np.nan, np.nan, correction, _style.ADJUSTMENT))
    return [*lines, Line("adjustment", np.nan, np.nan, adjustment, _style.ADJUSTMENT)]


def _label(name: str, group: Any, group_by: str) -> str:
    if group_by == "reference":
        # Rows are named `<sample>:<spot>`: no need to name a donor of the same name.
        return _style.shorten(name if group.donor == group.sample else f"{group.donor}  {name}", _LONGEST_LABEL)
    count = f", {group.n} {'spot' if group.n == 1 else 'spots'}"
    donor = f" ({group.donor})" if group_by == _keys.SAMPLE and group.donor not in ("", name) else ""
    if not name:
        return "reference mean"
    return _style.shorten(name + donor, _LONGEST_LABEL - len(count)) + count


def _mean(group: Any) -> float:
    """Weighted mean of the measured values; NaN if none was measured."""
    return float(group.brings / group.weight) if group.measured and group.weight > 0 else np.nan
