"""Search in blocks against search in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.retrieval.search import Eligibility, search, search_in_blocks


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_same_rows_and_distances_as_in_one_piece(rng, metric, block_rows):
    bank, queries = rng.normal(size=(300, 5)), rng.normal(size=(20, 5))
    # Equal rows in different blocks: their ranks decide.
    bank[200:220] = bank[:20]
    queries[:5] = bank[:5]
    eligibility = Eligibility(rng.integers(0, 3, (20, 1)), rng.integers(0, 3, (300, 1)), rng.random(300) > 0.3)
    how = {"eligibility": eligibility, "tie_order": rng.permutation(300), "metric": metric}
    expected = search(queries, bank, 12, backend="exact", **how)
    found = search_in_blocks(queries, bank, 12, block_rows=block_rows, **how)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.distances, expected.distances)


def test_fewer_eligible_rows_than_asked_for(rng):
    bank, queries = rng.normal(size=(40, 3)), rng.normal(size=(4, 3))
    allowed = np.zeros(40, dtype=bool)
    allowed[[3, 38]] = True
    eligibility = Eligibility(np.zeros((4, 0), dtype=int), np.zeros((40, 0), dtype=int), allowed)
    found = search_in_blocks(queries, bank, 5, eligibility=eligibility, tie_order=np.arange(40), block_rows=10)
    assert set(found.rows[:, :2].ravel()) == {3, 38}
    assert (found.rows[:, 2:] == -1).all()
    assert np.isnan(found.distances[:, 2:]).all()
