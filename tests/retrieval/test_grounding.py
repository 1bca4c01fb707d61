"""Distances on the scale of held-out rows, and distances of raw embeddings to sections, against brute force."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import f

from ragst_sd.retrieval.appearance import (
    appearance_distance,
    appearance_threshold,
    fit_appearance,
    section_means,
)
from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.grounding import (
    FLAGGED,
    calibrate_distances,
    distance_percentile,
    grounding_of,
    largest_section_distance,
    neighbourhood_distance,
    neighbours_to_compare,
    section_distance,
)


@pytest.fixture
def rows(rng):
    """Correlated features of 300 tiles in three sections that differ in their means; one feature never varies."""
    sections = np.repeat([0, 1, 2], 100)
    embedding = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 12)) * rng.uniform(0.5, 20, size=12)
    embedding += rng.normal(size=(3, 12))[sections] * 5 + 40
    embedding[:, 4] = 3.0
    return embedding, sections


def brute_force(embedding, sections, queries):
    """Smallest squared distance to a section's mean with the inverse of one plus the correlation."""
    varies = np.arange(embedding.shape[1]) != 4
    centred = np.concatenate([embedding[sections == s] - embedding[sections == s].mean(axis=0) for s in range(3)])
    spread = np.sqrt((centred**2).mean(axis=0))[varies]
    correlation = np.corrcoef(centred[:, varies].T)
    inverse = np.linalg.inv(np.eye(varies.sum()) + correlation)
    means = [embedding[sections == s].mean(axis=0) for s in range(3)]
    z = [np.clip((queries - mean)[:, varies] / spread, -10, 10) for mean in means]
    return np.stack([np.einsum("nf,fg,ng->n", one, inverse, one) for one in z], axis=1), correlation


def test_appearance_distance_is_that_of_the_formula(rows, rng):
    embedding, sections = rows
    queries = np.concatenate([embedding[:50] + rng.normal(size=12), embedding[:5] * 100])
    parameters, means = fit_appearance(embedding, sections), section_means(embedding, sections)
    expected, correlation = brute_force(embedding, sections, queries)
    np.testing.assert_allclose(appearance_distance(queries, means, parameters) ** 2, expected.min(axis=1), rtol=1e-8)
    assert parameters["dimension"] == pytest.approx(11**2 / (correlation**2).sum())
    assert parameters["scale"][4] == 0


def test_only_eligible_sections_are_near(rows):
    embedding, sections = rows
    parameters, means = fit_appearance(embedding, sections), section_means(embedding, sections)
    eligible = np.ones((300, 3), dtype=bool)
    eligible[np.arange(300), sections] = False
    eligible[7] = False
    squared = appearance_distance(embedding, means, parameters, eligible) ** 2
    expected = np.where(eligible, brute_force(embedding, sections, embedding)[0], np.inf).min(axis=1)
    assert np.isnan(squared[7])
    np.testing.assert_allclose(np.delete(squared, 7), np.delete(expected, 7), rtol=1e-8)


def test_a_row_does_not_depend_on_its_company(rows):
    embedding, sections = rows
    parameters, means = fit_appearance(embedding, sections), section_means(embedding, sections)
    whole = appearance_distance(embedding, means, parameters)
    np.testing.assert_array_equal(whole[40:43], appearance_distance(embedding[40:43], means, parameters))


def test_threshold_follows_from_held_out_groups_and_their_number(rows):
    embedding, sections = rows
    parameters = fit_appearance(embedding, sections)
    squared = brute_force(embedding, sections, embedding)[0]
    squared[np.arange(300), sections] = np.inf
    nearest = squared.min(axis=1)
    quantiles = [np.quantile(nearest[sections == s], 0.95) for s in range(3)]
    nu = min(parameters["dimension"], 4)
    expected = np.sqrt(f.ppf(0.9, nu, 2 * nu) * np.mean(quantiles))
    found = appearance_threshold(embedding, sections, sections[:, None], parameters)
    assert found == pytest.approx(expected)


def test_fewer_groups_get_a_wider_margin(rng):
    """The same tiles, dealt out to two, four or twelve groups."""
    embedding = rng.normal(size=(1200, 6))
    found = []
    for n_groups in (2, 4, 12):
        groups = np.arange(1200) % n_groups
        parameters = fit_appearance(embedding, groups)
        found.append(appearance_threshold(embedding, groups, groups[:, None], parameters))
    assert found[0] > 1.1 * found[1] > 1.1 * found[2]


def test_new_groups_are_flagged_at_the_intended_rate():
    """Shifts between groups are normal and as correlated as the tiles within them: the assumption behind the margin."""
    rng = np.random.default_rng(1)
    wide = []
    for _ in range(60):
        mixing = rng.normal(size=(4, 30))
        groups = np.repeat(np.arange(4), 60)
        embedding = (rng.normal(size=(240, 4)) + 2 * rng.normal(size=(4, 4))[groups]) @ mixing
        embedding += rng.normal(size=embedding.shape)
        known = groups < 3
        parameters = fit_appearance(embedding[known], groups[known])
        threshold = appearance_threshold(embedding[known], groups[known], groups[known, None], parameters)
        means = section_means(embedding[known], groups[known])
        wide.append(np.mean(appearance_distance(embedding[~known], means, parameters) > threshold))
    assert np.mean(wide) < 0.1


def test_nothing_to_hold_out_is_no_threshold(rng):
    embedding, one = rng.normal(size=(20, 3)), np.zeros(20, dtype=int)
    assert np.isnan(appearance_threshold(embedding, one, one[:, None], fit_appearance(embedding, one)))
    flat = np.ones((20, 3))
    parameters = fit_appearance(flat, one)
    assert np.isnan(appearance_threshold(flat, one, (np.arange(20) % 2)[:, None], parameters))
    assert (appearance_distance(embedding, section_means(flat, one), parameters) == 0).all()


def test_calibration_flags_a_fixed_share_and_groups_count_alike(rng):
    held_out = np.concatenate([rng.gamma(2.0, size=4000), 100 + rng.gamma(2.0, size=40)])
    groups = np.repeat([[0], [1]], [4000, 40], axis=0)
    one = calibrate_distances(held_out[:4000], groups[:4000])
    assert np.mean(held_out[:4000] > one["distance_threshold"]) == pytest.approx(FLAGGED, abs=0.002)
    percentile = distance_percentile(
        np.array([0.0, np.median(held_out[:4000]), 99.0, np.nan]), one["distance_quantiles"]
    )
    np.testing.assert_allclose(percentile[:3], [0, 50, 100], atol=0.2)
    assert np.isnan(percentile[3])
    both = calibrate_distances(held_out, groups)
    np.testing.assert_allclose(distance_percentile(np.array([50.0]), both["distance_quantiles"]), 50, atol=1)
    assert np.isnan(calibrate_distances(np.full(4, np.nan), groups[:4])["distance_threshold"])


def test_neighbourhood_distance():
    distances = np.array([[1.0, 3.0, 8.0], [1.0, 3.0, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(neighbourhood_distance(distances, np.array([2, 3, 3])), [2.0, 2.0, np.nan])


def test_a_smaller_bank_is_compared_with_fewer_neighbours(rng):
    np.testing.assert_array_equal(neighbours_to_compare(50, np.array([1000, 500, 333, 3]), 1000), [50, 25, 17, 1])
    bank, queries = rng.normal(size=(2000, 3)), rng.normal(size=(300, 3))
    distances = np.sort(np.linalg.norm(queries[:, None] - bank, axis=2), axis=1)
    of_half = np.sort(np.linalg.norm(queries[:, None] - bank[::2], axis=2), axis=1)
    whole = neighbourhood_distance(distances, np.full(300, 50))
    half = neighbourhood_distance(of_half, neighbours_to_compare(50, np.full(300, 1000), 2000))
    same_number = neighbourhood_distance(of_half, np.full(300, 50))
    assert np.median(half / whole) == pytest.approx(1, abs=0.02)
    assert np.median(same_number / whole) > 1.2


def test_section_distance_is_in_spreads():
    means, stds = np.zeros((3, 4)), np.full((3, 4), 2.0)
    assert section_distance(np.full(4, 6.0), means, stds) == pytest.approx(3)
    assert section_distance(np.full(4, 1e9), means, stds) == pytest.approx(10)
    stds[:, 0] = 0
    assert section_distance(np.array([1e9, 0, 0, 0]), means, stds) == 0
    assert np.isnan(section_distance(np.ones(4), means, np.zeros((3, 4))))


def test_largest_section_distance():
    means, stds = np.array([[0.0], [0.0], [6.0]]), np.ones((3, 1))
    assert largest_section_distance(means, stds) == pytest.approx(6)
    assert np.isnan(largest_section_distance(means[:1], stds[:1]))


def test_donors_of_the_rows_that_are_used():
    donors, used = np.array([0, 0, 1, 2]), np.array([[0, 1, 3], [2, -1, -1], [-1, -1, -1], [3, 2, 0]])
    fit = SimpleNamespace(distance_threshold=1.0, distance_quantiles=np.linspace(0, 2, 5))
    bank = Bank(None, None, np.zeros(4, int), np.ones((1, 1), bool), None, donors, donors=donors, fit=fit)
    weights = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 0], [0.5, 0.5, 0]])
    found = grounding_of(
        bank,
        Selection(np.zeros((4, 1)), used, weights, weights),
        used=used,
        distance=np.array([0.5, 1.0, 1.5, np.nan]),
        eligibility=Eligibility.everything(4, 4),
    )
    np.testing.assert_array_equal(found.n_donors, [2, 1, 0, 3])
    np.testing.assert_array_equal(found.out_of_reference, [False, False, True, False])
    np.testing.assert_allclose(found.effective_n, [1 / 0.375, 1, np.nan, 2])
    np.testing.assert_allclose(found.distance_percentile, [40, 60, 80, np.nan])
