"""Metrics of every gene against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr

from ragst_sd._metrics import METRICS, by_genes, mae, pearson, rmse, score_genes, spearman, variance_kept, varies


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
    np.testing.assert_allclose(mae(predicted, truth), [np.abs(d).sum() / 40 for d in (predicted - truth).T])
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


@pytest.mark.parametrize("threads", [1, 2])
def test_genes_are_scored_block_by_block_as_one_by_one(monkeypatch, rng, threads):
    monkeypatch.setattr("ragst_sd._metrics._BLOCK_GENES", 3)
    monkeypatch.setattr("ragst_sd.retrieval.threads.n_threads", lambda: threads)
    truth = np.where(rng.random((30, 10)) < 0.4, rng.normal(size=(30, 10)), 0.0).astype(np.float32)
    predicted = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    predicted[:5, 4] = np.nan
    predicted[:, 7] = np.nan
    predicted[1:, 9] = np.nan
    got = score_genes(METRICS, predicted, csr_matrix(truth))
    assert list(got) == list(METRICS)
    for name, metric in METRICS.items():
        for gene in range(10):
            known = np.isfinite(predicted[:, gene])
            columns = [part[known, gene : gene + 1].astype(np.float64) for part in (predicted, truth)]
            expected = metric(*columns)[0] if known.sum() > 1 else np.nan
            np.testing.assert_allclose(got[name][gene], expected, rtol=1e-12, err_msg=name)


def test_numbers_of_genes_need_no_more_memory_than_a_few_genes(monkeypatch):
    widths = []
    monkeypatch.setattr("ragst_sd._metrics._BLOCK_GENES", 4)
    found = by_genes(lambda own: {"width": (widths.append(own.shape[1]), own.sum(axis=0))[1]}, np.ones((3, 10)))
    assert sorted(widths) == [2, 4, 4]
    np.testing.assert_array_equal(found["width"], np.full(10, 3.0))
