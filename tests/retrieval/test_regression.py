"""The regression of the stack against kernel ridge written out row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.regression import (
    fit_regression,
    largest_penalty,
    regression_features,
    regression_scale,
    row_weights,
    share_of_retrieval,
    solve_regression,
)
from ragst_sd.retrieval.training import (
    centred_within_sections,
    held_out_splits,
    section_shifts,
    within_section_pearson,
)

LINEAR = {"regression_landmarks": np.zeros((0, 5)), "regression_alpha": 0.3}


def made(seed=0, n=90, genes=7, donors=3, panels=1):
    random = np.random.default_rng(seed)
    key, folds = random.normal(size=(n, 5)), np.repeat(np.arange(donors), n // donors)
    values = np.tanh(key @ random.normal(size=(5, genes))) + random.normal(size=(donors, genes))[folds]
    measured = np.ones((panels, genes), dtype=bool)
    if panels == 2:
        measured[1, :2], measured[:, 2] = False, False
    of_row = np.resize(np.arange(panels), n)
    return Bank(key, values * measured[of_row], of_row, measured, folds, folds, folds, key=key)


def by_hand(bank, z, asked, gene, shifts, alpha, allowed):
    """The prediction of one gene, and the weight of each row."""
    z = z.astype(np.float32).astype(float)
    rows = np.flatnonzero(allowed & bank.measured[bank.panels, gene])
    centred = z[rows] - z[rows].mean(axis=0)
    gram = centred.T @ centred
    penalised = gram + alpha * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = (asked - z[rows].mean(axis=0)) @ np.linalg.solve(penalised, centred.T)
    return weights @ (bank.values[rows, gene] - shifts[bank.sections[rows], gene]), rows, weights


@pytest.mark.parametrize("panels", [1, 2])
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_coefficients_are_a_sum_over_the_rows_that_may_be_used(panels, part, sparse):
    bank = made(panels=panels)
    allowed = np.arange(len(bank)) % 4 > 0 if part else np.ones(len(bank), dtype=bool)
    shifts, z = section_shifts(bank), regression_features(LINEAR, bank.key)
    given = replace(bank, values=sp.csr_matrix(bank.values)) if sparse else bank
    coefficients, intercept = solve_regression(LINEAR, given, z, shifts, allowed if part else None)
    asked = np.random.default_rng(9).normal(size=(4, 5))
    for gene in range(7):
        if not bank.measured[:, gene].any():
            assert np.isnan(intercept[gene])
            continue
        expected, rows, weights = by_hand(bank, z, asked, gene, shifts, 0.3, allowed)
        np.testing.assert_allclose(asked @ coefficients[:, gene] + intercept[gene], expected, atol=1e-10)
        np.testing.assert_allclose(row_weights(LINEAR, z, asked, rows), weights, atol=1e-10)


def fitted(bank, evidence_of, **changed):
    bank = replace(bank, **changed)
    targets = centred_within_sections(bank.values, bank.sections)
    splits = held_out_splits(bank)
    evidence = [evidence_of(targets[held]) for _, held in splits]
    return fit_regression(bank, targets / targets.std(axis=0), splits, evidence, section_shifts(bank), rng=0)


def test_weights_of_rows_follow_from_what_the_fit_keeps():
    bank = made()
    parameters = fitted(bank, noise)
    z = regression_features(parameters, bank.key)
    asked = np.random.default_rng(9).normal(size=(4, z.shape[1]))
    solved = {name: one for name, one in parameters.items() if name not in ("regression_centre", "regression_inverse")}
    for rows in (np.arange(len(bank)), np.arange(10, 60)):
        found = row_weights(parameters, z, asked, rows)
        np.testing.assert_allclose(found, row_weights(solved, z, asked, rows), atol=1e-12)
    # Not solved again, in other words.
    parameters["regression_inverse"] = 2 * parameters["regression_inverse"]
    all_rows = np.arange(len(bank))
    np.testing.assert_allclose(
        row_weights(parameters, z, asked, all_rows), 2 * row_weights(solved, z, asked, all_rows), atol=1e-12
    )


def noise(truth):
    return np.random.default_rng(3).normal(size=truth.shape)


def test_share_follows_held_out_groups():
    bank = made(n=240)
    perfect, useless = fitted(bank, lambda truth: truth), fitted(bank, noise)
    assert perfect["retrieval_share"].min() > 0.5
    assert useless["retrieval_share"].max() == 0.05
    assert useless["regression_scores"][2] == pytest.approx(useless["regression_scores"][1], abs=0.02)
    assert useless["regression_scores"][1] > 0.5
    assert perfect["regression_scores"][0] == pytest.approx(1)


def test_a_penalty_that_shrinks_everything_leaves_the_regression_its_size():
    bank = made(n=240)
    # Features beside which those that matter are small: the best penalty is far above their variance.
    key = np.concatenate([bank.key, 30 * np.random.default_rng(7).normal(size=(len(bank), 40))], axis=1)
    parameters = fitted(bank, noise, key=key)
    z = regression_features(parameters, key)
    predicted = z @ parameters["regression_coefficients"] + parameters["regression_intercept"]
    truth = centred_within_sections(bank.values, bank.sections)
    slope = (predicted * truth).sum() / (predicted**2).sum()
    assert 0.8 < slope < 2


def test_scale_has_the_least_squared_error():
    random = np.random.default_rng(8)
    truth = [random.normal(size=(n, 3)) for n in (5, 8)]
    smooth = [0.01 * (y + random.normal(size=y.shape)) for y in truth]
    scales = np.linspace(0, 200, 20001)
    errors = [sum(((c * h - y) ** 2).mean() for h, y in zip(smooth, truth, strict=True)) for c in scales]
    assert regression_scale(smooth, truth) == pytest.approx(scales[np.argmin(errors)], abs=0.01)
    assert regression_scale([-h for h in smooth], truth) == 1


def test_share_has_the_least_squared_error_on_held_out_groups():
    random = np.random.default_rng(5)
    truth, evidence, smooth = ([random.normal(size=(n, 4)) for n in (6, 9)] for _ in range(3))
    evidence = [3 * (e + y) for e, y in zip(evidence, truth, strict=True)]
    smooth = [0.3 * (h + y) for h, y in zip(smooth, truth, strict=True)]

    def error(of_evidence, of_smooth):
        parts = zip(evidence, smooth, truth, strict=True)
        return sum(((of_evidence * e + of_smooth * h - y) ** 2).mean() for e, h, y in parts)

    scales = np.linspace(0, 3, 30001)
    size = scales[np.argmin([error(one, 0) for one in scales])]
    assert size < 0.3
    shares = np.linspace(0, 1, 10001)
    best = shares[np.argmin([error(one * size, 1 - one) for one in shares])]
    assert 0.2 < best < 0.9
    expected = best * size / (best * size + 1 - best)
    found = share_of_retrieval(evidence, smooth, truth)
    assert found == pytest.approx(expected, abs=1e-3)
    # Mixed by it, the parts have the same proportions at any size of retrieval.
    larger = share_of_retrieval([10 * e for e in evidence], smooth, truth)
    assert 10 * larger / (1 - larger) == pytest.approx(found / (1 - found))
    assert share_of_retrieval(smooth, truth, truth) == 0.05
    assert share_of_retrieval(truth, truth, truth) == 1
    assert share_of_retrieval([-e for e in evidence], smooth, truth) == 0.05
    # Evidence of next to nothing does not count for what it would be at another size.
    assert share_of_retrieval([1e-9 * e for e in evidence], smooth, truth) == 0.05
    assert share_of_retrieval([0 * e for e in evidence], smooth, truth) == 0.05


def test_share_is_weighed_against_a_regression_on_the_other_groups():
    bank = made(n=240)

    def vague(truth):
        return truth + np.random.default_rng(6).normal(size=truth.shape) * truth.std()

    parameters = fitted(bank, vague)
    z, alpha = regression_features(parameters, bank.key).astype(float), float(parameters["regression_alpha"])
    values = centred_within_sections(bank.values, bank.sections)
    targets, splits = values / values.std(axis=0), held_out_splits(bank)
    smooth = []
    for inner, held in splits:
        mean = z[inner].mean(axis=0)
        gram = (z[inner] - mean).T @ (z[inner] - mean)
        penalised = gram + alpha * np.trace(gram) / len(gram) * np.eye(len(gram))
        smooth.append((z[held] - mean) @ np.linalg.solve(penalised, (z[inner] - mean).T @ targets[inner]))
    smooth = [float(parameters["regression_scale"]) * part for part in smooth]
    evidence = [vague(values[held]) for _, held in splits]
    expected = share_of_retrieval(evidence, smooth, [targets[held] for _, held in splits])
    assert 0.05 < expected < 0.5
    np.testing.assert_allclose(parameters["retrieval_share"], expected, atol=1e-6)


def test_largest_penalty_within_one_standard_error():
    scores = np.array([[0.5, 0.60, 0.59, 0.50, 0.61], [0.4, 0.50, 0.51, 0.30, 0.51], [0.3, 0.40, 0.37, 0.35, 0.41]])
    # Losses of the third penalty: .01, -.01, .03, with a mean of .01 and an error of .0115; of the fourth .1, .2, .05.
    assert largest_penalty(scores, 1) == 2
    assert largest_penalty(scores, 4) == 4
    assert largest_penalty(scores - [0, 0, 0.01, 0, 0], 1) == 1
    # Of one group no error is known, and one of which nothing is known does not count.
    assert largest_penalty(scores[:1], 1) == 1
    assert largest_penalty(np.zeros((4, 13)), 3) == 5
    assert largest_penalty(np.concatenate([scores, np.full((1, 5), np.nan)]), 1) == 2


def test_penalty_of_a_single_donor_is_the_largest_that_costs_nothing_clear():
    random = np.random.default_rng(11)
    key, folds = random.normal(size=(160, 12)), np.repeat(np.arange(4), 40)
    slopes = random.normal(size=(12, 6)) + np.array([0.2, 1, 1, 1])[:, None, None] * random.normal(size=(4, 12, 6))
    values = np.einsum("np,npg->ng", key, slopes[folds]) + 3 * random.normal(size=(160, 6))
    bank = Bank(key, values, np.zeros(160, int), np.ones((1, 6), bool), folds, folds, folds, key=key)
    several, single = fitted(bank, noise), fitted(bank, noise, donors=np.zeros(160, dtype=int))
    assert not len(several["regression_landmarks"])
    targets, alphas = centred_within_sections(values, folds), np.logspace(-3, 3, 13)
    targets, z, curves = targets / targets.std(axis=0), key.astype(np.float32).astype(float), []
    for inner, held in held_out_splits(bank):
        mean = z[inner].mean(axis=0)
        gram = (z[inner] - mean).T @ (z[inner] - mean)
        lines = []
        for alpha in alphas:
            penalised = gram + alpha * np.trace(gram) / 12 * np.eye(12)
            predicted = (z[held] - mean) @ np.linalg.solve(penalised, (z[inner] - mean).T @ targets[inner])
            lines.append(within_section_pearson(predicted, targets[held], folds[held]))
        curves.append(lines)
    mean = np.mean(curves, axis=0)
    best = int(mean.argmax())
    place = largest_penalty(np.array(curves), best)
    assert place > best
    for parameters, chosen in ((several, best), (single, place)):
        assert parameters["regression_alpha"] == pytest.approx(alphas[chosen])
        assert parameters["regression_scores"][1] == pytest.approx(mean[chosen], abs=1e-3)


def test_features_of_the_kernel_have_to_win_in_every_group():
    random = np.random.default_rng(2)
    key, folds = random.normal(size=(240, 2)), np.repeat(np.arange(3), 80)
    bent = np.stack([np.cos(3 * key[:, 0]), np.sin(2 * key[:, 1]) ** 2], axis=1)
    values = np.where(folds[:, None] < 2, bent, 2 * key) + 0.05 * random.normal(size=(240, 2))
    bank = Bank(key, values, np.zeros(240, int), np.ones((1, 2), bool), folds, folds, folds, key=key)
    assert len(fitted(bank, noise)["regression_landmarks"]) == 0


def test_without_groups_retrieval_says_all():
    bank = made()
    targets = centred_within_sections(bank.values, bank.sections)
    parameters = fit_regression(bank, targets, [], [], section_shifts(bank), rng=0)
    assert (parameters["retrieval_share"] == 1).all()
    assert np.isnan(parameters["regression_scores"]).all()


def test_features_of_the_kernel_where_the_surface_bends():
    random = np.random.default_rng(1)
    key, folds = random.normal(size=(300, 2)), np.repeat(np.arange(3), 100)
    values = np.stack([np.cos(3 * key[:, 0]), np.sin(2 * key[:, 1]) ** 2], axis=1) + 0.05 * random.normal(size=(300, 2))
    bank = Bank(key, values, np.zeros(300, int), np.ones((1, 2), bool), folds, folds, folds, key=key)
    parameters = fitted(bank, noise)
    assert len(parameters["regression_landmarks"]) == 300
    assert parameters["regression_scores"][1] > 0.7
    z = regression_features(parameters, key)
    squared = ((key[:, None] - parameters["regression_landmarks"]) ** 2).sum(axis=2)
    similar = 1 / (1 + squared / (np.median(squared) / 2))
    # Features stand for the kernel: their products are its values.
    np.testing.assert_allclose(z @ z.T, similar, atol=2e-3)
    alone = regression_features(parameters, key[:1])
    np.testing.assert_array_equal(alone, z[:1])


def test_fits_that_name_no_kernel_have_a_gaussian_one():
    random = np.random.default_rng(1)
    landmarks, mixing, key = random.normal(size=(6, 2)), random.normal(size=(6, 4)), random.normal(size=(9, 2))
    earlier = {"regression_landmarks": landmarks, "regression_mixing": mixing, "regression_width": 1.7}
    squared = ((key[:, None] - landmarks) ** 2).sum(axis=2)
    np.testing.assert_allclose(regression_features(earlier, key), np.exp(-squared / 1.7) @ mixing, rtol=1e-5)
