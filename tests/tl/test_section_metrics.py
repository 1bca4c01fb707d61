"""Metrics of a section as a whole against brute force."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ragst_sd.tl._section_metrics import SECTION_METRICS, label_share, section_metrics, spatial_graph

N_TOP = 8


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
    got = section_metrics(predicted, truth, positions=positions, n_top=N_TOP)
    assert got["moran_agreement"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    shared = set(np.argsort(ours)[-N_TOP:]) & set(np.argsort(theirs)[-N_TOP:])
    assert got["svg_overlap"] == len(shared) / N_TOP
    assert 0 < got["svg_overlap"] < 1


@pytest.mark.parametrize("n_spots", [120, 20], ids=["fewer genes than spots", "more genes than spots"])
def test_gene_correlations_equal_numpy(section, n_spots):
    _, predicted, truth, _ = (values[:n_spots] for values in section)
    upper = np.triu_indices(truth.shape[1], 1)
    a, b = (np.corrcoef(values.T)[upper] for values in (predicted, truth))
    got = section_metrics(predicted, truth)
    assert got["gene_correlation_agreement"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert np.isnan([got[name] for name in SECTION_METRICS if name != "gene_correlation_agreement"]).all()


def test_a_perfect_prediction(section):
    positions, _, truth, domains = section
    clean = truth + 100.0 * domains[:, None] * np.linspace(1, 2, 30)
    got = section_metrics(clean, clean, positions=positions, labels=domains)
    assert got == {name: pytest.approx(1.0) for name in SECTION_METRICS}


def test_domains_of_an_informed_and_a_random_prediction(section, rng):
    _, predicted, truth, domains = section
    labels = np.array(["a", "b", "c"], dtype=object)[domains]
    clear = predicted + 5 * np.eye(3)[domains] @ rng.normal(size=(3, 30))
    aris = [section_metrics(values, truth, labels=labels)["domain_ari"] for values in (clear, rng.permutation(clear))]
    assert aris[0] > 0.9
    assert abs(aris[1]) < 0.1
    labels[:10] = [None, np.nan, "", " ", "nan-free", *labels[5:10]]
    some = section_metrics(clear, truth, labels=labels)["domain_ari"]
    assert some == section_metrics(clear[4:], truth[4:], labels=labels[4:])["domain_ari"]
    assert np.isnan(section_metrics(clear, truth, labels=["one"] * 120)["domain_ari"])


def test_a_flat_prediction_scores_zero(section):
    positions, _, truth, domains = section
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = section_metrics(np.ones_like(truth), truth, positions=positions, labels=domains)
    assert got == dict.fromkeys(SECTION_METRICS, 0.0)


def test_missing_values_are_left_out(section):
    positions, predicted, truth, domains = section
    holes = predicted.copy()
    holes[:5] = np.nan
    holes[50, 3] = np.nan
    flat = truth.copy()
    flat[:, 7] = 1.1
    genes = np.setdiff1d(np.arange(30), [3, 7])
    got = section_metrics(holes, flat, positions=positions, labels=domains)
    assert got == section_metrics(
        predicted[5:][:, genes], truth[5:][:, genes], positions=positions[5:], labels=domains[5:]
    )
    positions[:5] = np.nan
    assert got == section_metrics(holes, flat, positions=positions, labels=domains)


@pytest.mark.parametrize("n_spots", [0, 1, 2])
def test_too_little_to_say_anything(section, n_spots):
    positions, predicted, truth, domains = (values[:n_spots] for values in section)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = section_metrics(predicted, truth, positions=positions, labels=domains)
    assert np.isnan([got[name] for name in SECTION_METRICS[:3]]).all()


def test_overlap_needs_more_genes_than_it_takes(section):
    positions, predicted, truth, _ = section
    got = section_metrics(predicted, truth, positions=positions, n_top=30)
    assert np.isnan(got["svg_overlap"])
    assert np.isfinite(got["moran_agreement"])


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
