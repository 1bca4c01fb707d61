"""Signatures and deconvolution, on made mixtures with known truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls

from ragst_sd.reference.deconvolution import deconvolve, gene_weights, signatures
from ragst_sd.reference.normalize import log_normalize

N_TYPES, N_GENES = 8, 600


def mixtures(seed: int, *, platform: float = 0.0, n: int = 300, depth: float = 3000.0):
    """Poisson counts of single cells and of mixtures, the true fractions, and the log of the true platform effects."""
    rng = np.random.default_rng(seed)
    marks = rng.normal(0, 1, (N_TYPES, N_GENES)) * (rng.random((N_TYPES, N_GENES)) < 0.25)
    profiles = rng.lognormal(0, 1.5, N_GENES) * np.exp(marks)
    profiles /= profiles.sum(axis=1, keepdims=True)
    types = np.repeat(np.arange(N_TYPES), 60)
    cells = rng.poisson(profiles[types] * rng.gamma(4, 500, (len(types), 1)))
    fractions = rng.dirichlet(np.full(N_TYPES, 0.4), n)
    effects = rng.normal(0, platform, N_GENES)
    rates = fractions @ profiles * np.exp(effects)
    counts = sp.csr_matrix(rng.poisson(depth * rates / rates.sum(axis=1, keepdims=True)).astype(np.float32))
    values = log_normalize(counts, np.asarray(counts.sum(axis=1)).ravel() / 1e4)
    return signatures(sp.csr_matrix(cells), types, N_TYPES, np.ones(N_GENES, dtype=bool)), values, fractions, effects


def accuracy(found, truth):
    return np.corrcoef(found.ravel(), truth.ravel())[0, 1], np.sqrt(((found - truth) ** 2).mean())


@pytest.mark.parametrize("seed", range(3))
def test_fractions_of_made_mixtures(seed):
    profiles, values, truth, _ = mixtures(seed)
    found = deconvolve(values, profiles)
    correlation, error = accuracy(found.fractions, truth)
    assert correlation > 0.98
    assert error < 0.035
    assert found.fit.mean() > 0.8
    np.testing.assert_allclose(found.fractions.sum(axis=1), 1)
    assert (found.fractions >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_fractions_through_platform_effects(seed):
    profiles, values, truth, effects = mixtures(seed, platform=0.5)
    found, without = deconvolve(values, profiles), deconvolve(values, profiles, platform=False)
    correlation, error = accuracy(found.fractions, truth)
    assert correlation > 0.95
    assert error < 0.05
    assert accuracy(without.fractions, truth)[0] < correlation - 0.03
    np.testing.assert_array_equal(without.platform, 1)
    assert np.corrcoef(np.log(found.platform), effects)[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_type_that_the_cells_lack_leaves_the_others_in_proportion(seed):
    profiles, values, truth, _ = mixtures(seed, platform=0.5)
    found = deconvolve(values, profiles[1:]).fractions
    rows = truth[:, 0] < 0.5
    others = truth[rows, 1:] / truth[rows, 1:].sum(axis=1, keepdims=True)
    assert accuracy(found[rows], others)[0] > 0.92


def test_each_row_is_the_weighted_least_squares_solution():
    profiles, values, _, _ = mixtures(0, n=5)
    found = deconvolve(values, profiles, platform=False).fractions
    root = np.sqrt(1 / (profiles.mean(axis=0) + np.median(profiles.mean(axis=0))))
    for row, fractions in zip(np.expm1(values.toarray().astype(float)), found, strict=True):
        amounts = nnls((profiles * root).T, row * root)[0]
        np.testing.assert_allclose(fractions, amounts / amounts.sum(), atol=1e-8)


def test_a_row_without_expression_has_no_fractions():
    profiles, values, _, _ = mixtures(0, n=4)
    dense = values.toarray()
    dense[2] = 0
    found = deconvolve(sp.csr_matrix(dense), profiles)
    assert np.isnan(found.fractions[2]).all()
    assert np.isnan(found.fit[2])
    assert np.isfinite(found.fractions[[0, 1, 3]]).all()


def test_signatures_pool_the_cells_of_a_type():
    counts = sp.csr_matrix([[1, 1, 0], [5, 1, 2], [0, 0, 0]])
    found = signatures(counts, np.array([0, 0, 1]), 2, np.array([True, True, False]))
    np.testing.assert_allclose(found, [[7500, 2500, 2500], [0, 0, 0]])


def test_genes_without_expression_have_no_weight():
    weights = gene_weights(np.array([[0.0, 1.0, 4.0], [0.0, 3.0, 0.0]]))
    np.testing.assert_allclose(weights, [0, 0.25, 0.25])
    np.testing.assert_array_equal(gene_weights(np.zeros((2, 3))), 0)
