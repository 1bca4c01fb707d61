"""Metrics of every gene against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from ragst_sd._metrics import METRICS, pearson, rmse, spearman, variance_kept, varies


@pytest.fixture
def pair(rng):
    truth = np.round(rng.normal(size=(40, 5)), 1)
    return 0.5 * truth + rng.normal(size=truth.shape), truth


def test_correlations_equal_scipy(pair):
    predicted, truth = pair
    for ours, theirs in ((pearson, pearsonr), (spearman, spearmanr)):
        expected = [theirs(p, t).statistic for p, t in zip(predicted.T, truth.T, strict=True)]
        np.testing.assert_allclose(ours(predicted, truth), expected)


def test_errors_and_spread_equal_numpy(pair):
    predicted, truth = pair
    np.testing.assert_allclose(rmse(predicted, truth), [np.linalg.norm(d) / np.sqrt(40) for d in (predicted - truth).T])
    np.testing.assert_allclose(variance_kept(predicted, truth), predicted.var(axis=0) / truth.var(axis=0))


def test_correlations_do_not_depend_on_unit(pair):
    predicted, truth = pair
    np.testing.assert_allclose(pearson(1e3 * predicted - 7, truth), pearson(predicted, truth))


@pytest.mark.parametrize("constant", [0.0, 1.1, 1e4 / 3])
def test_a_constant_does_not_vary(constant, pair):
    """The mean of equal numbers is not that number to the last bit."""
    flat = np.full((40, 5), constant)
    assert not varies(flat).any()
    np.testing.assert_array_equal(pearson(flat, pair[1]), 0)
    for name in ("pearson", "spearman", "variance_kept"):
        assert np.isnan(METRICS[name](pair[0], flat)).all()
