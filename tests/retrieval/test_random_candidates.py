"""Random candidates: the control that must not know which rows are near."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.retrieval.search import Eligibility, find_candidates


@pytest.fixture
def points(rng):
    groups = rng.integers(3, size=(20, 1)), rng.integers(3, size=(50, 1))
    return rng.normal(size=(20, 4)), rng.normal(size=(50, 4)), Eligibility(*groups, rng.random(50) < 0.7)


def draw(queries, bank, eligibility, k=6, tie_order=None):
    return find_candidates(queries, bank, k, eligibility=eligibility, how="random", tie_order=tie_order)


def test_only_eligible_rows_nearest_first(points):
    queries, bank, eligibility = points
    found = draw(*points)
    mask = eligibility.mask(slice(None), slice(None))
    for i, rows in enumerate(found.rows):
        assert len(set(rows)) == 6
        assert mask[i, rows].all()
        np.testing.assert_allclose(found.distances[i], np.linalg.norm(queries[i] - bank[rows], axis=1))
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_drawn_without_regard_to_distance(rng):
    queries, bank = rng.normal(size=(400, 2)), rng.normal(size=(40, 2))
    everyone = Eligibility.everything(400, 40)
    random, nearest = (find_candidates(queries, bank, 10, eligibility=everyone, how=h) for h in ("random", "nearest"))
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(random.rows, nearest.rows, strict=True)])
    assert shared == pytest.approx(2.5, abs=0.3)
    # Every row is drawn about equally often: 400 * 10 / 40 times.
    assert np.abs(np.bincount(random.rows.ravel(), minlength=40) - 100).max() < 45


def test_company_does_not_matter(rng, points):
    queries, bank, eligibility = points
    whole, order = draw(*points), rng.permutation(20)
    part = Eligibility(eligibility.query_groups[order], eligibility.bank_groups, eligibility.allowed)
    np.testing.assert_array_equal(draw(queries[order], bank, part).rows, whole.rows[order])
    for i in range(20):
        one = Eligibility(eligibility.query_groups[[i]], eligibility.bank_groups, eligibility.allowed)
        np.testing.assert_array_equal(draw(queries[[i]], bank, one).rows[0], whole.rows[i])


def test_order_of_the_bank_does_not_matter(rng, points):
    queries, bank, eligibility = points
    ids, place = rng.permutation(50), rng.permutation(50)
    whole = draw(*points, tie_order=ids)
    moved = Eligibility(eligibility.query_groups, eligibility.bank_groups[place], eligibility.allowed[place])
    again = draw(queries, bank[place], moved, tie_order=ids[place])
    np.testing.assert_array_equal(place[again.rows], whole.rows)


def test_fewer_eligible_than_asked_for(rng):
    queries, bank = rng.normal(size=(3, 2)), rng.normal(size=(8, 2))
    groups = np.array([[0], [1], [2]]), np.array([0, 0, 0, 0, 0, 1, 1, 1])[:, None]
    found = draw(queries, bank, Eligibility(*groups, np.arange(8) != 7))
    assert [(row >= 0).sum() for row in found.rows] == [2, 5, 6]
    np.testing.assert_array_equal(np.isnan(found.distances), found.rows < 0)
