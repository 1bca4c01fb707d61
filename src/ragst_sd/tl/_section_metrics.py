"""Metrics of one section as a whole, on (spots, genes) arrays: spatial patterns, co-expression, domains, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._labels import labels as names_of
from ragst_sd._metrics import pearson, varies

if TYPE_CHECKING:
    import scipy.sparse as sp

SECTION_METRICS = ("moran_agreement", "svg_overlap", "gene_correlation_agreement", "domain_ari")
N_NEIGHBORS = 6
N_COMPONENTS = 20


def section_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    positions: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    n_top: int = 20,
    rng: int | np.random.Generator = 0,
) -> dict[str, float]:
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
    positions
        Coordinates of the spots, (n, 2).
    labels
        Label of each spot; empty or missing is unlabelled.
    n_top
        Number of most spatially variable genes to compare.
    rng
        Seed or generator of k-means.

    Returns
    -------
    `moran_agreement`, Pearson correlation over genes between Moran's I of the prediction and of the truth;
    `svg_overlap`, the share of the `n_top` genes with the largest Moran's I in the truth that are among those of the
    prediction (NaN unless there are more genes than that); `gene_correlation_agreement`, Pearson correlation between
    the upper triangles of the gene-gene correlation matrices, which does not ask where the values are; `domain_ari`,
    adjusted Rand index between the labels and as many k-means clusters of the leading principal components of the
    prediction. NaN where one cannot be computed.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    finite = np.isfinite(predicted) & np.isfinite(truth)
    spots = finite.any(axis=1)
    genes = finite[spots].all(axis=0)
    predicted, truth = predicted[spots][:, genes], truth[spots][:, genes]
    changing = varies(truth) if len(truth) else np.zeros(truth.shape[1], dtype=bool)
    predicted, truth = predicted[:, changing], truth[:, changing]
    out = dict.fromkeys(SECTION_METRICS, np.nan)
    if positions is not None:
        places = np.asarray(positions, dtype=np.float64)[spots]
        placed = np.isfinite(places).all(axis=1)
        out |= _spatial_agreement(predicted[placed], truth[placed], places[placed], n_top)
    out["gene_correlation_agreement"] = _correlation_agreement(predicted, truth)
    if labels is not None:
        out["domain_ari"] = _domain_ari(predicted, names_of(labels, missing="")[spots], rng)
    return out


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
    import pandas as pd

    rows, weights = np.asarray(rows), np.where(np.asarray(rows) >= 0, weights, 0.0)
    bank, queries = (names_of(values, missing="") for values in (bank_labels, query_labels))
    names = pd.Index(np.unique(bank[bank != ""]))
    bank_codes, query_codes = names.get_indexer(bank), names.get_indexer(queries)
    cited = np.where(rows >= 0, bank_codes[rows], -1)
    labelled = (weights * (cited >= 0)).sum(axis=1)
    own = (weights * ((cited == query_codes[:, None]) & (cited >= 0))).sum(axis=1)
    used = (queries != "") & (labelled > 0)
    if not used.any():
        return np.nan, np.nan
    frequency = np.bincount(bank_codes[bank_codes >= 0], minlength=len(names)) / (bank_codes >= 0).sum()
    # A label that the bank does not hold has code -1: nothing is expected of it.
    expected = np.append(frequency, 0.0)[query_codes[used]]
    return float((own[used] / labelled[used]).mean()), float(expected.mean())


def spatial_graph(positions: np.ndarray) -> sp.csr_matrix:
    """Each spot's 6 nearest others, or all that list it among theirs; the weights of each spot sum to 1."""
    import scipy.sparse as sp
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(N_NEIGHBORS, len(positions) - 1)
    nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(positions).kneighbors_graph()
    either = sp.csr_matrix(nearest.maximum(nearest.T), dtype=np.float64)
    either.data /= np.repeat(np.asarray(either.sum(axis=1)).ravel(), np.diff(either.indptr))
    return either


def _spatial_agreement(predicted: np.ndarray, truth: np.ndarray, positions: np.ndarray, n_top: int) -> dict[str, float]:
    """Agreement of Moran's I over genes, and of the genes where it is largest."""
    out = {"moran_agreement": np.nan, "svg_overlap": np.nan}
    if len(positions) < 3:
        return out
    graph = spatial_graph(positions)
    measured, kept = _morans_i(graph, truth), _morans_i(graph, predicted)
    known = np.isfinite(measured)
    measured, kept = measured[known], kept[known]
    if len(measured) > 1:
        # Without variation there is no pattern: 0, and no place among the top genes.
        agreement = pearson(np.nan_to_num(kept, nan=0.0)[:, None], measured[:, None])
        out["moran_agreement"] = float(agreement[0])
    if len(measured) > n_top:
        top = np.argsort(-measured, kind="stable")[:n_top]
        ours = np.argsort(-np.nan_to_num(kept, nan=-np.inf), kind="stable")[: min(n_top, np.isfinite(kept).sum())]
        out["svg_overlap"] = len(np.intersect1d(top, ours)) / n_top
    return out


def _morans_i(graph: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Moran's I of every gene; NaN where it does not vary."""
    from scanpy.metrics import morans_i

    out = np.full(values.shape[1], np.nan)
    changing = varies(values)
    if changing.any():
        out[changing] = morans_i(graph, np.ascontiguousarray(values[:, changing].T))
    return out


def _correlation_agreement(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of the upper triangles of two gene-gene correlation matrices."""
    n_spots, n_genes = truth.shape
    if n_spots < 3 or n_genes < 3:
        return np.nan
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
        return np.nan
    if spread_a <= 1e-12:
        return 0.0
    return (off_diagonal(a, b) / pairs - means[0] * means[1]) / float(np.sqrt(spread_a * spread_b))


def _unit_columns(values: np.ndarray) -> np.ndarray:
    """Centred columns of length 1; zeros where a column does not vary."""
    changing = varies(values)
    centred = (values - values.mean(axis=0)) * changing
    return centred / np.where(changing, np.linalg.norm(centred, axis=0), 1.0)


def _domain_ari(predicted: np.ndarray, labels: np.ndarray, rng: int | np.random.Generator) -> float:
    """Adjusted Rand index between labels and clusters of the prediction, over labelled spots."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    labelled = labels != ""
    predicted, labels = predicted[labelled], labels[labelled]
    n_labels = len(np.unique(labels))
    if n_labels < 2 or not predicted.shape[1]:
        return np.nan
    distinct = len(np.unique(predicted, axis=0))
    if distinct < n_labels:
        return 0.0
    seed = int(np.random.default_rng(rng).integers(2**31))
    n_components = min(N_COMPONENTS, *predicted.shape)
    components = PCA(n_components, random_state=seed).fit_transform(predicted)
    clusters = KMeans(n_labels, n_init=10, random_state=seed).fit_predict(components)
    return float(adjusted_rand_score(labels, clusters))
