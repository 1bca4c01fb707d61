"""The conformal kernels, against simulated draws and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.retrieval.conformal import (
    IntervalRule,
    attainable,
    group_threshold,
    interval_scale,
    limits_around,
    rank_of,
    spot_threshold,
)


def brute_force_tail(scores, groups, t, rank):
    """P(at least `rank` of the drawn scores are at most t), by going through who is below."""
    share = [np.mean(scores[groups == k] <= t) for k in np.unique(groups)]
    total = 0.0
    for outcome in range(2 ** len(share)):
        below = [(outcome >> k) & 1 for k in range(len(share))]
        if sum(below) >= rank:
            total += np.prod([p if b else 1 - p for p, b in zip(share, below, strict=True)])
    return total


def made_scores(rng, n_groups, effect, genes=1, size=(40, 160)):
    """Groups of spots whose scores share a factor."""
    sizes = rng.integers(*size, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    factor = np.exp(effect * rng.normal(size=(n_groups, genes)))
    return np.abs(rng.normal(size=(len(groups), genes))) * factor[groups], groups


class TestRank:
    @pytest.mark.parametrize(("level", "fewest"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
    def test_a_level_needs_as_many_as_it_says(self, level, fewest):
        assert attainable(fewest, level)
        assert not attainable(fewest - 1, level)

    def test_rounding_adds_no_rank(self):
        assert rank_of(9, 0.9) == 9
        assert rank_of(10, 0.9) == 10
        assert rank_of(99, 0.9) == 90


class TestGroupThreshold:
    @pytest.mark.parametrize(("n_groups", "level"), [(3, 0.5), (4, 0.8), (6, 0.8), (9, 0.9)])
    def test_is_the_smallest_value_that_enough_draws_are_below(self, rng, n_groups, level):
        from scipy.stats import binom

        scores, groups = made_scores(rng, n_groups, 0.5, genes=3, size=(4, 9))
        rank = int(np.ceil((n_groups + 1) * level - 1e-9))
        wanted = binom.sf(rank - 1, n_groups, level)
        found = group_threshold(scores, groups, level)
        for gene in range(scores.shape[1]):
            own = scores[:, gene]
            enough = [t for t in np.sort(own) if brute_force_tail(own, groups, t, rank) >= wanted - 1e-12]
            assert found[gene] == enough[0]

    def test_lies_at_its_quantile_of_simulated_draws(self, rng):
        scores, groups = made_scores(rng, 9, 0.4)
        found = group_threshold(scores, groups, 0.9)[0]
        draws = np.stack([rng.choice(scores[groups == k, 0], 20_000) for k in range(9)])
        # The largest of nine draws is below the threshold in 0.9^9 of all draws.
        assert np.mean(draws.max(axis=0) <= found) == pytest.approx(0.9**9, abs=0.02)

    def test_without_differences_between_groups_it_is_the_quantile_of_all(self, rng):
        scores, groups = made_scores(rng, 9, 0.0, size=(3000, 3001))
        assert group_threshold(scores, groups, 0.9)[0] == pytest.approx(np.quantile(scores, 0.9), rel=0.02)

    def test_of_groups_of_one_it_is_the_conformal_quantile_of_groups(self, rng):
        scores = rng.random((14, 5))
        found = group_threshold(scores, np.arange(14), 0.8)
        np.testing.assert_array_equal(found, np.sort(scores, axis=0)[11])
        np.testing.assert_array_equal(found, spot_threshold(scores, 0.8))

    @pytest.mark.parametrize("effect", [0.0, 0.5, 2.0])
    @pytest.mark.parametrize(("n_groups", "level"), [(9, 0.9), (14, 0.9), (4, 0.8), (9, 0.5)])
    def test_covers_a_new_group(self, effect, n_groups, level):
        """Genes stand for repetitions: their groups differ by factors of their own."""
        rng = np.random.default_rng(int(10 * effect) + n_groups)
        scores, groups = made_scores(rng, n_groups + 1, effect, genes=2000, size=(25, 60))
        new = groups == n_groups
        found = group_threshold(scores[~new], groups[~new], level)
        coverage = (scores[new] <= found).mean(axis=0)
        error = coverage.std() / np.sqrt(len(coverage))
        most = rank_of(n_groups, level) / (n_groups + 1)
        assert level - 0.01 - 3 * error < coverage.mean() < most + 0.01 + 3 * error

    def test_single_spots_cover_too_little_where_groups_differ(self):
        """What the groups are for."""
        rng = np.random.default_rng(0)
        scores, groups = made_scores(rng, 10, 2.0, genes=2000, size=(25, 60))
        new = groups == 9
        assert (scores[new] <= spot_threshold(scores[~new], 0.9)).mean() < 0.88

    def test_missing_scores_and_groups_are_left_out(self, rng):
        scores, groups = made_scores(rng, 10, 0.5, genes=3, size=(5, 9))
        holes = scores.copy()
        holes[groups == 4, 1] = np.nan
        holes[0, 2] = np.nan
        found = group_threshold(holes, groups, 0.9)
        assert found[0] == group_threshold(scores, groups, 0.9)[0]
        kept = groups != 4
        assert found[1] == group_threshold(scores[kept], groups[kept], 0.9)[1]
        assert found[2] == group_threshold(scores[1:], groups[1:], 0.9)[2]

    def test_too_few_groups_give_nothing(self, rng):
        scores, groups = made_scores(rng, 9, 0.5, genes=2, size=(5, 9))
        scores[groups == 0, 1] = np.nan
        found = group_threshold(scores, groups, 0.9)
        assert np.isfinite(found[0])
        assert np.isnan(found[1])

    def test_neither_order_nor_names_of_groups_matter(self, rng):
        scores, groups = made_scores(rng, 9, 0.5, genes=4, size=(5, 9))
        order = rng.permutation(len(groups))
        renamed = np.array([f"d{10 - k}" for k in groups])
        np.testing.assert_array_equal(
            group_threshold(scores, groups, 0.9), group_threshold(scores[order], renamed[order], 0.9)
        )


class TestSpotThreshold:
    def test_is_the_conformal_quantile(self, rng):
        scores = rng.random((99, 3))
        np.testing.assert_array_equal(spot_threshold(scores, 0.9), np.sort(scores, axis=0)[89])

    def test_missing_scores_are_left_out(self, rng):
        scores = rng.random((30, 3))
        scores[:11, 1] = np.nan
        scores[:, 2] = np.nan
        found = spot_threshold(scores, 0.9)
        assert found[1] == np.sort(scores[11:, 1])[17]
        assert np.isnan(found[2])

    def test_too_few_spots_give_nothing(self, rng):
        assert np.isnan(spot_threshold(rng.random((8, 2)), 0.9)).all()


class TestScale:
    def test_formula(self, rng):
        spread, floor, distance = rng.random((5, 3)), rng.random(3), np.array([0.5, 1.0, 2.0, 4.0, 3.0])
        found = interval_scale(spread, floor, distance, 2.0)
        expected = np.sqrt(spread**2 + floor**2) * np.array([1, 1, 1, 2, 1.5])[:, None]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.dtype == np.float32

    def test_without_a_calibrated_distance_nothing_widens(self, rng):
        spread, floor, distance = rng.random((5, 3)), rng.random(3), np.full(5, 9.0)
        np.testing.assert_array_equal(
            interval_scale(spread, floor, distance, np.nan), interval_scale(spread, floor, np.zeros(5), 1.0)
        )

    def test_unknown_spread_stays_unknown(self):
        found = interval_scale(np.array([[np.nan, 1.0]]), np.ones(2), np.ones(1), 1.0)
        assert np.isnan(found[0, 0])
        assert np.isfinite(found[0, 1])


def test_limits_widen_far_away_and_where_tissue_looks_unlike():
    rule = IntervalRule(0.9, "donor", np.array([0.9]), np.array(["donor"]), None, np.array([2.0]), np.zeros(1), 1.0)
    prediction, spread = np.full((5, 1), 9.0), np.ones((5, 1))
    distance, unlike = np.array([0.5, 2.0, 0.5, 2.0, 0.5]), np.array([0.5, 0.5, 1.5, 1.5, np.nan])
    lower, upper = limits_around(rule, prediction, spread, distance, unlike)
    np.testing.assert_allclose(upper[:, 0] - 9, [2, 4, 3, 6, 2])
    np.testing.assert_allclose(9 - lower[:, 0], [2, 4, 3, 6, 2])
    # Expression is not negative; a prediction that is stays inside its interval.
    lower, _ = limits_around(rule, np.array([[1.0], [-1.0]]), spread[:2], distance[:2], unlike[:2])
    np.testing.assert_array_equal(lower[:, 0], [0, -1])
