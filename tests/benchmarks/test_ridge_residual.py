"""Ridge plus cross-fitted residuals, against the sum over neighbours written out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.ridge import fit_ridge
from ragst_sd.retrieval.training import reference_mean

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from methods.ridge_residual import fit_residual, residual_adjustment  # noqa: E402

ALPHAS = [0.05]


@pytest.fixture
def training(rng):
    key = rng.normal(size=(60, 5))
    folds = np.repeat([0, 1, 2], 20)
    values = key @ rng.normal(size=(5, 9)) + rng.normal(size=(60, 9)) + folds[:, None]
    panels = np.repeat([0, 1], [40, 20])
    measured = np.ones((2, 9), dtype=bool)
    measured[1, 3] = False
    measured[0, 4] = False
    measured[:, 8] = False
    return Bank(key, sp.csr_matrix(values * measured[panels]), panels, measured, folds, folds, key=key)


def selected(key, rows, weights):
    return Selection(key, rows, weights, np.zeros(rows.shape))


def ridge_at(fitted, key):
    """What ridge adds to the reference mean."""
    return key @ fitted["coefficients"] + fitted["intercept"]


@pytest.fixture
def cited(rng, training):
    rows = np.stack([rng.permutation(60)[:6] for _ in range(12)])
    rows[1, 4:] = -1
    rows[2] = rng.permutation(40)[:6]
    weights = rng.random(size=rows.shape) * (rows >= 0)
    return selected(rng.normal(size=(12, 5)), rows, weights / weights.sum(axis=1, keepdims=True))


def cross_fitted(training, fold):
    """Absolute predictions for all rows by ridge fitted without a fold."""
    rows = np.flatnonzero(training.folds != fold)
    part = training.at_rows(rows)
    fitted = fit_ridge(part, alphas=ALPHAS)
    return ridge_at(fitted, training.embedding) + reference_mean(part)


def test_evidence_plus_adjustment_is_ridge_plus_residuals(rng, training, cited):
    fitted, phi = fit_residual(training, alphas=ALPHAS), cited.key
    panels, measured = training.panels, training.measured
    evidence = weighted_average(cited.rows, cited.weights, training.values, panels=panels, measured=measured)
    got = evidence + residual_adjustment(fitted, training, cited)

    full = fit_ridge(training, alphas=ALPHAS)
    mean = reference_mean(training)
    base = ridge_at(full, phi) + mean
    in_sample = ridge_at(full, training.embedding) + mean
    by_fold = [cross_fitted(training, fold) for fold in range(3)]
    values = training.values.toarray()
    for i in range(12):
        for gene in range(9):
            voters = [
                (j, w) for j, w in zip(cited.rows[i], cited.weights[i], strict=True)
                if j >= 0 and measured[panels[j], gene]
            ]  # fmt: skip
            if not voters:
                assert np.isnan(got[i, gene])
                continue
            total = sum(w for _, w in voters)
            expected = base[i, gene]
            for j, w in voters:
                known = by_fold[training.folds[j]][j, gene]
                # Only fold 2 measured gene 4, so that nothing can be fitted without it.
                known = in_sample[j, gene] if gene == 4 else known
                expected += w / total * (values[j, gene] - known)
            assert got[i, gene] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(got[:, 8]).all()
    assert np.isnan(got[2, 4])


def test_cross_fitted_predictions_do_not_see_their_own_group(rng, training):
    changed = training.values.toarray()
    own = training.folds == 1
    changed[own] += 10 * rng.normal(size=(20, 9)) * training.measured[training.panels[own]]
    other = replace(training, values=sp.csr_matrix(changed))
    first, second = (fit_residual(t, alphas=ALPHAS) for t in (training, other))
    np.testing.assert_allclose(first["fold_coefficients"][1], second["fold_coefficients"][1])
    assert not np.allclose(first["fold_coefficients"][0], second["fold_coefficients"][0])
    level = [p["fold_intercept"][1] + reference_mean(t) for p, t in ((first, training), (second, other))]
    np.testing.assert_allclose(*level)


def test_centred_leaves_out_the_difference_of_levels(training):
    raw, centred = (
        fit_residual(training, alphas=ALPHAS, centred=centred)["fold_intercept"] for centred in (False, True)
    )
    values = training.values.toarray()
    # Folds 0 and 1 are one panel, which measured all of these genes, and fold 2 the other.
    genes = [0, 1, 2, 5, 6, 7]
    for fold in range(3):
        others = values[training.folds != fold].mean(axis=0)
        np.testing.assert_allclose((raw - centred)[fold, genes], (others - values.mean(axis=0))[genes])


def test_adjustment_does_not_depend_on_company(rng, training, cited):
    fitted = fit_residual(training, alphas=ALPHAS)
    many = selected(rng.normal(size=(360, 5)), np.tile(cited.rows, (30, 1)), np.tile(cited.weights, (30, 1)))
    whole = residual_adjustment(fitted, training, many)
    for i in (0, 2, 300, 359):
        one = many.some(slice(i, i + 1))
        np.testing.assert_array_equal(residual_adjustment(fitted, training, one)[0], whole[i])


def test_a_selection_of_genes_gives_the_same_values(rng, training, cited):
    fitted = fit_residual(training, alphas=ALPHAS)
    genes = np.array([6, 3, 0])
    per_gene = ("coefficients", "intercept", "fold_coefficients", "fold_intercept", "measured")
    part = {name: value[..., genes] if name in per_gene else value for name, value in fitted.items()}
    whole = residual_adjustment(fitted, training, cited)
    np.testing.assert_allclose(residual_adjustment(part, training, cited), whole[:, genes], atol=1e-12)


def test_residuals_add_what_ridge_cannot_see(rng):
    key = rng.uniform(-1, 1, size=(240, 2))
    values = np.sin(4 * key[:, :1]) + 0.05 * rng.normal(size=(240, 3))
    folds = np.repeat([0, 1, 2], 80)
    seen = folds < 2
    training = Bank(
        key[seen], values[seen], np.zeros(160, int), np.ones((1, 3), bool), folds[seen], folds[seen],
        key=key[seen],
    )  # fmt: skip
    fitted = fit_residual(training, alphas=ALPHAS)
    distances = ((key[~seen][:, None] - key[seen][None]) ** 2).sum(axis=2)
    rows = np.argsort(distances, axis=1)[:, :5]
    cited = selected(key[~seen], rows, np.full(rows.shape, 0.2))
    got = values[seen][rows].mean(axis=1) + residual_adjustment(fitted, training, cited)
    ridge = key[~seen] @ fitted["coefficients"] + fitted["intercept"] + values[seen].mean(axis=0)
    assert ((got - values[~seen]) ** 2).mean() < 0.3 * ((ridge - values[~seen]) ** 2).mean()
