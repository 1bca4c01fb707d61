"""What is done next with expression, on a prediction and on the truth: regions compared, gene sets scored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd._metrics import pearson, spearman, varies
from ragst_sd._validate import listing
from ragst_sd.tl._embed_genes import read_gene_sets

GENE_SETS = "gene_set_pearson"
_FEWEST_IN_REGION = 3
_FEWEST_IN_SET = 3


@dataclass(frozen=True)
class About:
    """What a metric may know of the spots and genes of a section, beside their values."""

    genes: Any
    """(g,) names."""
    positions: np.ndarray | None = None
    """(n, 2) coordinates."""
    labels: np.ndarray | None = None
    """(n,) texts, empty for unlabelled spots."""
    gene_sets: Mapping[str, Iterable[str]] | None = None
    """Genes of each set."""
    n_top: int = 20
    rng: int = 0


def region_agreement(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, float]:
    """Agreement of the ranking of genes by their difference between each region and the others, over regions."""
    from sklearn.metrics import ndcg_score

    assert about.labels is not None
    out: dict[str, float] = {}
    labelled = about.labels != ""
    names, sizes = np.unique(about.labels[labelled], return_counts=True)
    regions = names[(sizes >= _FEWEST_IN_REGION) & (labelled.sum() - sizes >= _FEWEST_IN_REGION)]
    if not len(regions) or truth.shape[1] < 2:
        return out
    ours, theirs = (_differences(values[labelled], about.labels[labelled], regions) for values in (predicted, truth))
    agreement = spearman(ours, theirs)
    if np.isfinite(agreement).any():
        out["de_agreement"] = float(np.nanmean(agreement))
    higher = (theirs > 0).any(axis=0)
    if higher.any():
        gain = np.maximum(theirs[:, higher], 0).T
        ranked = ours[:, higher].T
        of_regions = [ndcg_score(a[None], b[None], k=about.n_top) for a, b in zip(gain, ranked, strict=True)]
        out["de_ndcg"] = float((np.array(of_regions) * varies(ranked.T)).mean())
    return out


def _differences(values: np.ndarray, labels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(genes, regions) t statistic of each gene between the spots of a region and all others, 0 where there is none."""
    import scanpy as sc

    data = AnnData(values)
    data.obs["region"] = pd.Categorical(labels)
    # Fold changes, which have no logarithm where a predicted mean is below zero, are not used.
    with np.errstate(invalid="ignore", divide="ignore"):
        sc.tl.rank_genes_groups(data, "region", groups=list(regions), method="t-test")
    ranked = data.uns["rank_genes_groups"]
    columns = [pd.Series(ranked["scores"][region], index=ranked["names"][region])[data.var_names] for region in regions]
    return np.nan_to_num(np.stack(columns, axis=1).astype(np.float64), posinf=0.0, neginf=0.0)


def gene_set_agreement(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, Any]:
    """Pearson correlation over spots between the scores of each set of genes."""
    import scanpy as sc

    assert about.gene_sets is not None
    tables = [AnnData(values, var=pd.DataFrame(index=about.genes)) for values in (predicted, truth)]
    out = {}
    for name, genes in about.gene_sets.items():
        members = sorted(set(genes) & set(about.genes))
        out[name] = np.nan
        if len(members) < _FEWEST_IN_SET or len(truth) < 3:
            continue
        try:
            for table in tables:
                sc.tl.score_genes(table, members, score_name="score", random_state=about.rng)
        except RuntimeError:  # no other genes of like expression, as scanpy says
            continue
        scores = [table.obs[["score"]].to_numpy(np.float64) for table in tables]
        out[name] = float(pearson(*scores)[0])
    return {GENE_SETS: pd.Series(out, dtype=float)}


def gene_sets_of(
    gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None, metrics: Sequence[str], genes: Sequence[str]
) -> dict[str, set[str]] | None:
    """The gene sets that a metric needs; `None` where none does.

    Raises
    ------
    ValueError
        If one does and there are none, or none has enough of the genes.
    """
    if GENE_SETS not in metrics:
        return None
    if gmt is None:
        raise ValueError(
            f"`metrics`: {GENE_SETS!r} needs gene sets. Give a GMT file or a mapping from set to genes with `gmt=`."
        )
    sets = read_gene_sets(gmt, "gmt")
    if not any(len(members.intersection(genes)) >= _FEWEST_IN_SET for members in sets.values()):
        some = [gene for members in sets.values() for gene in sorted(members)]
        raise ValueError(
            f"`gmt`: no set has {_FEWEST_IN_SET} of the genes that are compared ({listing(list(genes))}); genes of the "
            f"sets: {listing(some)}. Use sets with names of the same kind, or compare more genes."
        )
    return sets
