"""Metrics that look at one section as a whole: maps, spatial patterns, co-expression, regions, gene sets, labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import KDTree
from skimage.metrics import structural_similarity

from ragst_sd._labels import labels as names_of
from ragst_sd._metrics import pearson, varies
from ragst_sd._spot_layout import spot_pitch
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._downstream_metrics import GENE_SETS, About, gene_set_agreement, region_agreement

N_NEIGHBORS = 6
N_COMPONENTS = 20
# Spots by spots, as scikit-image takes them by default.
_SSIM_WINDOW = 7


def section_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    names: Iterable[str] | None = None,
    *,
    genes: Sequence[str] | None = None,
    positions: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    gene_sets: Mapping[str, Iterable[str]] | None = None,
    n_top: int = 20,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    r"""How well a prediction keeps what genes and spots of one section have in common.

    Spots without a value on either side are left out, then genes that lack a value in any spot left, then genes whose
    truth does not vary. A prediction that does not vary scores 0, as it does for Pearson: it has no spatial pattern,
    no co-expression and no domains.

    Moran's I of a gene with centred values z is :math:`I = n / S_0 \cdot \sum_{ij} w_{ij} z_i z_j / \sum_i z_i^2`, with
    w the graph of `spatial_graph` and :math:`S_0` the sum of its weights.

    Parameters
    ----------
    predicted, truth
        Values of (spots, genes), NaN where there is none.
    names
        Some of `SECTION_METRICS`; all if left out.
    genes
        Names of the genes; their numbers if left out.
    positions
        Coordinates of the spots, (n, 2).
    labels
        Label of each spot; empty or missing is unlabelled.
    gene_sets
        Genes of each set.
    n_top
        Number of genes at the top of a ranking to compare.
    rng
        Seed or generator of k-means and of control genes.

    Returns
    -------
    Lines `gene`, `metric`, `value`. `gene` is the name of a gene for `ssim`, that of a set for `gene_set_pearson`, and
    empty for a metric of the section. NaN where one cannot be computed.
    """
    every = pd.Index(np.arange(truth.shape[1]).astype(str) if genes is None else genes)
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    finite = np.isfinite(predicted) & np.isfinite(truth)
    spots = finite.any(axis=1)
    complete = np.flatnonzero(finite[spots].all(axis=0))
    predicted, truth = predicted[spots][:, complete], truth[spots][:, complete]
    changing = varies(truth) if len(truth) else np.zeros(len(complete), dtype=bool)
    predicted, truth = predicted[:, changing], truth[:, changing]
    about = About(
        every[complete[changing]],
        None if positions is None else np.asarray(positions, dtype=np.float64)[spots],
        None if labels is None else names_of(labels, missing="")[spots],
        gene_sets,
        n_top,
        int(np.random.default_rng(rng).integers(2**31)),
    )
    asked = list(SECTION_METRICS if names is None else names)
    values: dict[str, Any] = {}
    for function, needs in dict.fromkeys(SECTION_METRICS[name] for name in asked):
        if not needs or getattr(about, needs) is not None:
            values |= function(predicted, truth, about)
    parts = []
    for name in asked:
        value = values.get(name, np.nan)
        if name == "ssim":
            value = (pd.Series(dtype=float) if np.isscalar(value) else value).reindex(every)
        of_genes = value if isinstance(value, pd.Series) else pd.Series({"": value})
        parts.append(of_genes.rename("value").rename_axis("gene").reset_index().assign(metric=name))
    return pd.concat(parts, ignore_index=True)[["gene", "metric", "value"]]


def lines_of_section(
    predicted: np.ndarray, truth: Any, names: Sequence[str], columns: np.ndarray, *, genes: Sequence[str], **about: Any
) -> list[pd.DataFrame]:
    """`section_metrics` of the genes at `columns`, except that gene sets are scored on all."""
    some = [name for name in names if name in SECTION_METRICS and name != GENE_SETS]
    sets = [name for name in names if name == GENE_SETS]
    return [
        section_metrics(predicted[:, at], dense(truth[:, at]), wanted, genes=[genes[int(i)] for i in at], **about)
        for wanted, at in ((some, columns), (sets, np.arange(len(genes))))
        if wanted
    ]


def label_share(
    rows: np.ndarray, weights: np.ndarray, query_labels: np.ndarray, bank_labels: np.ndarray
) -> tuple[float, float]:
    """Share of weight on rows of the query's own label, and the share that random rows would have.

    Unlabelled rows have no say: a query's share is taken over the weight on labelled rows, and queries without a label
    or without any such weight are left out. The second number is the frequency of the query's label among the labelled
    rows of the bank, averaged over the same queries.

    Parameters
    ----------
    rows
        Cited rows of each query, (n, k), -1 for none.
    weights
        Their weights, (n, k).
    query_labels
        Label of each query, (n,); empty or missing is unlabelled.
    bank_labels
        Label of each row of the bank, (m,): of the rows that could have been cited.

    Returns
    -------
    Both means over queries; NaN where no query has both a label and weight on labelled rows.
    """
    rows, weights = np.asarray(rows), np.where(np.asarray(rows) >= 0, weights, 0.0)
    bank, queries = (names_of(values, missing="") for values in (bank_labels, query_labels))
    names = pd.Index(np.unique(bank[bank != ""]))
    bank_codes, query_codes = names.get_indexer(bank), names.get_indexer(queries)
    cited = np.where(rows >= 0, bank_codes[rows], -1)
    labelled = (weights * (cited >= 0)).sum(axis=1)
    same = (weights * ((cited == query_codes[:, None]) & (cited >= 0))).sum(axis=1)
    used = (queries != "") & (labelled > 0)
    if not used.any():
        return np.nan, np.nan
    frequency = np.bincount(bank_codes[bank_codes >= 0], minlength=len(names)) / (bank_codes >= 0).sum()
    # A label that the bank does not hold has code -1: nothing is expected of it.
    expected = np.append(frequency, 0.0)[query_codes[used]]
    return float((same[used] / labelled[used]).mean()), float(expected.mean())


def spatial_graph(positions: np.ndarray) -> sp.csr_matrix:
    """Each spot's 6 nearest others, or all that list it among theirs; the weights of each spot sum to 1."""
    from sklearn.neighbors import kneighbors_graph
    from sklearn.preprocessing import normalize

    nearest = kneighbors_graph(positions, min(N_NEIGHBORS, len(positions) - 1))
    return sp.csr_matrix(normalize(nearest.maximum(nearest.T), norm="l1"))


def _located(predicted: np.ndarray, truth: np.ndarray, about: About) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and positions of the spots whose positions are known."""
    assert about.positions is not None
    known = np.isfinite(about.positions).all(axis=1)
    return predicted[known], truth[known], about.positions[known]


def _spatial_agreement(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, float]:
    """Agreement of Moran's I over genes, and of the genes where it is largest."""
    predicted, truth, positions = _located(predicted, truth, about)
    out: dict[str, float] = {}
    if len(positions) < 3:
        return out
    graph = spatial_graph(positions)
    measured, predicted_i = _morans_i(graph, truth), _morans_i(graph, predicted)
    known = np.isfinite(measured)
    measured, predicted_i = measured[known], predicted_i[known]
    if len(measured) > 1:
        # Without variation there is no pattern: 0, and no place among the top genes.
        agreement = pearson(np.nan_to_num(predicted_i, nan=0.0)[:, None], measured[:, None])
        out["moran_agreement"] = float(agreement[0])
    if len(measured) > about.n_top:
        top, ours = (pd.Series(values).dropna().nlargest(about.n_top).index for values in (measured, predicted_i))
        out["svg_overlap"] = len(top.intersection(ours)) / about.n_top
    return out


def _morans_i(graph: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Moran's I of every gene; NaN where it does not vary."""
    from scanpy.metrics import morans_i

    out = np.full(values.shape[1], np.nan)
    changing = varies(values)
    if changing.any():
        out[changing] = morans_i(graph, np.ascontiguousarray(values[:, changing].T))
    return out


def _ssim(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, Any]:
    """Structural similarity of the maps of each gene, in units of its measured range, over the pixels with a spot."""
    predicted, truth, positions = _located(predicted, truth, about)
    genes = np.flatnonzero(varies(truth)) if len(np.unique(positions, axis=0)) > 1 else np.zeros(0, dtype=int)
    if not len(genes):
        return {}
    pitch, low = spot_pitch(positions), positions.min(axis=0)
    width, height = (int(edge) for edge in np.rint((positions.max(axis=0) - low) / pitch) + 1)
    if min(width, height) < _SSIM_WINDOW:
        return {}
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) * pitch + low
    distance, nearest = KDTree(positions).query(pixels)
    low_of, range_of = truth[:, genes].min(axis=0), np.ptp(truth[:, genes], axis=0)
    maps = [((values[:, genes] - low_of) / range_of)[nearest] for values in (truth, predicted)]
    _, similarity = structural_similarity(*maps, win_size=_SSIM_WINDOW, data_range=1.0, channel_axis=-1, full=True)
    return {"ssim": pd.Series(similarity[distance <= 0.75 * pitch].mean(axis=0), index=about.genes[genes])}


def _correlation_agreement(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, float]:
    """Pearson correlation of the upper triangles of two gene-gene correlation matrices."""
    n_spots, n_genes = truth.shape
    if n_spots < 3 or n_genes < 3:
        return {}
    a, b = _unit_columns(predicted), _unit_columns(truth)
    pairs = n_genes * (n_genes - 1)

    def off_diagonal(x: np.ndarray, y: np.ndarray) -> float:
        # Sum over gene pairs of the product of both matrices. It equals the one over spot pairs of x y^T squared, so
        # that whole transcriptomes need no matrix of genes by genes.
        total = ((x @ y.T) ** 2).sum() if n_spots < n_genes else ((x.T @ x) * (y.T @ y)).sum()
        return float(total - ((x**2).sum(axis=0) * (y**2).sum(axis=0)).sum())

    means = [(float((x.sum(axis=1) ** 2).sum()) - float((x**2).sum())) / pairs for x in (a, b)]
    spread_a, spread_b = (off_diagonal(x, x) / pairs - mean**2 for x, mean in zip((a, b), means, strict=True))
    if spread_b <= 1e-12:
        return {}
    shared = off_diagonal(a, b) / pairs - means[0] * means[1]
    return {"gene_correlation_agreement": shared / float(np.sqrt(spread_a * spread_b)) if spread_a > 1e-12 else 0.0}


def _unit_columns(values: np.ndarray) -> np.ndarray:
    """Centred columns of length 1; zeros where a column does not vary."""
    changing = varies(values)
    centred = (values - values.mean(axis=0)) * changing
    return centred / np.where(changing, np.linalg.norm(centred, axis=0), 1.0)


def _domain_ari(predicted: np.ndarray, truth: np.ndarray, about: About) -> dict[str, float]:
    """Adjusted Rand index between labels and clusters of the prediction, over labelled spots."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    assert about.labels is not None
    labelled = about.labels != ""
    predicted, labels = predicted[labelled], about.labels[labelled]
    n_labels = len(np.unique(labels))
    if n_labels < 2 or not predicted.shape[1]:
        return {}
    if len(np.unique(predicted, axis=0)) < n_labels:
        return {"domain_ari": 0.0}
    n_components = min(N_COMPONENTS, *predicted.shape)
    components = PCA(n_components, random_state=about.rng).fit_transform(predicted)
    clusters = KMeans(n_labels, n_init=10, random_state=about.rng).fit_predict(components)
    return {"domain_ari": float(adjusted_rand_score(labels, clusters))}


# Each metric by its name: the function that gives it, alone or with others, and what it needs of `About`.
SECTION_METRICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, About], dict[str, Any]], str]] = {
    "moran_agreement": (_spatial_agreement, "positions"),
    "svg_overlap": (_spatial_agreement, "positions"),
    "gene_correlation_agreement": (_correlation_agreement, ""),
    "domain_ari": (_domain_ari, "labels"),
    "ssim": (_ssim, "positions"),
    "de_agreement": (region_agreement, "labels"),
    "de_ndcg": (region_agreement, "labels"),
    GENE_SETS: (gene_set_agreement, "gene_sets"),
}


def needing(names: Iterable[str], what: str) -> bool:
    """Whether one of some metrics needs positions, labels or gene sets."""
    return any(name in SECTION_METRICS and SECTION_METRICS[name][1] == what for name in names)
