"""Metrics of a section as a whole against brute force."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.stats import spearmanr, ttest_ind
from skimage.metrics import structural_similarity

from ragst_sd.tl._downstream_metrics import gene_sets_of
from ragst_sd.tl._section_metrics import SECTION_METRICS, label_share, section_metrics, spatial_graph

N_TOP = 8
OF_SECTIONS = [name for name in SECTION_METRICS if name not in ("ssim", "gene_set_pearson")]


def values_of(predicted, truth, names=OF_SECTIONS, **about):
    """The metrics of a section by their names."""
    lines = section_metrics(predicted, truth, names, **about)
    assert (lines["gene"] == "").all()
    return dict(zip(lines["metric"], lines["value"], strict=True))


@pytest.fixture
def section(rng):
    """Positions, values with patterns of different strength, a noisy copy of them, and domains."""
    positions = rng.uniform(0, 10, size=(120, 2))
    domains = (positions[:, 0] // 3.4).astype(int)
    programmes = np.column_stack([np.sin(positions[:, 0]), np.cos(positions[:, 1] / 2), *np.eye(3)[domains].T])
    truth = programmes @ rng.normal(size=(5, 30)) * np.linspace(0, 2, 30) + rng.normal(size=(120, 30))
    predicted = truth + rng.normal(size=truth.shape)
    return positions, predicted, truth, domains


def brute_graph(positions):
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    near = np.zeros_like(distances, dtype=bool)
    for i, row in enumerate(distances):
        near[i, np.argsort(row)[:6]] = True
    near |= near.T
    return near / near.sum(axis=1, keepdims=True)


def brute_moran(weights, values):
    z = values - values.mean()
    return len(z) / weights.sum() * sum(weights[i, j] * z[i] * z[j] for i, j in np.argwhere(weights)) / (z @ z)


def test_graph_is_the_nearest_spots_either_way(section):
    np.testing.assert_allclose(spatial_graph(section[0]).toarray(), brute_graph(section[0]))
    np.testing.assert_allclose(spatial_graph(np.array([[0, 0], [1, 0], [5, 0.0]])).toarray(), (1 - np.eye(3)) / 2)


def test_spatial_patterns_equal_brute_force(section):
    positions, predicted, truth, _ = section
    weights = brute_graph(positions)
    ours, theirs = ([brute_moran(weights, gene) for gene in values.T] for values in (predicted, truth))
    got = values_of(predicted, truth, positions=positions, n_top=N_TOP)
    assert got["moran_agreement"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    shared = set(np.argsort(ours)[-N_TOP:]) & set(np.argsort(theirs)[-N_TOP:])
    assert got["svg_overlap"] == len(shared) / N_TOP
    assert 0 < got["svg_overlap"] < 1


@pytest.mark.parametrize("n_spots", [120, 20], ids=["fewer genes than spots", "more genes than spots"])
def test_gene_correlations_equal_numpy(section, n_spots):
    _, predicted, truth, _ = (values[:n_spots] for values in section)
    upper = np.triu_indices(truth.shape[1], 1)
    a, b = (np.corrcoef(values.T)[upper] for values in (predicted, truth))
    got = values_of(predicted, truth)
    assert got["gene_correlation_agreement"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert np.isnan([got[name] for name in OF_SECTIONS if name != "gene_correlation_agreement"]).all()


def test_a_perfect_prediction(section):
    positions, _, truth, domains = section
    clean = truth + 100.0 * domains[:, None] * np.linspace(1, 2, 30)
    got = values_of(clean, clean, positions=positions, labels=domains)
    assert got == {name: pytest.approx(1.0) for name in OF_SECTIONS}


def test_domains_of_an_informed_and_a_random_prediction(section, rng):
    _, predicted, truth, domains = section
    labels = np.array(["a", "b", "c"], dtype=object)[domains]
    clear = predicted + 5 * np.eye(3)[domains] @ rng.normal(size=(3, 30))
    aris = [values_of(values, truth, labels=labels)["domain_ari"] for values in (clear, rng.permutation(clear))]
    assert aris[0] > 0.9
    assert abs(aris[1]) < 0.1
    labels[:10] = [None, np.nan, "", " ", "nan-free", *labels[5:10]]
    some = values_of(clear, truth, labels=labels)["domain_ari"]
    assert some == values_of(clear[4:], truth[4:], labels=labels[4:])["domain_ari"]
    assert np.isnan(values_of(clear, truth, labels=["one"] * 120)["domain_ari"])


def test_a_flat_prediction_scores_zero(section):
    positions, _, truth, domains = section
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = values_of(np.ones_like(truth), truth, positions=positions, labels=domains)
    assert got == dict.fromkeys(OF_SECTIONS, 0.0)


def test_missing_values_are_left_out(section):
    positions, predicted, truth, domains = section
    holes = predicted.copy()
    holes[:5] = np.nan
    holes[50, 3] = np.nan
    flat = truth.copy()
    flat[:, 7] = 1.1
    genes = np.setdiff1d(np.arange(30), [3, 7])
    got = values_of(holes, flat, positions=positions, labels=domains)
    assert got == values_of(predicted[5:][:, genes], truth[5:][:, genes], positions=positions[5:], labels=domains[5:])
    positions[:5] = np.nan
    assert got == values_of(holes, flat, positions=positions, labels=domains)


@pytest.mark.parametrize("n_spots", [0, 1, 2])
def test_too_little_to_say_anything(section, n_spots):
    positions, predicted, truth, domains = (values[:n_spots] for values in section)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = values_of(predicted, truth, positions=positions, labels=domains)
    assert np.isnan([got[name] for name in OF_SECTIONS[:3]]).all()


def test_overlap_needs_more_genes_than_it_takes(section):
    positions, predicted, truth, _ = section
    got = values_of(predicted, truth, positions=positions, n_top=30)
    assert np.isnan(got["svg_overlap"])
    assert np.isfinite(got["moran_agreement"])


def test_differences_between_regions_equal_scipy(section):
    _, predicted, truth, domains = section
    ours, theirs = (
        np.array([ttest_ind(v[domains == r], v[domains != r], equal_var=False).statistic for r in range(3)])
        for v in (predicted, truth)
    )
    got = values_of(predicted, truth, ["de_agreement", "de_ndcg"], labels=domains, n_top=N_TOP)
    rank = [spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    assert got["de_agreement"] == pytest.approx(np.mean(rank))
    discount = 1 / np.log2(np.arange(2, N_TOP + 2))
    gains = np.maximum(theirs, 0)
    found = [g[np.argsort(-o)[:N_TOP]] @ discount for g, o in zip(gains, ours, strict=True)]
    best = [np.sort(g)[::-1][:N_TOP] @ discount for g in gains]
    assert got["de_ndcg"] == pytest.approx(np.mean(np.array(found) / best), rel=1e-6)
    assert 0.5 < got["de_ndcg"] < 1


def test_regions_of_too_few_spots_are_left_out(section):
    _, predicted, truth, domains = section
    rare = domains.astype(str).astype(object)
    rare[:2] = "rare"
    without = rare.copy()
    without[:2] = "other"
    names = ["de_agreement", "de_ndcg"]
    assert values_of(predicted, truth, names, labels=rare) == values_of(predicted, truth, names, labels=without)
    assert np.isnan(list(values_of(predicted, truth, names, labels=["one"] * 120).values())).all()


@pytest.fixture
def lattice(rng):
    """Spots 200 apart, numbered at random and turned by a quarter, with two smooth genes and noise."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(12), np.arange(10)))
    truth = np.column_stack([np.sin(x / 3) + 2, np.cos(y / 2) * 3, rng.normal(size=120)])
    order = rng.permutation(120)
    return np.column_stack([-y, x])[order] * 200.0 + 5000, truth[order], (x, y, order)


def test_similarity_of_maps_equals_scikit_image(lattice, rng):
    positions, truth, (x, y, order) = lattice
    predicted = truth + rng.normal(size=truth.shape) / 3
    lines = section_metrics(predicted, truth, ["ssim"], genes=["a", "b", "c"], positions=positions)
    assert list(lines["gene"]) == ["a", "b", "c"]
    for gene in range(3):
        low, spread = truth[:, gene].min(), np.ptp(truth[:, gene])
        maps = []
        for values in (truth, predicted):
            drawn = np.zeros((10, 12))
            drawn[y[order], x[order]] = (values[:, gene] - low) / spread
            maps.append(drawn)
        expected = structural_similarity(*maps, data_range=1.0, full=True)[1].mean()
        assert lines["value"][gene] == pytest.approx(expected)
    same = section_metrics(truth, truth, ["ssim"], positions=positions)
    np.testing.assert_allclose(same["value"], 1)


def test_maps_say_where_correlations_do_not_see_it(lattice):
    """A level that is off moves the similarity of maps, and no correlation."""
    positions, truth, _ = lattice
    shifted = section_metrics(truth + np.ptp(truth, axis=0), truth, ["ssim"], positions=positions)
    assert (shifted["value"] < 0.8).all()
    lacking = truth.copy()
    lacking[3, 1] = np.nan
    some = section_metrics(lacking, truth, ["ssim"], genes=["a", "b", "c"], positions=positions)
    np.testing.assert_allclose(some["value"], [1, np.nan, 1])
    assert section_metrics(truth[:20], truth[:20], ["ssim"], positions=positions[:20])["value"].isna().sum() in (0, 3)
    few = np.arange(120)[(positions[:, 0] > positions[:, 0].max() - 900)]
    assert section_metrics(truth[few], truth[few], ["ssim"], positions=positions[few])["value"].isna().all()


def test_scores_of_gene_sets_equal_scanpy(rng):
    programme = rng.normal(size=(60, 1))
    names = [f"g{i}" for i in range(80)]
    truth = 2 + rng.normal(size=(60, 80)) / 2
    truth[:, :10] += programme
    predicted = truth + rng.normal(size=truth.shape)
    sets = {"programme": names[:10], "noise": names[40:50], "absent": ["x", "y", "z"], "two": names[:2]}
    lines = section_metrics(predicted, truth, ["gene_set_pearson"], genes=names, gene_sets=sets).set_index("gene")[
        "value"
    ]
    assert list(lines.index) == list(sets)
    assert lines[["absent", "two"]].isna().all()
    assert lines["programme"] > 0.8 > lines["noise"]
    # Whole sets move together where all is well.
    assert section_metrics(truth, truth, ["gene_set_pearson"], genes=names, gene_sets=sets)["value"][
        0
    ] == pytest.approx(1)
    scores = []
    seed = int(np.random.default_rng(0).integers(2**31))
    for values in (predicted, truth):
        table = ad.AnnData(values, var=pd.DataFrame(index=names))
        sc.tl.score_genes(table, sorted(names[:10]), random_state=seed)
        scores.append(table.obs["score"])
    assert lines["programme"] == pytest.approx(np.corrcoef(*scores)[0, 1])


def test_gene_sets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"needs gene sets.*`gmt=`"):
        gene_sets_of(None, ["gene_set_pearson"], ["A"])
    with pytest.raises(ValueError, match=r"`gmt`: no set has 3 of the genes.*ENSG1.*names of the same kind"):
        gene_sets_of({"a": ["ENSG1", "ENSG2", "ENSG3"]}, ["gene_set_pearson"], ["EPCAM", "CD3E"])
    assert gene_sets_of(None, ["pearson"], ["A"]) is None


def test_label_share_equals_a_loop(rng):
    bank = rng.choice(["a", "b", "c", ""], size=60)
    queries = rng.choice(["a", "b", ""], size=40)
    rows = rng.integers(-1, 60, size=(40, 7))
    weights = rng.uniform(size=(40, 7))
    own, expected = [], []
    for query, cited, weight in zip(queries, rows, weights, strict=True):
        use = [(bank[r], w) for r, w in zip(cited, weight, strict=True) if r >= 0 and bank[r]]
        if query and use:
            own.append(sum(w for label, w in use if label == query) / sum(w for _, w in use))
            expected.append(np.mean(bank[bank != ""] == query))
    assert label_share(rows, weights, queries, bank) == (pytest.approx(np.mean(own)), pytest.approx(np.mean(expected)))


def test_labels_are_compared_by_meaning():
    rows, weights = np.array([[0, 1], [2, -1], [1, 2]]), np.array([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]])
    # 2 is a label that the bank does not hold.
    assert label_share(rows, weights, [1.0, np.nan, 2.0], ["1", "3", None]) == (0.375, 0.25)
    assert np.isnan(label_share(rows, weights, [None] * 3, ["1", "3", None])).all()
    assert np.isnan(label_share(np.full((3, 2), -1), weights, ["1"] * 3, ["1", "3", None])).all()
