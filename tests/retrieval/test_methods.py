"""Methods: PCA, gates, ridge and training sums against closed forms and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.gate import distance_gate
from ragst_sd.retrieval.projection import fit_pca, project, standardize
from ragst_sd.retrieval.ridge import fit_ridge, ridge_adjustment
from ragst_sd.retrieval.training import reference_mean, variable_genes, within_section_pearson


@pytest.fixture
def training(rng):
    key = rng.normal(size=(90, 10))
    truth = key @ rng.normal(size=(10, 15)) + rng.normal(size=(90, 15))
    panels = np.repeat([0, 1], [60, 30])
    measured = np.ones((2, 15), dtype=bool)
    measured[1, 3:5] = False
    measured[:, 14] = False
    values = truth * measured[panels]
    folds = np.repeat([0, 1, 2], 30)
    return Bank(key, sp.csr_matrix(values), panels, measured, folds, folds, key=key)


@pytest.mark.parametrize("shape", [(50, 8), (12, 30)])
def test_pca_equals_scikit_learn(rng, shape):
    from sklearn.decomposition import PCA

    x = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))
    mean, axes = fit_pca(x, 5)
    expected = PCA(5, svd_solver="full").fit_transform(x)
    got = project(x, mean, axes)
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-8)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(5)] > 0).all()


def test_pca_keeps_no_more_than_the_rank(rng):
    x = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 9))
    assert fit_pca(x, 6)[1].shape == (9, 2)
    assert fit_pca(np.ones((5, 3)), 2)[1].shape == (3, 0)


def test_projection_does_not_depend_on_company(rng):
    mean, axes = rng.normal(size=6), rng.normal(size=(6, 3))
    x = rng.normal(size=(700, 6))
    whole = project(x, mean, axes)
    for i in (0, 300, 699):
        np.testing.assert_array_equal(project(x[i : i + 1], mean, axes)[0], whole[i])


def test_standardize_leaves_out_constant_features():
    out = standardize(np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([2.0, 5.0]), np.array([1.0, 0.0]))
    np.testing.assert_array_equal(out, [[-1, 0], [1, 0]])


def test_gates_sum_to_one_and_skip_absent_rows():
    distances = np.array([[1.0, 2.0, np.nan], [0.0, 0.0, 0.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(distance_gate(distances, 0.0), [[0.5, 0.5, 0], [1 / 3] * 3, [0, 0, 0]])
    weights = distance_gate(distances, 2.0)
    raw = np.exp(-2 * np.array([0.25, 1.0]))
    np.testing.assert_allclose(weights[0, :2], raw / raw.sum())
    np.testing.assert_allclose(weights.sum(axis=1), [1, 1, 0])


def test_distance_gate_ignores_the_unit_of_distance():
    distances = np.array([[1.0, 2.0, 5.0]])
    np.testing.assert_allclose(distance_gate(distances, 1.0), distance_gate(distances * 100, 1.0))


def test_ridge_equals_scikit_learn(training):
    from sklearn.linear_model import Ridge

    fitted = fit_ridge(training, alphas=[0.1])
    mean = reference_mean(training)
    nobody = np.zeros((90, 0))
    got = ridge_adjustment(fitted, training, Selection(training.key, nobody, nobody, nobody)) + mean
    values = training.values.toarray()
    for genes, rows in ((np.r_[0:3, 5:14], np.arange(90)), (np.r_[3:5], np.arange(60))):
        model = Ridge(alpha=0.1 * len(rows)).fit(training.embedding[rows], values[rows][:, genes])
        np.testing.assert_allclose(got[:, genes], model.predict(training.embedding), atol=1e-8)
    assert np.isnan(got[:, 14]).all()


def test_ridge_chooses_alpha_on_held_out_groups(rng):
    key = rng.normal(size=(120, 40))
    noise_only = Bank(
        key,
        rng.normal(size=(120, 6)),
        np.zeros(120, int),
        np.ones((1, 6), bool),
        np.repeat([0, 1, 2], 40),
        np.repeat([0, 1, 2], 40),
        key=key,
    )
    signal = replace(noise_only, values=key @ rng.normal(size=(40, 6)))
    alphas = [1e-4, 1.0, 1e4]
    assert fit_ridge(signal, alphas=alphas)["alpha"] == 1e-4
    scores = fit_ridge(signal, alphas=alphas)["alpha_scores"]
    assert scores[0] > 0.99
    assert abs(fit_ridge(noise_only, alphas=alphas)["alpha_scores"]).max() < 0.3


def test_reference_mean_counts_only_rows_that_measured(training):
    values = training.values.toarray()
    got = reference_mean(training)
    np.testing.assert_allclose(got[0], values[:, 0].mean())
    np.testing.assert_allclose(got[3], values[:60, 3].mean())
    assert np.isnan(got[14])


def test_variable_genes():
    values = np.array([[0, 0, 5, 1], [0, 2, -5, 1.1], [0, 4, 0, 0.9]])
    for bank in (values, sp.csr_matrix(values)):
        np.testing.assert_array_equal(variable_genes(bank, np.arange(3), np.array([0, 1, 3]), 2), [1, 3])


def test_within_section_pearson_ignores_differences_between_sections(rng):
    sections = np.repeat([0, 1], 50)
    truth = rng.normal(size=(100, 3)) + sections[:, None] * 10
    predicted = rng.normal(size=(100, 3)) + sections[:, None] * 10
    assert np.corrcoef(truth[:, 0], predicted[:, 0])[0, 1] > 0.9
    assert abs(within_section_pearson(predicted, truth, sections)) < 0.2
    assert within_section_pearson(truth * 3, truth, sections) == pytest.approx(1)
