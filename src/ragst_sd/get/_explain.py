"""`rg.get.explain`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._cell_types import is_scrna
from ragst_sd._cited_values import Origin
from ragst_sd._results import Prediction, matching_bank, predicted, require_matching
from ragst_sd._validate import name_list, require_choice, require_key
from ragst_sd.get._explain_lines import cell_type_lines, explain_responses, in_order, lines_of, regression_lines

# Where a narrow screen leaves out the middle, what was cited with which weight is still there.
COLUMNS = (
    "reference", _keys.DONOR, "weight", "query", "gene", _keys.SAMPLE, "value", "correction", "contribution",
)  # fmt: skip


def explain(
    sdata: SpatialData | AnnData,
    reference: AnnData,
    *,
    obs_names: str | Sequence[str],
    genes: str | Sequence[str],
    prediction_key: str = "predicted",
    terms: str = "cited",
) -> pd.DataFrame:
    r"""Split a predicted value into the measured values that it was computed from.

    .. math:: \hat y_g(x) = a_g \sum_j w_{jg}\, (y_{jg} + c_{jg}) + (1 - a_g)\, m_g
              + (1 - a_g) \sum_j H_j (y_{jg} - m_{s(j)g})

    with one line for each cited row j: its `weight` (the share a of retrieval times w among the cited rows that
    measured gene g), its measured `value` y, the `correction` c of its section, and the `contribution`, weight × (value
    + correction). The next lines are the mean m with the remaining weight, and the regression H of `rag`. Methods
    without a regression have a = 1 and a last line `adjustment`.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself; also a table that :func:`ragst_sd.tl.perturb` returned.
    reference
        The very reference that the prediction was made from.
    obs_names
        Spot or spots (cells of predicted responses).
    genes
        Gene or genes.
    prediction_key
        Name of the predicted table.
    terms
        `"cited"` sums the regression of `rag` up by section; `"all"` gives it row by row, over all rows that were used.

    Returns
    -------
    For each spot and gene one line per cited row by falling weight, and a last line `adjustment`: `reference`, `donor`,
    `weight`, `query`, `gene`, `sample`, `value` (measured, in the unit of the prediction), `correction` (what
    brings the row's section to the mean of the reference; 0 where sections were not centred), `contribution` (weight
    times the sum of value and correction). Contributions add up to the prediction. Rows that did not measure the gene
    have weight 0 and value NaN, and the others share their weight. Methods that cite no rows give `reference mean` and
    `adjustment`. Where the regression of `rag` takes part, `reference mean` holds what is left of the weight, and in
    place of `adjustment` there is a line `regression` for each section, or one line named by each row, with signed
    weights; of a reference on disk, whose rows are not read for it, a single one. A spot without an embedding, or a
    gene that no cited row measured and no regression gives, has a line `not measured` with NaN.

    Lines of a gene from single cells (`.var["evidence"]` is `"scRNA-seq"`) are cell types: `reference` is the type,
    `weight` its predicted fraction, `value` log1p of its signature. Fractions mix counts and not their logarithms, so
    that `contribution` is the type's share of the mixture, times the prediction; these too add up to the prediction,
    and `correction` is what makes it weight times the sum of value and correction.

    Of predicted responses, `perturbation` and `context` stand in place of `donor` and `sample`, and there is no
    `correction`. The first line `source` is the cell as it was, the cited rows by falling weight bring their measured
    responses, and `adjustment` is last. If no rows are cited, one line such as `nothing cited: mean of the responses
    that may be used` holds what the method starts from (`control: no response`, for a control). Contributions add up
    to the predicted expression, and all but the first to the response.

    Measured values are read from the reference, which the table only points to; `.X`, `.layers["evidence"]`,
    `.layers["response"]` (of responses), `.obsm["retrieval_rows"]`, `["retrieval_weights"]` and `.uns["retrieval"]`
    from the table, with `rag` also `.obsm["regression_key"]` and `.var["retrieval_share"]`; signatures from the
    reference, fractions from `.obsm["cell_type_fraction"]` of the table.

    Raises
    ------
    KeyError
        If the table, its evidence, a spot or a gene does not exist.
    ValueError
        If `terms` is neither, the table has lost its provenance, or the reference is missing, is another one, changed,
        or was fitted anew without the means of its sections or its regression; or its cell types are others than those
        of the prediction.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> spot, gene = query.tables["predicted"].obs_names[0], reference.var_names[0]
    >>> parts = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    >>> difference = parts["contribution"].sum() - query.tables["predicted"][spot, gene].X.item()
    >>> bool(abs(difference) < 1e-5)
    True
    """
    require_choice(terms, ("cited", "all"), "terms")
    prediction = predicted(sdata, prediction_key, any_task=True, exact=True)
    for name in (_keys.EVIDENCE, _keys.RESPONSE) if prediction.of_responses else (_keys.EVIDENCE,):
        require_key(name, prediction.table.layers, "table.layers", "It is written with the prediction; predict again.")
    spots, columns = prediction.spots(obs_names), prediction.genes(name_list(genes, "genes"))
    if prediction.of_responses:
        return explain_responses(prediction, require_matching(prediction, reference), spots, columns)
    bank = matching_bank(prediction, reference, _cited_by(prediction, spots)[2])
    scrna, parts = is_scrna(prediction.table, columns), []
    for of_types, lines in ((True, cell_type_lines), (False, partial(_lines_of_rows, by_row=terms == "all"))):
        places = np.flatnonzero(scrna == of_types)
        if len(places):
            origin = Origin(prediction, bank, columns[places])
            parts += [part.assign(gene=places[part["gene"]]) for part in lines(origin, spots)]
    return in_order(parts, prediction.table, spots, columns, COLUMNS)


def _lines_of_rows(origin: Origin, spots: np.ndarray, *, by_row: bool) -> list[pd.DataFrame]:
    """Lines of genes that were measured: cited rows, the mean or that nothing was measured, and the rest of a value."""
    prediction, genes = origin.prediction, origin.genes
    evidence = prediction.values(genes, spots, layer=_keys.EVIDENCE)
    known = np.isfinite(evidence)
    has_line, measured, cited = _cited_lines(origin, spots)
    has_regression = _has_regression(prediction)
    # The share of retrieval: nothing where no cited row measured a gene.
    share = prediction.table.var[_keys.RETRIEVAL_SHARE].to_numpy(np.float64)[genes] if has_regression else 1.0
    share = np.where(measured, share, 0.0)
    has_mean, mean = ~measured & known, evidence
    if has_regression:
        means, pattern = origin.mean_of_stack()
        mean = means[pattern[spots]]
        has_mean |= known & (share < 1)
    k = has_line.shape[2]
    rest = regression_lines(
        origin,
        spots,
        rank=k + 1,
        share=np.where(known, 1 - share, 0.0) if has_regression else np.zeros(evidence.shape),
        total=prediction.values(genes, spots) - evidence,
        by_row=by_row,
    )
    beside_rows = {
        "reference": np.where(has_mean, "reference mean", "not measured").astype(object),
        "weight": np.where(has_mean, 1 - share, np.nan),
        "value": np.where(has_mean, mean, np.nan),
        "correction": np.where(has_mean, 0.0, np.nan),
        "contribution": np.where(has_mean, (1 - share) * mean, np.nan),
    }
    columns = {name: values[..., None] for name, values in beside_rows.items()}
    parts = [lines_of((~measured | has_mean)[..., None], k, **columns), rest]
    if k:
        cited |= {name: cited[name] * share[..., None] for name in ("weight", "contribution")}
        parts.append(lines_of(has_line, **cited))
    return parts


def _has_regression(prediction: Prediction) -> bool:
    """Whether a regression takes part in the values; a `KeyError` if the table lost what it was computed from."""
    var, obsm = prediction.table.var, prediction.table.obsm
    if _keys.RETRIEVAL_SHARE in var and len(prediction.cited) and (var[_keys.RETRIEVAL_SHARE] < 1).any():
        require_key(_keys.REGRESSION_KEY, obsm, "table.obsm", "`rg.tl.predict` writes it; predict again.")
    return _keys.REGRESSION_KEY in obsm


def _cited_by(prediction: Prediction, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """(spots, k) lines of the rows that the spots cite, 0 for none, their weights, 0 for none, and these lines."""
    rows, weights = prediction.citations(spots)
    cited = np.unique(rows[rows >= 0])
    return np.searchsorted(cited, rows), weights.astype(np.float64), prediction.cited.iloc[cited]


def _cited_lines(origin: Origin, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Lines of cited rows.

    Returns
    -------
    (spots, genes, k) whether a row has a line, as all rows of a spot have where one of them measured the gene; (spots,
    genes) whether one did; and what :func:`lines_of` takes.
    """
    rows, weights, cited = _cited_by(origin.prediction, spots)
    shape = (len(spots), len(origin.genes))
    if not len(cited):
        return np.zeros((*shape, 0), dtype=bool), np.zeros(shape, dtype=bool), {}
    value, measured, correction = (part[rows].transpose(0, 2, 1) for part in origin.measured_values(cited))
    levels, pattern = origin.level_means()
    counts = (weights > 0)[:, None] & measured
    weight = np.where(counts, weights[:, None], 0.0)
    total = weight.sum(axis=2, keepdims=True)
    weight = np.divide(weight, total, out=weight, where=total > 0)
    value = np.where(counts, value, np.nan)
    correction = np.where(counts, correction + levels[pattern[spots]][..., None], np.nan)
    any_counts = counts.any(axis=2)
    has_line = (weights > 0)[:, None] & any_counts[..., None]
    order = np.lexsort((np.broadcast_to(rows[:, None], has_line.shape), np.where(has_line, -weight, np.inf)), axis=-1)
    columns = {
        "rank": np.argsort(order, axis=-1),
        "weight": weight,
        "value": value,
        "correction": correction,
        "contribution": np.where(weight > 0, weight * (value + correction), 0.0),
    }
    for name in ("reference", _keys.DONOR, _keys.SAMPLE):
        columns[name] = cited[name].astype(str).to_numpy(dtype=object)[rows][:, None]
    return has_line, any_counts, columns
