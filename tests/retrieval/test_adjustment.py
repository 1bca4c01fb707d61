"""The adjustment against ridge regression written out, and where it helps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.adjustment import apply_adjustment, evidence_offset, fit_adjustment
from ragst_sd.retrieval.bank import Bank, Run, Selection
from ragst_sd.retrieval.centering import section_shifts
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import distance_gate

RUN = Run(n_neighbors=8, n_candidates=12)


def select(bank, query):
    return cite(query, distance_gate(query.candidates.distances, 2.0))


def applied(parameters, phi, rows, bank):
    """T for queries that cite these rows alike."""
    weights = np.full(rows.shape, 1 / rows.shape[1])
    training = replace(made(bank, bank, np.zeros(len(bank), int)), key=bank)
    return apply_adjustment(parameters, training, Selection(phi, rows, weights, weights))


def made(phi, values, folds, measured=None, panels=None):
    panels = np.zeros(len(phi), int) if panels is None else panels
    measured = np.ones((panels.max() + 1, values.shape[1]), bool) if measured is None else measured
    return Bank(phi, values * measured[panels], panels, measured, folds, folds)


def fitted(training, rank=50, run=RUN):
    shifts = section_shifts(training)
    return fit_adjustment(
        training, training.embedding, training.embedding, select, shifts, run=run, rank=rank, candidates="nearest"
    ), shifts


def by_hand(training, shifts, run=RUN):
    """Cited rows, offsets and what the evidence missed, row by row and gene by gene."""
    phi, folds, measured = training.embedding, training.folds, training.measured[training.panels]
    values = np.where(measured, training.values - shifts[training.sections], np.nan)
    offset, missed = np.zeros_like(phi), np.full(values.shape, np.nan)
    for i in range(len(phi)):
        others = np.flatnonzero(folds != folds[i])
        distances = np.linalg.norm(phi[others] - phi[i], axis=1)
        near = np.argsort(distances)[: run.n_candidates]
        weights = np.exp(-2 * (distances[near] / distances[near].max()) ** 2)
        rows, weights = others[near][: run.n_neighbors], weights[: run.n_neighbors]
        weights = weights / weights.sum()
        offset[i] = phi[i] - weights @ phi[rows]
        for g in range(values.shape[1]):
            voters = measured[rows, g]
            if voters.any():
                missed[i, g] = values[i, g] - (weights[voters] @ values[rows, g][voters]) / weights[voters].sum()
    return offset, missed


@pytest.fixture
def beyond(rng):
    """Linear truth, and groups that lie apart: the neighbours' average falls short of it."""
    folds = np.repeat([0, 1, 2], 50)
    phi = rng.normal(size=(150, 5)) * np.array([0.5, 1.0, 2.0])[folds][:, None]
    return phi, phi @ rng.normal(size=(5, 9)) + 0.1 * rng.normal(size=(150, 9)), folds


def ridge(offset, missed, alpha):
    from sklearn.linear_model import Ridge

    scale = (offset**2).sum() / offset.shape[1]
    return Ridge(alpha=alpha * scale, fit_intercept=False).fit(offset, missed).coef_.T


def test_is_ridge_regression_of_what_the_evidence_missed(beyond):
    training = made(*beyond)
    got, shifts = fitted(training)
    offset, missed = by_hand(training, shifts)
    alpha = float(got["adjustment_alpha"])
    np.testing.assert_allclose(got["adjustment_in"].shape, (5, 5))
    # Of full rank, the directions span what ridge found; the second ridge is taken in their coordinates.
    expected = ridge(offset @ got["adjustment_in"], missed, alpha)
    np.testing.assert_allclose(got["adjustment_out"], expected, rtol=1e-3, atol=1e-4)
    solution = ridge(offset, missed, alpha)
    _, _, axes = np.linalg.svd(offset @ solution, full_matrices=False)
    np.testing.assert_allclose(np.abs(got["adjustment_in"]), np.abs(solution @ axes[:5].T), rtol=1e-3, atol=1e-3)


def test_helps_where_the_truth_is_linear_beyond_the_bank(beyond):
    phi, values, folds = beyond
    seen = folds < 2
    training = made(phi[seen], values[seen], folds[seen])
    got, _ = fitted(training)
    bank = phi[seen]
    rows = np.argsort(((phi[~seen][:, None] - bank[None]) ** 2).sum(axis=2), axis=1)[:, :8]
    evidence = values[seen][rows].mean(axis=1)
    error = ((evidence - values[~seen]) ** 2).mean()
    adjusted = ((evidence + applied(got, phi[~seen], rows, bank) - values[~seen]) ** 2).mean()
    assert adjusted < 0.3 * error
    assert got["adjustment_scores"][1:].max() > got["adjustment_scores"][0] + 0.01


def test_scores_are_those_of_held_out_groups(beyond):
    training = made(*beyond)
    got, shifts = fitted(training)
    offset, missed = by_hand(training, shifts)
    truth = training.values - shifts[training.sections]
    for place, alpha in ((0, None), (1, 1e-2), (5, 1e2**0), (11, 1e3)):
        scores = []
        for fold in range(3):
            held, added = training.folds == fold, 0
            if alpha is not None:
                added = offset[held] @ ridge(offset[~held], missed[~held], alpha)
            guess = truth[held] - missed[held] + added
            scores.append(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(guess.T, truth[held].T, strict=True)]))
        assert got["adjustment_scores"][place] == pytest.approx(np.mean(scores), abs=1e-4)


def test_is_zero_where_it_does_not_help(rng):
    phi, folds = rng.normal(size=(150, 5)), np.repeat([0, 1, 2], 50)
    got, _ = fitted(made(phi, rng.normal(size=(150, 9)), folds))
    assert np.isinf(got["adjustment_alpha"])
    rows = np.arange(24).reshape(3, 8)
    np.testing.assert_array_equal(applied(got, phi[:3], rows, phi), np.zeros((3, 9)))


def test_rank_zero_is_no_adjustment(beyond):
    got, _ = fitted(made(*beyond), rank=0)
    assert not got["adjustment_out"].any()
    assert np.isinf(got["adjustment_alpha"])


def test_rank_limits_the_directions(beyond):
    got, _ = fitted(made(*beyond), rank=2)
    assert got["adjustment_in"].shape == (5, 2)
    assert got["adjustment_out"].shape == (2, 9)


def test_genes_of_one_panel_are_fitted_on_its_rows(beyond):
    phi, values, folds = beyond
    panels = np.resize([0, 0, 1], 150)
    measured = np.ones((2, 9), bool)
    measured[1, 6], measured[0, 7], measured[:, 8] = False, False, False
    training = made(phi, values, folds, measured, panels)
    got, shifts = fitted(training)
    dense = {name: np.asarray(value) for name, value in got.items()}
    sparse, _ = fitted(replace(training, values=sp.csr_matrix(training.values)))
    np.testing.assert_allclose(sparse["adjustment_out"], dense["adjustment_out"], atol=1e-6)
    offset, missed = by_hand(training, shifts)
    alpha = float(got["adjustment_alpha"])
    for gene in range(8):
        known = np.isfinite(missed[:, gene])
        expected = ridge((offset @ got["adjustment_in"])[known], missed[known, gene], alpha)
        np.testing.assert_allclose(got["adjustment_out"][:, gene], expected, rtol=1e-3, atol=1e-4)
    assert not got["adjustment_out"][:, 8].any()


def test_offset_written_out(rng):
    phi, bank = rng.normal(size=(4, 3)), rng.normal(size=(10, 3))
    rows = np.array([[0, 1], [2, -1], [-1, -1], [5, 5]])
    weights = np.array([[0.3, 0.7], [1, 0], [0, 0], [0.5, 0.5]])
    expected = [phi[0] - 0.3 * bank[0] - 0.7 * bank[1], phi[1] - bank[2], np.zeros(3), phi[3] - bank[5]]
    np.testing.assert_allclose(evidence_offset(Selection(phi, rows, weights, weights), bank), expected)
