"""`rg.tl.evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._results import gene_index, predicted
from ragst_sd._validate import hint, listing
from ragst_sd.reference.genes import take_genes
from ragst_sd.tl._metrics import METRICS
from ragst_sd.tl._truth import normalized_truth, shared_genes, shared_spots, truth_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

SPOT_METRICS = (_keys.EFFECTIVE_N, _keys.EVIDENCE_SHARE, _keys.OUT_OF_REFERENCE)


def evaluate(
    sdata: SpatialData | AnnData,
    *,
    prediction_key: str = "predicted",
    truth_key: str = "table",
    truth: AnnData | None = None,
    layer: str | None = None,
    unit: str = "counts",
    genes: Sequence[str] | None = None,
    sample_key: str = "sample",
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compare a prediction with what was measured.

    The truth is normalised as the reference was (log1p of counts per 10,000, the same size-factor genes). Every
    metric is taken within a section, so that differences between sections do not count as accuracy.

    Parameters
    ----------
    sdata
        Object with the predicted and the measured table, or the predicted table itself.
    prediction_key
        Name of the predicted table.
    truth_key
        Name of the measured table.
    truth
        The measured table itself, where `sdata` is a bare predicted table.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    genes
        Genes to compare; all that both tables have if left out.
    sample_key
        Column of the measured table's `.obs` that names the sections; one section if it is not there.
    metrics
        Some of `"pearson"`, `"spearman"`, `"rmse"`, `"variance_kept"`; all if left out.

    Returns
    -------
    One line per gene, sample and metric: `gene`, `sample`, `metric`, `value`. `pearson` and `spearman` are NaN for
    genes that do not vary, and 0 for a prediction that does not. Lines with an empty `gene` hold the means over spots
    of `effective_n`, `evidence_share` and `out_of_reference`, and `n_spots`.

    Raises
    ------
    KeyError
        If a table, gene or layer does not exist.
    ValueError
        If the tables share no spots or genes, the truth is not counts, or it holds fewer than 200 of the genes that
        size factors rest on.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference)
    >>> rg.tl.predict(query, reference)
    >>> scores = rg.tl.evaluate(query, metrics=["pearson"])
    >>> list(scores.columns)
    ['gene', 'sample', 'metric', 'value']
    """
    import pandas as pd

    table, header = predicted(sdata, prediction_key)
    measured = truth_table(sdata, truth_key, truth)
    chosen = _chosen_metrics(metrics)
    matrix, names, counted = normalized_truth(measured, header, layer, unit)
    shared = shared_genes(table, names, genes)
    ours, theirs = shared_spots(table, measured, counted)
    columns = gene_index(table, shared)
    truth_values = take_genes(matrix, names, shared)
    samples = (
        measured.obs[sample_key].astype(str).to_numpy()[theirs]
        if sample_key in measured.obs
        else np.full(len(theirs), "sample1")
    )
    parts = []
    for sample in pd.unique(samples):
        in_sample = samples == sample
        rows = ours[in_sample]
        values = np.asarray(table.X[rows][:, columns], dtype=np.float64)
        spots = np.isfinite(values).any(axis=1)
        values = values[spots]
        expected = truth_values[theirs[in_sample][spots]].toarray().astype(np.float64)
        finite = np.isfinite(values)
        for name in chosen:
            score = _score(METRICS[name], values, expected, finite)
            parts.append(pd.DataFrame({"gene": shared, "sample": sample, "metric": name, "value": score}))
        of_spots = {name: table.obs[name].to_numpy(float)[rows] for name in SPOT_METRICS}
        summary = {name: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for name, v in of_spots.items()}
        summary["n_spots"] = float(spots.sum())
        parts.append(
            pd.DataFrame({"gene": "", "sample": sample, "metric": list(summary), "value": list(summary.values())})
        )
    return pd.concat(parts, ignore_index=True)


def _score(
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray, expected: np.ndarray, finite: np.ndarray
) -> np.ndarray:
    """A metric of every gene over the spots that have a prediction of it; NaN below two spots."""
    score = np.full(values.shape[1], np.nan)
    complete = finite.all(axis=0)
    if len(values) > 1 and complete.any():
        score[complete] = metric(values[:, complete], expected[:, complete])
    for gene in np.flatnonzero(~complete & (finite.sum(axis=0) > 1)):
        rows = finite[:, gene]
        score[gene] = metric(values[rows, gene : gene + 1], expected[rows, gene : gene + 1])[0]
    return score


def _chosen_metrics(metrics: Sequence[str] | None) -> list[str]:
    chosen = list(METRICS) if metrics is None else ([metrics] if isinstance(metrics, str) else list(metrics))
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        msg = f"`metrics` has {listing(unknown)}; available: {listing(METRICS)}.{hint(unknown[0], METRICS)}"
        raise ValueError(msg)
    return chosen
