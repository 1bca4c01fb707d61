"""`rg.get.risk_coverage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._metrics import METRICS, finite_mean, relative_spread, score
from ragst_sd._results import MORE_IS_BETTER, predicted
from ragst_sd._several import over_sections
from ragst_sd._truth import compare, truth_table
from ragst_sd._validate import as_names, hint, listing, require_key
from ragst_sd.retrieval.training import dense

WIDTH = "interval_width"
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_RANDOM_ORDERS = 5


@over_sections(not_with="truth")
def risk_coverage(
    sdata: SpatialData | AnnData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    prediction_key: str = "predicted",
    truth_key: str | None = None,
    truth: AnnData | None = None,
    by: str | Sequence[str] | None = None,
    shares: Sequence[float] = _SHARES,
    genes: str | Sequence[str] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    sample_key: str = "sample",
    baselines: bool = True,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> pd.DataFrame:
    r"""Compute the error of the remaining spots when the least grounded ones are left out.

    If an order detects where predictions fail, the error falls as fewer spots are kept. No order uses the truth, except
    `"oracle"`.

    Parameters
    ----------
    sdata
        Object with the predicted and the measured table, or a list or a mapping of them; or a predicted table itself.
    prediction_key
        Name of the predicted table.
    truth_key
        Name of the measured table; may be left out if only one annotates the same shapes.
    truth
        The measured table itself, where `sdata` is a bare predicted table.
    by
        What orders the spots, one or several: `"disagreement"` (mean over genes of `.layers["disagreement"]` over the
        gene's own mean), `"interval_width"` (the same of `upper - lower`), or a column of the predicted table's
        `.obs`. Small values are kept, but of `effective_n`, `n_donors` and `evidence_share` large ones.
        `"disagreement"` if left out.
    shares
        Shares of the spots to keep, above 0 and at most 1.
    genes
        Genes to compare; all that both tables have if left out.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    sample_key
        Column of the measured table's `.obs` that names the sections; one section if it is not there.
    baselines
        Whether to add `"random"` (mean of 5 random orders) and `"oracle"` (by the spot's true squared error over all
        genes; since metrics are means over genes, another order may be a little better).
    rng
        Seed, generator or seed sequence of numpy, of the random orders; `None` draws anew at each call.

    Returns
    -------
    Long frame `by`, `share`, `n_spots` (kept), `metric`, `value`; for a list or a mapping there is a first column
    `section`. Metrics are means over genes, then over sections:
    `rmse` and `mae` in the unit of the prediction, `nrmse` (RMSE over the standard deviation of the gene in the whole
    section, so that every gene counts alike), `spread`, how far the measured values of the kept spots lie from the
    gene's mean in the whole section, in the same standard deviations, and `pearson` over the kept spots of a section.
    Where `spread` falls with the error, the order keeps spots that are plain, not only spots that are predicted well;
    `pearson` then falls too. Spots without a prediction take no part.

    Raises
    ------
    KeyError
        If a table, gene, layer or column does not exist, or the table has no intervals to order by.
    ValueError
        If there is no measured table of the shapes, or several and `truth_key` is left out; a share makes no sense,
        the tables share no spots or genes, or the truth is not counts.

    References
    ----------
    El-Yaniv & Wiener (2010), On the foundations of noise-free selective classification, J. Mach. Learn. Res. 11, 1605,
    for risk as a function of coverage.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> risk = rg.get.risk_coverage(query, shares=[1.0, 0.5])
    >>> list(risk["by"].unique())
    ['disagreement', 'random', 'oracle']
    """
    prediction = predicted(sdata, prediction_key)
    table = prediction.table
    shares = np.atleast_1d(np.asarray(shares, dtype=np.float64)).tolist()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"`shares` is {listing(shares)}; name shares of the spots to keep, above 0 and at most 1.")
    orders = as_names(_keys.DISAGREEMENT if by is None else by)
    for name in orders:
        _check_order(table, name)
    compared = compare(prediction, truth_table(prediction, truth_key, truth), layer=layer, unit=unit, genes=genes)
    draw = np.random.default_rng(rng)
    lines: list[tuple[str, float, str, str, int, float]] = []
    for section in compared.sections(sample_key):
        values, expected = dense(section.values), dense(section.expected)
        center, spread = expected.mean(axis=0), expected.std(axis=0)
        spread[spread == 0] = np.nan
        risks = [(name, _risk(table, name, section.rows, compared.columns)) for name in orders]
        if baselines:
            risks += [("random", draw.random(len(values))) for _ in range(_RANDOM_ORDERS)]
            risks.append(("oracle", finite_mean(((values - expected) / spread) ** 2, axis=1)))
        for name, risk in risks:
            # Spots of which nothing is known go first.
            order = np.argsort(np.where(np.isfinite(risk), risk, np.inf), kind="stable")
            for share in shares:
                spots = order[: max(1, round(share * len(order)))]
                errors = _errors(values[spots], expected[spots], center, spread)
                lines += [(name, share, metric, section.sample, len(spots), value) for metric, value in errors.items()]
    keys = ["by", "share", "metric"]
    frame = pd.DataFrame(lines, columns=[*keys, "sample", "n_spots", "value"])
    within = frame.groupby([*keys, "sample"], sort=False).mean()
    over = within.groupby(keys, sort=False).agg({"n_spots": "sum", "value": "mean"}).reset_index()
    over["n_spots"] = over["n_spots"].astype(int)
    return over[["by", "share", "n_spots", "metric", "value"]]


def _errors(values: np.ndarray, expected: np.ndarray, center: np.ndarray, spread: np.ndarray) -> dict[str, float]:
    """Each metric on the spots that are kept, a mean over genes."""
    error = values - expected
    rmse = np.sqrt(finite_mean(error**2, axis=0))
    return {
        "rmse": float(finite_mean(rmse)),
        "mae": float(finite_mean(finite_mean(np.abs(error), axis=0))),
        "nrmse": float(finite_mean(rmse / spread)),
        "spread": float(finite_mean(np.sqrt(finite_mean((expected - center) ** 2, axis=0)) / spread)),
        "pearson": float(finite_mean(score(METRICS["pearson"], values, expected, np.isfinite(values)))),
    }


def _risk(table: AnnData, name: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(rows,) what orders the spots: those with large values are left out first."""
    if name in (_keys.DISAGREEMENT, WIDTH):
        sides = (_keys.UPPER, _keys.LOWER) if name == WIDTH else (name,)
        spread, *less = (np.asarray(table.layers[side])[rows][:, columns] for side in sides)
        return relative_spread(spread - less[0] if less else spread)
    values = table.obs[name].to_numpy(float)[rows]
    return -values if name in MORE_IS_BETTER else values


def _check_order(table: AnnData, name: str) -> None:
    """Raise a `KeyError` unless the table has what `by` names."""
    if name in (WIDTH, _keys.DISAGREEMENT):
        todo = "Predict with `rg.tl.predict(..., intervals=...)`." if name == WIDTH else "Predict again."
        require_key(_keys.UPPER if name == WIDTH else name, table.layers, "the predicted table's layers", todo)
    elif name not in table.obs or table.obs[name].dtype.kind not in "fiub":
        known = [_keys.DISAGREEMENT, WIDTH, *table.obs.select_dtypes(["number", "bool"])]
        raise KeyError(f"`by` is {name!r}; spots can be ordered by {listing(known)}.{hint(name, known)}")
