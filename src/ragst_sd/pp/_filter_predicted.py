"""`rg.pp.filter_predicted`."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import check_key_added
from ragst_sd._fields import write_sums
from ragst_sd._results import MIN_CEILING, predicted
from ragst_sd._validate import require_between, require_key, require_positive

logger = logging.getLogger(__name__)

_TODO = (
    'Run `rg.tl.cross_validate(reference, genes="all")` or `rg.tl.calibrate(reference)`, and then `rg.tl.predict` '
    "again: it copies what they found."
)


def filter_predicted(
    sdata: SpatialData | AnnData,
    *,
    min_cv_pearson: float | None = None,
    min_share_of_ceiling: float | None = None,
    min_n_measured: int | None = None,
    prediction_key: str = "predicted",
    key_added: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Keep the genes whose prediction can be trusted.

    The accuracy of each gene was measured on held-out donors. It is valid only for similar tissue. Genes whose accuracy
    was not measured are dropped.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself.
    min_cv_pearson
        Keep genes whose Pearson correlation on held-out donors, `.var["cv_pearson"]`, is at least this.
    min_share_of_ceiling
        Keep genes that reach at least this share of what the noise of the counts allows: `.var["cv_pearson"]` over
        `.var["noise_ceiling"]`. Genes whose ceiling is below 0.1 are noise, and are dropped.
    min_n_measured
        Keep genes that at least so many rows of the reference measured.
    prediction_key
        Name of the predicted table.
    key_added
        Name of the new table; the predicted table itself is replaced if left out.
    inplace
        `False` returns the table and leaves `sdata` as it is. A bare table is cut in place otherwise.

    Returns
    -------
    `None`, or the table if `inplace=False`. It has the genes that pass in their order, and all else as it was: layers,
    spots, provenance. :func:`ragst_sd.get.neighbors`, :func:`ragst_sd.get.explain` and :func:`ragst_sd.get.influence`
    work as before. `.uns["retrieval"]["filter"]` holds the thresholds, `n_genes` before, and how many genes were
    dropped for which reason: `not_assessed`, `cv_pearson`, `share_of_ceiling`, `n_measured`, each gene counted under
    the first that applies. For a table that was filtered before, `n_genes` is that of the whole prediction, the counts
    of all calls are added up, and of each threshold the strictest is kept.
    `.obs["evidence_share"]` and the other columns that describe spots stay those over all genes.

    Raises
    ------
    KeyError
        If the table does not exist or lacks a column.
    ValueError
        If no threshold is given or one makes no sense; no gene was assessed; no gene passes; the table has lost its
        provenance; or another table has the name `key_added`.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> scores = rg.tl.cross_validate(reference, methods=["knn"], genes="all", progress=False)
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> rg.pp.filter_predicted(query, min_cv_pearson=0.2)
    >>> bool(query.tables["predicted"].var["cv_pearson"].min() >= 0.2)
    True
    """
    prediction = predicted(sdata, prediction_key)
    table, header = prediction.table, prediction.header
    if isinstance(sdata, AnnData) and key_added is not None:
        raise ValueError(
            "`key_added` names a table of a SpatialData; `sdata` is a bare table. Use `inplace=False` to get a new one."
        )
    if isinstance(sdata, SpatialData) and inplace and key_added is not None:
        check_key_added(sdata, key_added)
    thresholds: dict[str, Any] = {"min_cv_pearson": min_cv_pearson, "min_share_of_ceiling": min_share_of_ceiling}
    thresholds["min_n_measured"] = min_n_measured
    thresholds = {name: value for name, value in thresholds.items() if value is not None}
    keep, dropped = _judge(table, thresholds)
    reasons = ", ".join(f"{number} for {name}" for name, number in dropped.items() if number)
    if not keep.any():
        shown = [name for name in (_keys.CV_PEARSON, _keys.N_MEASURED) if name in table.var]
        best = ", ".join(f"{name} {np.nanmax(table.var[name]):.3g}" for name in shown)
        raise ValueError(
            f"None of the {table.n_vars} genes passes ({reasons}). The best of them have {best}: ask for less, or do "
            "not use this prediction."
        )
    logger.info("Dropping %d of %d genes (%s).", int((~keep).sum()), table.n_vars, reasons or "none fails")
    header = {**header, "filter": _record(header.get("filter"), thresholds, table.n_vars, dropped)}
    if isinstance(sdata, AnnData) and inplace:
        # Not `table`, which is a copy where values are stored as a sparse matrix.
        filtered = sdata
        filtered._inplace_subset_var(keep)
    else:
        filtered = table[:, keep].copy()
    filtered.uns[_keys.RETRIEVAL] = header
    write_sums(filtered)
    if inplace and isinstance(sdata, SpatialData):
        sdata.tables[key_added or prediction_key] = filtered
    return None if inplace else filtered


def _record(
    before: dict[str, Any] | None, thresholds: dict[str, Any], n_genes: int, dropped: dict[str, int]
) -> dict[str, Any]:
    """The header entry `filter`: what was dropped since the prediction was made, by this call and by those before."""
    if before is None:
        return {**thresholds, "n_genes": n_genes, "dropped": dropped}
    strictest = {name: max(value, before.get(name, value)) for name, value in thresholds.items()}
    total = Counter(dropped)
    total.update({name: int(number) for name, number in before["dropped"].items()})
    return {**before, **strictest, "n_genes": int(before["n_genes"]), "dropped": dict(total)}


def _judge(table: AnnData, thresholds: dict[str, Any]) -> tuple[np.ndarray, dict[str, int]]:
    """Mask of the genes that pass all thresholds, and how many fail for which reason."""
    if not thresholds:
        raise ValueError(
            "No threshold is given. Ask for at least one of `min_cv_pearson`, `min_share_of_ceiling`, `min_n_measured`."
        )
    for name in ("min_cv_pearson", "min_share_of_ceiling"):
        require_between(thresholds.get(name, 0), -1, 1, name)
    require_positive(thresholds.get("min_n_measured"), "min_n_measured", whole=True, optional=True)
    fails: dict[str, np.ndarray] = {}
    if {"min_cv_pearson", "min_share_of_ceiling"} & set(thresholds):
        pearson = _column(table, _keys.CV_PEARSON)
        fails["not_assessed"] = np.isnan(pearson)
        fails["cv_pearson"] = ~(pearson >= thresholds.get("min_cv_pearson", -np.inf))
    if "min_share_of_ceiling" in thresholds:
        ceiling = _column(table, _keys.NOISE_CEILING)
        known = ceiling >= MIN_CEILING
        share = np.divide(pearson, ceiling, out=np.full(len(ceiling), np.nan), where=known)
        fails["share_of_ceiling"] = ~(share >= thresholds["min_share_of_ceiling"])
    if "min_n_measured" in thresholds:
        fails["n_measured"] = _column(table, _keys.N_MEASURED) < thresholds["min_n_measured"]
    keep, dropped = np.ones(table.n_vars, dtype=bool), {}
    for name, failing in fails.items():
        dropped[name] = int((keep & failing).sum())
        keep &= ~failing
    return keep, dropped


def _column(table: AnnData, name: str) -> np.ndarray:
    """A column of `var`; an error with what to run if it is missing or was not assessed."""
    require_key(name, table.var, "table.var", "`rg.tl.predict` writes it; predict again.")
    values = table.var[name].to_numpy(float)
    if np.isnan(values).all():
        ceiling = " A noise ceiling needs counts in the reference." * (name == _keys.NOISE_CEILING)
        raise ValueError(f"`var[{name!r}]` is NaN for all {table.n_vars} genes: it was not assessed. {_TODO}{ceiling}")
    return values
