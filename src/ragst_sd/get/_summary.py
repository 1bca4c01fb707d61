"""`rg.get.summary`."""

from __future__ import annotations

import pandas as pd

from ragst_sd import _keys
from ragst_sd._metrics import group_means
from ragst_sd._validate import listing

_GENE_SETS = "gene_set_pearson"
_COLUMNS = ("gene", _keys.SAMPLE, "metric", "value")


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise scores per gene in one line per section or method.

    Metrics are averaged over genes (`variance_kept`: the median), without genes for which they are not defined. Scores
    of :func:`ragst_sd.tl.cross_validate` are then averaged over the sections of a held-out donor, and over donors.

    Parameters
    ----------
    scores
        Made by :func:`ragst_sd.tl.evaluate` or :func:`ragst_sd.tl.cross_validate`. Read are `gene`, `sample`, `metric`
        and `value`, and where they are there `section`, `method`, `fold` and `unit`.

    Returns
    -------
    One column per metric. Of `evaluate`: a line per section, and `n_genes`, the number of genes behind `pearson` and
    the other metrics per gene; `pearson_all_genes` is given as well. Of `cross_validate`: a line per method, and per
    unit and number of donors where there are several.

    Raises
    ------
    ValueError
        If `scores` lacks a column that both functions write.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> accuracy = rg.get.summary(rg.tl.evaluate(query))
    >>> int(accuracy.loc["donor3", "n_genes"])
    250
    """
    lacking = [name for name in _COLUMNS if name not in scores]
    if lacking:
        raise ValueError(f"`scores` lacks {listing(lacking)}; `rg.tl.evaluate` or `rg.tl.cross_validate` return them.")
    if "method" in scores:
        scores = scores[scores["method"] != ""]
        keys = [*["unit"] * (scores["unit"].nunique() > 1), "method", *["n_donors"] * ("n_donors" in scores)]
        by = {name: group_means(scores, name).groupby(keys, sort=False) for name in dict.fromkeys(scores["metric"])}
        return pd.DataFrame({name: groups["value"].mean() for name, groups in by.items()})
    keys = [name for name in ("section", _keys.SAMPLE) if name in scores]
    if len(keys) == 2 and (scores["section"].astype(str) == scores[_keys.SAMPLE].astype(str)).all():
        keys = ["section"]
    values = scores.groupby([*keys, "metric"], sort=False)["value"]
    metrics = list(dict.fromkeys(scores["metric"]))
    wide = values.mean().unstack("metric")[metrics]
    if "variance_kept" in metrics:
        wide["variance_kept"] = values.median().unstack("metric")["variance_kept"]
    of_genes = scores[(scores["gene"] != "") & (scores["metric"] != _GENE_SETS)]
    wide.insert(0, "n_genes", of_genes.groupby(keys, sort=False)["gene"].nunique())
    wide.columns.name = None
    return wide
