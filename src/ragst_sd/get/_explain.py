"""`rg.get.explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import is_scrna
from ragst_sd._cited_values import level_means, measured_values
from ragst_sd._results import gene_index, holds_responses, matching_bank, predicted, require_matching, spot_index
from ragst_sd._validate import require_choice, require_key
from ragst_sd.get._cell_type_lines import cell_type_lines
from ragst_sd.get._regression_lines import mean_of_stack, regression_lines
from ragst_sd.get._response_parts import response_parts
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from ragst_sd.retrieval.bank import Bank

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
    import pandas as pd

    require_choice(terms, ("cited", "all"), "terms")
    by_row = terms == "all"
    table, header = predicted(sdata, prediction_key, any_task=True, exact=True)
    for name in (_keys.EVIDENCE, _keys.RESPONSE) if holds_responses(header) else (_keys.EVIDENCE,):
        require_key(name, table.layers, "table.layers", "It is written with the prediction; predict again.")
    spots, columns = spot_index(table, obs_names), gene_index(table, genes)
    if holds_responses(header):
        return response_parts(require_matching(reference, header), header, table, spots, columns)
    bank = matching_bank(reference, header, _cited_by(table, header, spots)[1])
    scrna = is_scrna(table, columns)
    if not scrna.any():
        return _from_rows(bank, header, table, spots, columns, by_row=by_row)
    parts = [cell_type_lines(bank, header, table, spots, columns[scrna])]
    if not scrna.all():
        parts.append(_from_rows(bank, header, table, spots, columns[~scrna], by_row=by_row))
    both = pd.concat(parts, ignore_index=True)
    by_spot = pd.Index(table.obs_names[spots]).get_indexer(both["query"])
    by_gene = pd.Index(table.var_names[columns]).get_indexer(both["gene"])
    return both.iloc[np.lexsort((by_gene, by_spot))].reset_index(drop=True)[list(COLUMNS)]


def _from_rows(
    bank: Bank, header: dict[str, Any], table: AnnData, spots: np.ndarray, genes: np.ndarray, *, by_row: bool
) -> pd.DataFrame:
    """Lines of genes that were measured."""
    import pandas as pd

    prediction = dense(table.X[spots][:, genes]).astype(np.float64)
    evidence = dense(table.layers[_keys.EVIDENCE][spots][:, genes]).astype(np.float64)
    cited, found = _lines(bank, header, table, spots, genes)
    stack = _has_regression(table, header)
    # What retrieval says by its share; where no cited row measured a gene, nothing.
    share = np.where(found.served, _share(table, genes) if stack else 1.0, 0.0)
    mean = ~found.served & np.isfinite(evidence)
    level = evidence
    if stack:
        levels, level_of = mean_of_stack(bank, header, table, table.var_names[genes])
        level = levels[level_of[spots]]
        mean |= np.isfinite(evidence) & (share < 1)
    rest = regression_lines(
        bank,
        header,
        table,
        spots,
        genes,
        share=np.where(np.isfinite(evidence), 1 - share, 0.0) if stack else np.zeros(evidence.shape),
        total=prediction - evidence,
        by_row=by_row,
    )

    # Each spot and gene has a place for each cited row, for the mean that stands in for them, and for the rest.
    n_rest = len(rest.reference)
    keep = np.concatenate(
        [found.used, (~found.served | mean)[..., None], np.ones((*evidence.shape, n_rest), dtype=bool)], axis=2
    )
    if n_rest > 1:
        says = (np.nan_to_num(rest.weight) != 0) | (np.nan_to_num(rest.contribution) != 0)
        says[..., 0] |= ~says.any(axis=2)
        keep[..., -n_rest:] = says
    place = np.broadcast_to(len(cited) + 2 + np.arange(n_rest), (*evidence.shape, n_rest))
    line = np.concatenate([found.rows, (len(cited) + ~mean)[..., None], place], axis=2)
    numbers = {
        "weight": (found.weight * share[..., None], np.where(mean, 1 - share, np.nan), rest.weight),
        "value": (found.value, np.where(mean, level, np.nan), rest.value),
        "correction": (found.correction, np.where(mean, 0.0, np.nan), rest.correction),
        "contribution": (
            found.contribution * share[..., None],
            np.where(mean, (1 - share) * level, np.nan),
            rest.contribution,
        ),
    }
    filled = {
        name: np.concatenate([first, middle[..., None], last], axis=2)[keep]
        for name, (first, middle, last) in numbers.items()
    }
    spot, one, _ = np.nonzero(keep)
    line = line[keep]
    names = {
        "reference": np.array([*cited["reference"], "reference mean", "not measured", *rest.reference], dtype=object),
        _keys.DONOR: np.array([*cited[_keys.DONOR].astype(str), "", "", *rest.donor], dtype=object),
        _keys.SAMPLE: np.array([*cited[_keys.SAMPLE].astype(str), "", "", *rest.sample], dtype=object),
    }
    frame = {
        "query": table.obs_names.to_numpy(dtype=object)[spots][spot],
        "gene": table.var_names.to_numpy(dtype=object)[genes][one],
        **{name: values[line] for name, values in names.items()},
        **filled,
    }
    return pd.DataFrame(frame)[list(COLUMNS)]


def _has_regression(table: AnnData, header: dict[str, Any]) -> bool:
    if _keys.RETRIEVAL_SHARE in table.var and len(header[_keys.CITED]) and (table.var[_keys.RETRIEVAL_SHARE] < 1).any():
        require_key(_keys.REGRESSION_KEY, table.obsm, "table.obsm", "`rg.tl.predict` writes it; predict again.")
    return _keys.REGRESSION_KEY in table.obsm


def _share(table: AnnData, genes: np.ndarray) -> np.ndarray:
    return table.var[_keys.RETRIEVAL_SHARE].to_numpy(np.float64)[genes]


class _Lines(NamedTuple):
    """What each cited row brings, by falling weight: (spots, genes, k) arrays unless said otherwise."""

    rows: np.ndarray
    """Lines of the bank."""
    used: np.ndarray
    """Whether there is a line at all."""
    served: np.ndarray
    """(spots, genes) whether a cited row measured the gene."""
    weight: np.ndarray
    value: np.ndarray
    correction: np.ndarray
    contribution: np.ndarray


def _cited_by(table: AnnData, header: dict[str, Any], spots: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """(spots, k) lines of the rows that the spots cite, 0 for none, and these lines."""
    rows, held = (np.asarray(table.obsm[name])[spots] for name in (_keys.ROWS, _keys.WEIGHTS))
    cites = (rows >= 0) & (held > 0)
    cited = np.unique(rows[cites])
    return np.where(cites, np.searchsorted(cited, np.where(cites, rows, 0)), 0), header[_keys.CITED].iloc[cited]


def _lines(
    bank: Bank, header: dict[str, Any], table: AnnData, spots: np.ndarray, genes: np.ndarray
) -> tuple[pd.DataFrame, _Lines]:
    """The rows that the spots cite, and what each of them brings."""
    rows, cited = _cited_by(table, header, spots)
    held = np.asarray(table.obsm[_keys.WEIGHTS])[spots]
    cites = (np.asarray(table.obsm[_keys.ROWS])[spots] >= 0) & (held > 0)
    if not len(cited):
        nothing = np.zeros((len(spots), len(genes), rows.shape[1]))
        none = nothing.astype(bool)
        return cited, _Lines(
            rows[:, None] + nothing.astype(int), none, np.zeros(none.shape[:2], dtype=bool), *[nothing] * 4
        )
    values, measured, corrections = measured_values(bank, header, cited, table.var_names[genes])
    levels, level_of = level_means(bank, header, table, table.var_names[genes])
    levels = levels[level_of[spots]]

    votes = cites[:, :, None] & measured[rows]
    weight = np.where(votes, held.astype(np.float64)[:, :, None], 0.0)
    total = weight.sum(axis=1, keepdims=True)
    weight = np.divide(weight, total, out=weight, where=total > 0)
    value = np.where(votes, values[rows], np.nan)
    correction = np.where(votes, corrections[rows] + levels[:, None, :], np.nan)
    contribution = np.where(weight > 0, weight * (value + correction), 0.0)

    served = votes.any(axis=1)
    by_gene = (part.transpose(0, 2, 1) for part in (weight, value, correction, contribution))
    weight, value, correction, contribution = by_gene
    rows = np.broadcast_to(rows[:, None, :], weight.shape)
    used = cites[:, None, :] & served[:, :, None]
    order = np.lexsort((rows, np.where(used, -weight, np.inf)), axis=-1)
    parts = (rows, used, weight, value, correction, contribution)
    rows, used, *rest = (np.take_along_axis(part, order, axis=-1) for part in parts)
    return cited, _Lines(rows, used, served, *rest)
