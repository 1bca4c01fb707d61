"""`rg.tl.evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._metrics import DEFAULT_METRICS, METRICS, by_genes, finite_mean, score_genes
from ragst_sd._results import MIN_CEILING, N_GENES, most_variable, predicted, require_columns
from ragst_sd._several import over_sections
from ragst_sd._truth import compare, some_of, truth_table
from ragst_sd._validate import as_names, as_seed, listing, require_key, require_known, require_positive
from ragst_sd.reference.noise_ceiling import noise_ceiling
from ragst_sd.tl._downstream_metrics import gene_sets_of
from ragst_sd.tl._section_metrics import SECTION_METRICS, lines_of_section, needing

SPOT_METRICS = (_keys.EFFECTIVE_N, _keys.EVIDENCE_SHARE, _keys.OUT_OF_REFERENCE)
CEILING_METRICS = ("noise_ceiling", "share_of_ceiling")
INTERVAL_METRICS = ("coverage", "interval_width")
CHOICES = (*METRICS, *INTERVAL_METRICS, *CEILING_METRICS, *SECTION_METRICS)


@over_sections(not_with="truth")
def evaluate(
    sdata: SpatialData | AnnData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    prediction_key: str = "predicted",
    truth_key: str | None = None,
    truth: AnnData | None = None,
    layer: str | None = None,
    unit: str = "counts",
    genes: str | Sequence[str] | None = None,
    n_genes: int | None = N_GENES,
    sample_key: str = "sample",
    label_key: str = "label",
    gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None,
    metrics: Sequence[str] | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> pd.DataFrame:
    r"""Compare a prediction with the measurement.

    The truth is normalised in the same way as the reference (log1p of counts per 10,000, the same size-factor genes).
    Every metric is computed within a section, so that differences between sections do not count as accuracy. Metrics
    per gene take seconds for 2,000 spots of a whole transcriptome, and memory for a few genes. Metrics of whole
    sections and noise ceilings take several times as long.

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
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    genes
        Genes to compare; if left out, the `n_genes` most variable ones.
    n_genes
        Number of genes to compare if none are named: those with the largest variance over the reference, among the
        genes that both tables have and every panel of the reference measured. `None` compares all that both tables
        have.
    sample_key
        Column of the measured table's `.obs` that names the sections; one section if it is not there.
    label_key
        Column of the measured table's `.obs` with labels of the spots, for metrics that compare regions; missing or
        empty is unlabelled.
    gmt
        Gene sets for `"gene_set_pearson"`: a GMT file, or a mapping from set to genes.
    metrics
        Some of the following; `"pearson"`, `"spearman"`, `"rmse"` and `"variance_kept"` if left out, which are quick.

        *Per gene, over the spots of a section.* `"pearson"`, `"spearman"`. `"rmse"`, the root mean squared, and
        `"mae"`, the mean absolute error, both in the unit of the prediction; smaller is better. `"variance_kept"`, the
        variance of the prediction over that of the truth; 1 is best. `"ssim"`, the structural similarity of the two
        maps (1 at most): spots become pixels as wide as their pitch, values are divided by the measured range of the
        gene, windows are 7 x 7 pixels, and pixels without a spot do not count. `"noise_ceiling"` is the largest
        Pearson correlation that the noise of counting allows, from binomial halves of the counts, and
        `"share_of_ceiling"` is `"pearson"` over it; both need counts. `"coverage"` is the share of spots whose measured
        value lies between `.layers["lower"]` and `["upper"]`, limits included, and `"interval_width"` the mean distance
        between these, in the unit of the prediction.

        *Per gene set.* `"gene_set_pearson"`, the Pearson correlation over spots between the scores that
        :func:`scanpy.tl.score_genes` gives to the set on the prediction and on the truth, over all genes that both
        tables have. It needs `gmt`. NaN for sets of which fewer than 3 genes are there, or
        that leave no genes of like expression to compare with.

        *Per section, over genes.* `"moran_agreement"`, the Pearson correlation between Moran's I of the prediction and
        of the truth, on a graph of the 6 nearest spots. `"svg_overlap"`, the share of the 20 most spatially variable
        genes of the truth that are among those of the prediction. `"gene_correlation_agreement"`, the Pearson
        correlation between the gene-gene correlations of both, which does not ask where the values are.

        *Per section, with labels of spots.* `"domain_ari"`, the adjusted Rand index between labels and k-means clusters
        of the prediction's leading principal components, as many as there are labels. `"de_agreement"` and
        `"de_ndcg"` compare differential expression between each label and all other labelled spots, by the t statistic
        of :func:`scanpy.tl.rank_genes_groups`, and are averaged over labels with at least 3 spots: `"de_agreement"` is
        the Spearman correlation over genes between the statistics of prediction and truth, `"de_ndcg"` the normalised
        discounted cumulative gain of the first 20 genes of the prediction, where the gain of a gene is its measured
        statistic if it is higher in the label, else 0. A random order does not have a `"de_ndcg"` of 0: compare with
        another method.
    rng
        Seed, generator or seed sequence of numpy, of count splits, k-means and control genes; `None` draws anew at each
        call.

    Returns
    -------
    One line per gene, sample and metric: `gene`, `sample`, `metric`, `value`. Lines of `gene_set_pearson` have the name
    of the set for `gene`. `pearson` and `spearman` are NaN for
    genes that do not vary, and 0 for a prediction that does not; `share_of_ceiling` is NaN where the ceiling is below
    0.1. Lines with an empty `gene` hold the metrics per section, the means over spots of `effective_n`,
    `evidence_share` and `out_of_reference`, `n_spots`, and where `n_genes` left genes out `pearson_all_genes`, the
    mean Pearson correlation over all that both tables have. :func:`ragst_sd.get.summary` averages over genes. Spots and
    genes without a prediction are left out of a metric per section, which is NaN where it cannot be computed. Spots
    that the prediction learned from (`obs["measured"]`, where gaps were filled) are left out of all. For a list or a
    mapping there is a first column `section` with the name in the mapping, or in `obs["sample"]` of the measured table.

    Raises
    ------
    KeyError
        If a table, gene or layer does not exist, or a metric needs positions, labels or intervals that are not there.
    ValueError
        If `gmt` is needed and left out; there is no measured table of the shapes, or several and `truth_key` is left
        out; the table does not know which genes vary most and `n_genes` asks for them; no gene set has 3 genes of the
        tables; the tables share no spots or genes; the truth was predicted, is of other donors than the prediction,
        is not counts, or holds fewer than 200 of the genes that size factors rest on.

    Notes
    -----
    For gene g over the spots i of a section

    .. math:: \mathrm{pearson}_g = \mathrm{cor}_i(\hat y_{ig}, y_{ig}), \qquad
              \mathrm{rmse}_g = \sqrt{\mathrm{mean}_i (\hat y_{ig} - y_{ig})^2}, \qquad
              \mathrm{variance\_kept}_g = \mathrm{var}_i(\hat y_{ig}) / \mathrm{var}_i(y_{ig})

    The share of weight on cited rows of the query's own label needs the labels of the reference, which a prediction
    does not carry: see `rg.tl.cross_validate`.

    References
    ----------
    Moran (1950), doi:10.1093/biomet/37.1-2.17, by :func:`scanpy.metrics.morans_i`; the noise ceiling after the
    count splitting of Neufeld et al. (2024), doi:10.1093/biostatistics/kxac047; the adjusted Rand index of Hubert &
    Arabie (1985), doi:10.1007/BF01908075; structural similarity of Wang et al. (2004), doi:10.1109/TIP.2003.819861, by
    :func:`skimage.metrics.structural_similarity`; discounted cumulative gain of Järvelin & Kekäläinen (2002),
    doi:10.1145/582415.582418, by :func:`sklearn.metrics.ndcg_score`; gene set scores after Tirosh et al. (2016),
    doi:10.1126/science.aad0501.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> scores = rg.tl.evaluate(query, metrics=["pearson"])
    >>> list(scores.columns)
    ['gene', 'sample', 'metric', 'value']
    """
    prediction = predicted(sdata, prediction_key)
    table, header = prediction.table, prediction.header
    require_columns(table, SPOT_METRICS)
    measured = truth_table(prediction, truth_key, truth)
    chosen = as_names(DEFAULT_METRICS if metrics is None else metrics)
    require_known(chosen, CHOICES, "metrics")
    asked = set(chosen)
    if asked & set(INTERVAL_METRICS):
        todo = "Predict with `rg.tl.predict(..., intervals=...)`."
        require_key(_keys.LOWER, table.layers, "the predicted table's layers", todo)
    compared = compare(prediction, measured, layer=layer, unit=unit, genes=genes)
    counts = compared.counts if asked & set(CEILING_METRICS) else None
    places = labels = None
    if needing(chosen, "positions"):
        todo = "Metrics of maps and Moran's I need positions of the spots."
        require_key(_keys.SPATIAL, table.obsm, "the predicted table's obsm", todo)
        places = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
    if needing(chosen, "labels"):
        todo = "Name the column of labels with `label_key=`."
        require_key(label_key, measured.obs, "the measured table's obs", todo)
        labels = np.asarray(measured.obs[label_key], dtype=object)
    gene_sets = gene_sets_of(gmt, chosen, compared.genes)
    if asked & set(CEILING_METRICS) and counts is None:
        raise ValueError(
            f"`metrics`: a noise ceiling is estimated by splitting counts, and the truth is {unit!r}. Name the "
            f"layer with counts with `layer=` and leave `unit='counts'`, or leave {listing(CEILING_METRICS)} out."
        )
    require_positive(n_genes, "n_genes", whole=True, optional=True)
    every = np.arange(len(compared.genes))
    best = every if genes is not None or n_genes is None else most_variable(table, compared.genes, n_genes)
    names = [compared.genes[i] for i in best]
    basis = np.isin(compared.names, [str(gene) for gene in header["size_factor_genes"]])
    truth_columns = pd.Index(compared.names).get_indexer(names)
    of_genes = [name for name in METRICS if name in asked or (name == "pearson" and counts is not None)]
    seed, parts = as_seed(rng), []
    for section in compared.sections(sample_key):
        sample, rows, values, expected = section.sample, section.rows, section.values, section.expected
        summary = {name: finite_mean(table.obs[name].to_numpy(float)[section.every]) for name in SPOT_METRICS}
        summary["n_spots"] = float(len(rows))
        if len(best) < len(every):
            if "pearson" in asked:
                summary["pearson_all_genes"] = finite_mean(score_genes(["pearson"], values, expected)["pearson"])
            values, expected = values[:, best], expected[:, best]
        scores = score_genes(of_genes, values, expected)
        if asked & set(INTERVAL_METRICS):
            sides = (_keys.LOWER, _keys.UPPER)
            limits = (some_of(table.layers[side], rows, compared.columns[best]) for side in sides)
            scores |= by_genes(_interval_metrics, *limits, expected)
        if counts is not None:
            ceiling = noise_ceiling(counts[section.truth_rows], basis, rng=seed)[truth_columns]
            scores["noise_ceiling"] = ceiling
            scores["share_of_ceiling"] = scores["pearson"] / np.where(ceiling >= MIN_CEILING, ceiling, np.nan)
        parts += [
            pd.DataFrame({"gene": names, "sample": sample, "metric": name, "value": scores[name]})
            for name in chosen
            if name in scores
        ]
        of_spots = {"metric": list(summary), "value": list(summary.values())}
        parts.append(pd.DataFrame({"gene": "", "sample": sample, **of_spots}))
        of_section = lines_of_section(
            section.values,
            section.expected,
            chosen,
            best,
            genes=compared.genes,
            positions=None if places is None else places[rows],
            labels=None if labels is None else labels[section.truth_rows],
            gene_sets=gene_sets,
            rng=seed,
        )
        parts += [lines.assign(sample=sample) for lines in of_section]
    return pd.concat(parts, ignore_index=True)


def _interval_metrics(lower: np.ndarray, upper: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """Share of the truth inside, and mean width, over the spots with an interval; NaN for genes without any."""
    known = np.isfinite(lower) & np.isfinite(upper)
    inside = (lower <= expected) & (expected <= upper)
    values = {"coverage": inside.astype(np.float64), "interval_width": (upper - lower).astype(np.float64)}
    return {name: pd.DataFrame(of_spots).where(known).mean().to_numpy() for name, of_spots in values.items()}
