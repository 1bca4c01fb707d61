from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from ragst_sd.tl._perturbation_metrics import (
    ceiling,
    differential_expression,
    direction_match,
    distribution_distance,
    overlap,
    principal_axes,
)
from ragst_sd.tl._response_metrics import discrimination_scores, mean_metrics


def test_metrics_of_means(rng):
    p, m, pd, md = rng.normal(size=(4, 3, 20))
    found = mean_metrics(p, m, pd, md)
    np.testing.assert_allclose(found["pearson_delta"], [np.corrcoef(a, b)[0, 1] for a, b in zip(pd, md, strict=True)])
    np.testing.assert_allclose(found["mae"], np.abs(p - m).mean(axis=1))
    np.testing.assert_allclose(found["mse_delta"], ((pd - md) ** 2).mean(axis=1))
    assert mean_metrics(p[:1], m[:1], np.zeros((1, 20)), md[:1])["pearson_delta"] == 0


def discrimination(predicted, measured, line=0, names="ABCDE"):
    """Scores of one prediction among measured responses to perturbations of one context; genes are G0, G1, ..."""
    truth = SimpleNamespace(names=[("all", name) for name in names], delta=measured)
    genes = [f"G{i}" for i in range(measured.shape[1])]
    scores = discrimination_scores(predicted[None], truth, np.array([line]), genes, "control")
    return {name.rpartition("_")[2]: values.item() for name, values in scores.items()}


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_discrimination(rng, metric):
    measured = rng.normal(size=(5, 30))
    assert [discrimination(measured[i], measured, i)[metric] for i in range(5)] == [1] * 5
    farthest = discrimination(50 * measured[1], measured)["cosine"]
    order = np.argsort(-(measured @ measured[1]) / np.linalg.norm(measured, axis=1))
    np.testing.assert_allclose(farthest, 1 - np.flatnonzero(order == 0)[0] / 5)
    # no change is as far from every direction, and in the middle
    assert discrimination(np.zeros(30), measured, 2)["cosine"] == pytest.approx(0.6)
    # the perturbed gene itself is left out: what only it tells does not count
    giveaway = np.zeros((5, 30))
    giveaway[0, 3] = 10
    told = discrimination(giveaway[0], giveaway)[metric]
    blind = discrimination(giveaway[0], giveaway, names=["G3", *"BCDE"])[metric]
    assert told == pytest.approx(1) and blind == pytest.approx(0.6)


def test_differential_expression(rng):
    cells, controls = rng.normal(size=(40, 6)), rng.normal(size=(50, 6))
    cells[:, 0] += 3
    cells[:, 5] = controls[:, 5].max()
    controls[:, 5] = controls[:, 5].max()
    difference, fdr = differential_expression(cells, controls)
    np.testing.assert_allclose(difference, cells.mean(axis=0) - controls.mean(axis=0))
    p = [mannwhitneyu(cells[:, i], controls[:, i], method="asymptotic").pvalue for i in range(5)] + [1.0]
    order = np.argsort(p)
    adjusted = np.minimum.accumulate((np.array(p)[order] * 6 / np.arange(1, 7))[::-1])[::-1]
    np.testing.assert_allclose(fdr[order], np.minimum(adjusted, 1))
    assert fdr[0] < 0.05 < fdr[5]


def test_overlap_and_direction():
    measured = (np.array([5.0, -4, 3, 2, 1]), np.array([0.01, 0.01, 0.01, 0.9, 0.9]))
    predicted = (np.array([5.0, 4, 0, 3, 1]), np.array([0.01, 0.01, 0.9, 0.01, 0.9]))
    assert overlap(predicted, measured, "overlap_at_N") == pytest.approx(2 / 3)
    assert overlap(predicted, measured, "precision_at_N") == pytest.approx(2 / 3)
    assert overlap(predicted, measured, "overlap_at_50") == pytest.approx(2 / 3)
    nothing = (predicted[0], np.ones(5))
    assert overlap(nothing, measured, "overlap_at_N") == overlap(nothing, measured, "precision_at_N") == 0
    assert direction_match(predicted[0], measured) == pytest.approx(1 / 3)
    assert np.isnan(direction_match(predicted[0], nothing))


def test_distances_between_cells():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 3)), generator.normal(size=(60, 3)) + np.array([2.0, 0, 0])
    pairs = np.linalg.norm(x[:, None] - y, axis=2)
    within = [np.linalg.norm(a[:, None] - a, axis=2).mean() for a in (x, y)]
    assert distribution_distance(x, y, "energy") == pytest.approx(2 * pairs.mean() - sum(within))
    for name in ("energy", "mmd", "wasserstein1", "wasserstein2"):
        assert distribution_distance(x, x[::-1], name) == pytest.approx(0, abs=1e-9)
    # sets that are shifted copies are matched cell by cell
    for name in ("wasserstein1", "wasserstein2"):
        assert distribution_distance(x, x + np.array([0, 3.0, 0]), name) == pytest.approx(3)
        assert distribution_distance(x[:, :1], y[:, :1], name) > 1
    ordered = np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0])).mean()
    assert distribution_distance(x[:, :1], y[:, :1], "wasserstein1") == pytest.approx(ordered)
    assert distribution_distance(x, y, "mmd") > 5 * distribution_distance(x, generator.normal(size=(60, 3)), "mmd")


def test_principal_axes(rng):
    cells = rng.normal(size=(50, 6)) @ np.diag([9, 5, 1, 1, 1, 1])
    mean, axes = principal_axes(cells, 2)
    np.testing.assert_allclose(mean, cells.mean(axis=0))
    _, _, v = np.linalg.svd(cells - cells.mean(axis=0))
    np.testing.assert_allclose(np.abs(axes.T @ v[:2].T), np.eye(2), atol=1e-8)


def test_ceiling_is_what_the_true_response_reaches():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=20_000)
    halves = [truth + 1.5 * generator.normal(size=truth.size) for _ in range(2)]
    r = np.corrcoef(*halves)[0, 1]
    reached = np.corrcoef(truth, sum(halves) / 2)[0, 1]
    np.testing.assert_allclose(ceiling(np.array([r])), reached, atol=0.02)
    np.testing.assert_array_equal(ceiling(np.array([-0.2, 1.0])), [0, 1])
