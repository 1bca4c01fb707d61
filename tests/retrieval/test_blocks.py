"""Sums and products over rows, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.retrieval.blocks import known_sum, product_in_blocks


@pytest.mark.parametrize("n", [0, 5, 256, 600])
def test_a_product_of_a_row_does_not_depend_on_the_rows_beside_it(rng, n):
    rows, matrix = rng.normal(size=(n, 7)), rng.normal(size=(7, 30))
    product = product_in_blocks(rows, matrix)
    np.testing.assert_allclose(product, rows @ matrix, atol=1e-12)
    np.testing.assert_array_equal(product_in_blocks(rows[3:], matrix), product[3:])


@pytest.mark.parametrize("axis", [0, 1])
def test_sums_leave_out_what_is_not_known(rng, axis):
    values = rng.normal(size=(20, 30)).astype(np.float32)
    np.testing.assert_array_equal(known_sum(values, axis), np.nansum(values, axis=axis, dtype=np.float64))
    values[3] = np.nan
    values[:, 7] = np.nan
    values[11, 2] = np.nan
    np.testing.assert_allclose(known_sum(values, axis), np.nansum(values, axis=axis, dtype=np.float64), rtol=1e-12)
