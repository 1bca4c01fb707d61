"""Search against brute force in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval.search import Eligibility, search


def brute_force(queries, bank, k, mask, tie_order, metric="euclidean"):
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    squared = ((queries[:, None, :] - bank[None, :, :]) ** 2).sum(axis=2)
    distances = squared / 2 if metric == "cosine" else np.sqrt(squared)
    rows = np.full((len(queries), k), -1)
    out = np.full((len(queries), k), np.nan)
    for i in range(len(queries)):
        eligible = np.flatnonzero(mask[i])
        order = eligible[np.lexsort((tie_order[eligible], squared[i, eligible]))][:k]
        rows[i, : len(order)], out[i, : len(order)] = order, distances[i, order]
    return rows, out


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(40, 6)), rng.normal(size=(500, 6))
    groups = Eligibility(rng.integers(-1, 4, (40, 1)), rng.integers(0, 4, (500, 1)), rng.random(500) > 0.2)
    return queries, bank, groups, rng.permutation(500)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block", [(7, 64), (512, 4096)])
def test_exact_search_equals_brute_force(data, metric, block):
    queries, bank, groups, tie_order = data
    mask = groups.allowed & (groups.query_groups != groups.bank_groups.T)
    found = search(queries, bank, 12, eligibility=groups, tie_order=tie_order, metric=metric, block=block)
    rows, distances = brute_force(queries, bank, 12, mask, tie_order, metric)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9)
    np.testing.assert_array_equal(groups.count(), mask.sum(axis=1))


def test_own_group_never_comes_back(data):
    _queries, bank, groups, _tie_order = data
    found = search(
        bank[:40], bank, 10, eligibility=Eligibility(groups.bank_groups[:40], groups.bank_groups, np.ones(500, bool))
    )
    assert (groups.bank_groups[found.rows, 0] != groups.bank_groups[:40]).all()


@pytest.mark.parametrize("backend", ["exact", pytest.param("pynndescent", marks=pytest.mark.slow)])
def test_a_query_that_is_a_row_does_not_find_itself(data, backend):
    _queries, bank, groups, tie_order = data
    own = np.where(np.arange(40) < 30, np.arange(40), -1)
    of_rows = replace(groups, query_groups=np.full((40, 1), -1), itself=own)
    mask = groups.allowed & (own[:, None] != np.arange(500))
    found = search(bank[:40], bank, 5, eligibility=of_rows, tie_order=tie_order, backend=backend)
    assert (found.rows != own[:, None]).all()
    np.testing.assert_array_equal(of_rows.count(), mask.sum(axis=1))
    rows, _ = brute_force(bank[:40], bank, 5, mask, tie_order)
    assert (found.rows == rows).mean() > (0.9 if backend == "pynndescent" else 0.999)


def test_fewer_eligible_rows_are_padded():
    bank = np.random.default_rng(0).normal(size=(9, 3))
    allowed = np.zeros(9, bool)
    allowed[[2, 5]] = True
    everything = Eligibility.everything(1, 9)
    found = search(bank[:1], bank, 4, eligibility=Eligibility(everything.query_groups, everything.bank_groups, allowed))
    assert set(found.rows[0, :2]) == {2, 5}
    np.testing.assert_array_equal(found.rows[0, 2:], [-1, -1])
    assert np.isnan(found.distances[0, 2:]).all()


def test_ties_are_broken_by_the_given_order():
    bank = np.zeros((200, 4))
    tie_order = np.random.default_rng(3).permutation(200)
    found = search(np.ones((3, 4)), bank, 5, tie_order=tie_order)
    np.testing.assert_array_equal(found.rows, np.tile(np.argsort(tie_order)[:5], (3, 1)))


def test_near_ties_that_float32_cannot_tell_apart():
    rng = np.random.default_rng(5)
    # 300 rows whose distances differ in the tenth digit, far more than the margin of candidates.
    bank = np.ones((300, 8)) * 100
    bank[:, 0] += np.linspace(0, 1e-7, 300)[rng.permutation(300)]
    queries = np.full((4, 8), 100.0)
    found = search(queries, bank, 10)
    rows, _ = brute_force(queries, bank, 10, np.ones((4, 300), bool), np.arange(300))
    np.testing.assert_array_equal(found.rows, rows)


def test_far_from_the_origin():
    rng = np.random.default_rng(6)
    bank = 1e5 + rng.normal(size=(1000, 5))
    queries = 1e5 + rng.normal(size=(20, 5))
    found = search(queries, bank, 7)
    rows, _ = brute_force(queries, bank, 7, np.ones((20, 1000), bool), np.arange(1000))
    np.testing.assert_array_equal(found.rows, rows)


def test_result_does_not_depend_on_company_or_order(data):
    queries, bank, _groups, _tie_order = data
    together = search(queries, bank, 8)
    for i in (0, 17, 39):
        alone = search(queries[i : i + 1], bank, 8)
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])
        np.testing.assert_array_equal(alone.distances[0], together.distances[i])
    shuffle = np.random.default_rng(1).permutation(len(bank))
    shuffled = search(queries, bank[shuffle], 8)
    np.testing.assert_array_equal(shuffle[shuffled.rows], together.rows)


@pytest.mark.slow
def test_pynndescent_candidates_are_ranked_exactly_and_masked(data):
    queries, bank, groups, tie_order = data
    found = search(queries, bank, 5, eligibility=groups, tie_order=tie_order, backend="pynndescent")
    exact = search(queries, bank, 5, eligibility=groups, tie_order=tie_order)
    eligible = groups.allowed[found.rows] & (groups.bank_groups[found.rows, 0] != groups.query_groups)
    assert eligible.all()
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found.rows, exact.rows, strict=True)]) > 0.9


@pytest.mark.parametrize(("argument", "value"), [("metric", "manhattan"), ("backend", "faiss")])
def test_unknown_choices(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` is '{value}'; it must be"):
        search(np.ones((1, 2)), np.ones((3, 2)), 1, **{argument: value})


def test_rows_at_almost_one_distance_are_told_apart(rng, monkeypatch):
    """More rows than the short list holds lie nearer to one another than rounding in float32 can tell."""
    import ragst_sd.retrieval.search as module

    bank, queries = np.zeros((3000, 4)), np.full((3, 4), 100.0)
    bank[:, 0] = 1000 + 1e-7 * rng.permutation(3000)
    bank[300:] += 1e4
    monkeypatch.setattr(module, "rank_all", lambda *args, **kwargs: pytest.fail("the longer list proves it"))
    found = module.search(queries, bank, 10, backend="exact")
    expected = np.lexsort((np.arange(3000), ((bank - queries[0]) ** 2).sum(axis=1)))[:10]
    np.testing.assert_array_equal(found.rows, np.tile(expected, (3, 1)))


def test_no_limit_is_no_reason_to_search_again(rng, monkeypatch):
    import ragst_sd.retrieval.search as module

    bank, queries = rng.normal(size=(500, 6)), rng.normal(size=(5, 6))
    monkeypatch.setattr(module, "rank_all", lambda *args, **kwargs: pytest.fail("nothing is doubtful"))
    limited = module.search(queries, bank, 10, backend="exact", within=np.full(5, np.inf))
    np.testing.assert_array_equal(limited.rows, module.search(queries, bank, 10, backend="exact").rows)


def test_the_last_rows_of_a_block_are_looked_at(rng):
    """All of the second block lies far away, but for its last rows."""
    bank, queries = rng.normal(size=(200, 5)), rng.normal(size=(4, 5))
    bank[128:] += 1000
    bank[-4:] = queries
    found = search(queries, bank, 3, backend="exact", block=(4, 128))
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(196, 200))
