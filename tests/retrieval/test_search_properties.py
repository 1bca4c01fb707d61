"""Properties of search: exactly brute force, whatever the ties, the blocks, the order of the bank, the company and the precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragst_sd.retrieval.search import Eligibility, search, search_in_blocks

quick = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def problems(draw):
    """Points on a coarse grid, so that equal distances are everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    n, m, d = draw(st.integers(1, 9)), draw(st.integers(1, 200)), draw(st.integers(1, 5))
    step = draw(st.sampled_from([1.0, 0.25, 1e-3, 1e-30, 1e5]))
    offset = draw(st.sampled_from([0.0, 0.0, 64.0]))
    top = draw(st.integers(1, 4))
    queries, bank = (step * (offset + rng.integers(0, top + 1, (count, d))) for count in (n, m))
    n_groups = draw(st.integers(1, 4))
    usable = Eligibility(
        rng.integers(-1, n_groups, (n, 1)),
        rng.integers(0, n_groups, (m, 1)),
        rng.random(m) < draw(st.sampled_from([1.0, 0.6, 0.05])),
    )
    return queries, bank, draw(st.integers(1, 60)), usable, rng.permutation(m)


def brute_force(queries, bank, k, usable, tie_order):
    squared = ((queries[:, None, :] - bank[None, :, :]) ** 2).sum(axis=2)
    squared = np.where(usable.mask(slice(None), slice(None)), squared, np.inf)
    order = np.lexsort((np.broadcast_to(tie_order, squared.shape), squared), axis=1)[:, :k]
    distances = np.sqrt(np.take_along_axis(squared, order, axis=1))
    rows = np.where(np.isinf(distances), -1, order)
    spare = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(rows, spare, constant_values=-1), np.pad(
        np.where(rows >= 0, distances, np.nan), spare, constant_values=np.nan
    )


@quick
@given(problems(), st.sampled_from([(1, 64), (3, 64), (256, 128), (512, 4096)]))
def test_equals_brute_force_with_ties(problem, block):
    queries, bank, k, usable, tie_order = problem
    found = search(queries, bank, k, eligibility=usable, tie_order=tie_order, block=block)
    rows, distances = brute_force(queries, bank, k, usable, tie_order)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


@pytest.mark.slow
@quick
@given(problems(), st.randoms(use_true_random=False), st.integers(1, 70))
def test_order_of_the_bank_company_and_blocks_change_nothing(problem, random, block_rows):
    queries, bank, k, usable, tie_order = problem
    found = search(queries, bank, k, eligibility=usable, tie_order=tie_order)
    shuffle = np.array(random.sample(range(len(bank)), len(bank)))
    moved = usable.of_rows(shuffle)
    again = search(queries, bank[shuffle], k, eligibility=moved, tie_order=tie_order[shuffle], block=(2, 64))
    np.testing.assert_array_equal(np.where(again.rows >= 0, shuffle[again.rows], -1), found.rows)
    np.testing.assert_array_equal(again.distances, found.distances)
    parts = search_in_blocks(queries, bank, k, eligibility=usable, tie_order=tie_order, block_rows=block_rows)
    np.testing.assert_array_equal(parts.rows, found.rows)
    np.testing.assert_array_equal(parts.distances, found.distances)
    alone = search(queries[:1], bank, k, eligibility=usable.of_queries(slice(0, 1)), tie_order=tie_order)
    np.testing.assert_array_equal(alone.rows, found.rows[:1])


@quick
@given(st.integers(0, 2**31), st.sampled_from([1.0, 30.0, 1e-2]))
def test_float16_and_float32_agree_within_their_rounding(seed, scale):
    rng = np.random.default_rng(seed)
    bank = (scale * rng.normal(size=(300, 8))).astype(np.float32)
    queries = scale * rng.normal(size=(5, 8))
    full, half = search(queries, bank, 20), search(queries, bank.astype(np.float16), 20)
    # A stored value is off by 2^-11 of itself at most (below 6e-5 by 3e-8), and distances by no more than the row moved.
    moved = np.sqrt(((2.0**-11 * np.abs(bank) + 3e-8) ** 2).sum(axis=1))
    assert (np.abs(full.distances - half.distances) <= moved.max()).all()
    for one in range(5):
        gone = np.setdiff1d(full.rows[one], half.rows[one])
        apart = np.linalg.norm(bank[gone] - queries[one], axis=1)
        assert (apart >= full.distances[one, -1] - 2 * moved.max()).all()
    stored = bank.astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(half.rows, search(queries, stored, 20).rows)
    np.testing.assert_array_equal(half.distances, search(queries, stored, 20).distances)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_threads_and_tensors_change_nothing(dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(9000, 33)).astype(dtype), rng.normal(size=(300, 33))
    groups = Eligibility(
        np.repeat([[0], [1]], [200, 100], axis=0), rng.integers(0, 3, (9000, 1)), rng.random(9000) > 0.1
    )
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(search(queries, bank, 50, eligibility=groups))
    finally:
        torch.set_num_threads(before)
    results.append(search(queries, torch.from_numpy(bank), 50, eligibility=groups))
    for other in results[1:]:
        np.testing.assert_array_equal(other.rows, results[0].rows)
        np.testing.assert_array_equal(other.distances, results[0].distances)
    rows, _ = brute_force(queries[:3], bank.astype(np.float64), 50, groups.of_queries(slice(0, 3)), np.arange(9000))
    np.testing.assert_array_equal(results[0].rows[:3], rows)


def test_a_bank_whose_every_block_is_nearer_than_the_last():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(3000, 4)) * np.linspace(50, 1, 3000)[:, None]
    queries = rng.normal(size=(6, 4))
    expected, _ = brute_force(queries, bank, 40, Eligibility.everything(6, 3000), np.arange(3000))
    np.testing.assert_array_equal(search(queries, bank, 40, block=(4, 128)).rows, expected)


def test_one_row_far_away_does_not_spoil_the_proof_of_all_others(caplog):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(2000, 6)), rng.normal(size=(20, 6))
    bank[1500] = 1e6
    with caplog.at_level("DEBUG", logger="ragst_sd.retrieval.search"):
        found = search(queries, bank, 10, block=(32, 256))
    assert "searched again" not in caplog.text
    np.testing.assert_array_equal(
        found.rows, brute_force(queries, bank, 10, Eligibility.everything(20, 2000), np.arange(2000))[0]
    )


def test_lower_precision_that_the_session_allows_is_not_used():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(3000, 64)), rng.normal(size=(20, 64))
    expected = search(queries, bank, 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = search(queries, bank, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_have_no_distance_are_refused(value):
    points = np.random.default_rng(0).normal(size=(500, 3))
    spoilt = points.copy()
    spoilt[130, 1] = value
    with pytest.raises(ValueError, match=r"Rows 128 to 255 of the bank hold NaN"):
        search(points[:2], spoilt, 3, block=(4, 128))
    with pytest.raises(ValueError, match=r"1 of 500 queries hold NaN or infinite values \(the first is 130\)"):
        search(spoilt, points, 3)


@pytest.mark.slow
def test_a_graph_leaves_queries_with_few_eligible_rows_to_exact_search():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(600, 4)), rng.normal(size=(30, 4))
    # Queries of donor 0 may use 12 rows, those of donor 1 almost all.
    donors = np.where(np.arange(600) < 588, 0, 1)[:, None]
    usable = Eligibility(np.repeat([[0], [1]], 15, axis=0), donors, np.ones(600, dtype=bool))
    found = search(queries, bank, 20, eligibility=usable, backend="pynndescent")
    exact = search(queries, bank, 20, eligibility=usable, backend="exact")
    np.testing.assert_array_equal(found.rows[:15], exact.rows[:15])
    assert (found.rows[:15] >= 0).sum(axis=1).tolist() == [12] * 15
    assert (found.rows[15:] >= 0).all()
    own = np.mean([np.isin(a, b).mean() for a, b in zip(exact.rows[15:], found.rows[15:], strict=True)])
    assert found.recall == pytest.approx(own) and found.recall > 0.95
    shuffle = rng.permutation(600)
    moved = search(
        queries, bank[shuffle], 20, eligibility=usable.of_rows(shuffle), tie_order=shuffle, backend="pynndescent"
    )
    np.testing.assert_array_equal(np.where(moved.rows >= 0, shuffle[moved.rows], -1), found.rows)
