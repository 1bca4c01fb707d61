from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.responses import halves, mean_responses, row_correlation, split_half_reliability


@pytest.fixture
def cells(rng):
    """Three rows in two strata, controls in both."""
    row = np.r_[np.repeat(-1, 20), rng.integers(0, 3, size=40)]
    stratum = np.r_[np.arange(20) % 2, rng.integers(0, 2, size=40)]
    values = sp.csr_matrix(np.maximum(rng.normal(size=(60, 7)) + 0.5, 0))
    return values, row, stratum


def test_responses_agree_with_brute_force(cells):
    values, row, stratum = cells
    dense = values.toarray()
    found = mean_responses(values, row, stratum, 3)
    for r in range(3):
        own = np.flatnonzero(row == r)
        centres = np.array([dense[(row == -1) & (stratum == stratum[i])].mean(axis=0) for i in own])
        differences = dense[own] - centres
        np.testing.assert_allclose(found.mean[r], differences.mean(axis=0), atol=1e-12)
        square = differences.var(axis=0, ddof=1) / len(own)
        for s in range(2):
            controls = dense[(row == -1) & (stratum == s)]
            share = (stratum[own] == s).mean()
            square = square + share**2 * controls.var(axis=0, ddof=1) / len(controls)
        np.testing.assert_allclose(found.error[r], np.sqrt(square), atol=1e-12)
        assert found.n_cells[r] == len(own)


def test_standard_error_is_the_spread_over_repeated_screens():
    generator = np.random.default_rng(0)
    row, stratum = np.repeat([-1, 0], [40, 15]), np.r_[np.arange(40) % 2, np.arange(15) % 2]
    means, errors = [], []
    for _ in range(300):
        values = sp.csr_matrix(generator.normal(size=(55, 6)) + stratum[:, None] + 3)
        found = mean_responses(values, row, stratum, 1)
        means.append(found.mean[0])
        errors.append(found.error[0])
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(means, axis=0), rtol=0.12)


def test_one_cell_has_no_standard_error(cells):
    values, row, stratum = cells
    found = mean_responses(values, np.where(row == 2, 1, row), stratum, 3)
    assert found.n_cells[2] == 0 and np.isnan(found.mean[2]).all()
    alone = np.r_[row[:20], [0]]
    found = mean_responses(values[:21], alone, stratum[:21], 1)
    assert np.isnan(found.error).all() and np.isfinite(found.mean).all()


def test_halves_split_every_group(rng):
    groups = rng.integers(0, 5, size=101)
    first = halves(groups, rng)
    for group in range(5):
        inside = first[groups == group]
        assert inside.sum() == (len(inside) + 1) // 2


def test_reliability_is_high_with_an_effect_and_zero_without():
    generator = np.random.default_rng(0)
    effect = np.vstack([np.zeros(200), generator.normal(size=200)])
    row = np.repeat([-1, 0, 1], [60, 60, 60])
    values = generator.normal(size=(180, 200)) + 5
    values[row >= 0] += effect[row[row >= 0]]
    stratum = np.zeros(180, dtype=int)
    found = split_half_reliability(sp.csr_matrix(values), row, stratum, 2, n_splits=5, rng=generator)
    assert abs(found[0]) < 0.25
    assert found[1] > 0.85
    few = np.r_[np.repeat(-1, 60), 0]
    assert np.isnan(split_half_reliability(sp.csr_matrix(values[:61]), few, stratum[:61], 1, rng=generator)).all()


def test_correlation_of_rows(rng):
    a, b = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    np.testing.assert_allclose(row_correlation(a, b), [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    assert row_correlation(np.ones((1, 5)), np.arange(5.0)[None]) == 0
