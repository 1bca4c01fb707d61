"""`rg.pl.explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._cell_types import is_scrna
from ragst_sd._results import MIN_CV_PEARSON, Intervals, predicted, require_columns
from ragst_sd._truth import measured_values
from ragst_sd._validate import name_list, require_choice, require_positive
from ragst_sd.pl import _contributions, _style
from ragst_sd.pl._figure import Drawing, draws, picture
from ragst_sd.pl._maps import axes_in_rows, distrust


@draws
def explain(
    sdata: SpatialData | AnnData,
    reference: AnnData,
    *,
    obs_names: str | Sequence[str],
    genes: str | Sequence[str],
    group_by: str = "reference",
    n_shown: int = 12,
    prediction_key: str = "predicted",
    truth_key: str | Literal[False] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    min_cv_pearson: float = MIN_CV_PEARSON,
    **drawing: Unpack[Drawing],
) -> dict[str, Axes] | None:
    """Plot the contribution of each measured spot to a predicted value.

    A waterfall from zero to the prediction, one bar per cited spot (or donor, or sample) by falling weight, with its
    weight, the value measured there and their product. The remaining spots are one bar. The next bars are the
    correction that brings the sections of the cited spots to the mean of the reference, that mean with the remaining
    weight, and the regression or another adjustment. All numbers are those of :func:`ragst_sd.get.explain`.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself.
    reference
        The very reference that the prediction was made from.
    obs_names
        Spot; there is place for one.
    genes
        Gene, or genes: a waterfall each, two in a row.
    group_by
        What a bar represents: `"reference"` (a cited spot), `"donor"` or `"sample"`. The value of a group is the
        weighted mean of what was measured in its cited spots. Bars of a gene from single cells are always cell types.
    n_shown
        Number of bars; the remaining rows are one bar.
    prediction_key
        Name of the predicted table.
    truth_key
        Measured table; the value measured at this spot becomes a broken line. It is normalised as the prediction is.
        The only one of the same shapes if left out; `False` for none.
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
    `None`, or if `return_ax` a dictionary from gene to the Axes with the bars. If the table has intervals
    (`layers["lower"]` and `["upper"]`), a box on the prediction shows its interval; a hatched one was calibrated over
    anything but donors, which the words below say.

    Raises
    ------
    KeyError
        If a table, spot, gene or layer does not exist, or the table lacks a column of `.obs`.
    ValueError
        If `obs_names` or `genes` names nothing, or `obs_names` several; the table has lost its provenance, the
        reference is another one, or the spot has no prediction of the gene.

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
    >>> axes = rg.pl.explain(query, reference, obs_names=spot, genes=gene, truth_key="table", return_ax=True)
    >>> axes[gene].get_xlabel()
    'log1p(counts per 10,000)'
    """
    from ragst_sd.get import explain as parts_of

    (name,), genes = name_list(obs_names, "obs_names", most=1), name_list(genes, "genes")
    require_positive(n_shown, "n_shown", whole=True)
    require_choice(group_by, ("reference", _keys.DONOR, _keys.SAMPLE), "group_by")
    prediction = predicted(sdata, prediction_key, exact=True)
    require_columns(prediction.table, (_keys.N_DONORS, _keys.OUT_OF_REFERENCE))
    spot, columns = int(prediction.spots(name)[0]), prediction.genes(genes)
    notes = distrust(prediction, columns, min_cv_pearson)
    parts = parts_of(sdata, reference, obs_names=name, genes=genes, prediction_key=prediction_key)
    _contributions.require_values(prediction, np.array([spot]), columns)
    measured = measured_values(prediction, truth_key, layer=layer, unit=unit, genes=genes)
    truth = np.full(len(genes), np.nan) if measured is None else measured.iloc[spot].to_numpy()
    intervals = prediction.intervals(columns)
    scrna = is_scrna(prediction.table, columns).tolist()
    steps = {}
    for gene, of_types in zip(genes, scrna, strict=True):
        group = "reference" if of_types else group_by
        steps[gene] = _contributions.steps_of(parts[parts["gene"] == gene], group, int(n_shown), scrna=of_types)

    per_row = min(2, len(genes))
    # Inches of a waterfall with its rows of text.
    height = -(-len(genes) // per_row) * (1.75 + 0.25 * max(map(len, steps.values())))
    with picture(8.0 * per_row, height, **drawing) as figure:
        axes = dict(zip(genes, axes_in_rows(figure, len(genes), per_row), strict=True))
        for j, (gene, panel) in enumerate(axes.items()):
            decimals = _style.decimals_for(steps[gene]["contribution"])
            words = [_style.shorten(f"spot {name}", 34), *_contributions.facts(prediction, spot)]
            kind = {"reference": "measured spot"}.get(group_by, group_by)
            if scrna[j]:
                words.insert(1, "measured in no spot: given from single cells")
                kind = "cell type"
            left = _draw_waterfall(panel, steps[gene], decimals, kind, grey=bool(notes[j]))
            total = _style.number(steps[gene]["contribution"].iloc[-1], decimals)
            color = _style.MUTED if notes[j] else "black"
            title: dict[str, Any] = {"fontsize": "x-large", "fontweight": "bold", "color": color}
            _style.beside(panel, f"{gene} predicted {total}", (0, 1), (left, 4.4 * _style.em()), **title)
            line = "  ·  ".join([*words, notes[j]] if notes[j] else words)
            _style.beside(panel, line, (0, 1), (left, 2.8 * _style.em()), color=_style.MUTED, gid="facts")
            panel.set_xlabel(str(prediction.header["unit"]))
            if intervals is not None and np.isfinite(intervals.width[spot, j]):
                low, high = intervals.lower[spot, j], intervals.upper[spot, j]
                _draw_interval(panel, low, high, len(steps[gene]) - 1, intervals, left, decimals)
            if np.isfinite(truth[j]):
                _draw_truth(panel, float(truth[j]), decimals)
    return axes


def _draw_waterfall(ax: Axes, steps: pd.DataFrame, decimals: int, kind: str, *, grey: bool) -> float:
    """Draw bars that add up to a prediction, and columns of numbers before them, which reach so many points left."""
    _contributions.draw_steps(ax, steps, grey=grey)
    ax.use_sticky_edges = False
    ax.margins(x=0.03)
    ax.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
    ax.set(ylim=(len(steps) - 0.5, -0.5), yticks=[], label="contributions")
    # Corrections, adjustment and total have neither weight nor value.
    weighed = list(zip(steps["weight"], steps["value"], steps["weight"].notna(), strict=True))
    columns = {
        kind: steps["label"].to_list(),
        "weight": [_style.percent(weight, 1) if has else "" for weight, _, has in weighed],
        "value": [_contributions.value_text(value, decimals) if has else "" for _, value, has in weighed],
        "contribution": _contributions.contribution_texts(steps, decimals),
    }
    return -_style.write_columns(ax, columns, before=True, bold=len(steps) - 1)


def _draw_truth(ax: Axes, truth: float, decimals: int) -> None:
    """Draw a broken line where a value was measured."""
    ax.axvline(truth, color="black", lw=1.4, ls=(0, (4, 2)), zorder=4, gid="truth")
    words, coords = f"measured {_style.number(truth, decimals)}", ("data", "axes fraction")
    _style.beside(ax, words, (truth, 1), (0, 3), coords, gid="measured")


def _draw_interval(
    ax: Axes, low: float, high: float, row: int, intervals: Intervals, left: float, decimals: int
) -> None:
    """Draw a box on the prediction, and write below the columns of numbers what it is and what must be said of it."""
    # Hatched where it must not be read as an interval for new donors.
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": "black", "hatch": intervals.hatch, "zorder": 3}
    ax.barh(row, high - low, left=low, height=0.34, gid="interval", **style)
    words = f"{intervals.name}: {_style.number(low, decimals)} to {_style.number(high, decimals)}"
    _style.beside(ax, words, (0, 0), (left, -1.4 * _style.em()), gid="interval text")
    caveat = {"fontsize": "small", "color": _style.MUTED, "gid": "caveat"}
    _style.beside(ax, intervals.caveat, (0, 0), (left, -2.8 * _style.em()), **caveat)
