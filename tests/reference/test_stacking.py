"""Stacking rows piece by piece."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ragst_sd.tl._build_reference import stack_matrices, stack_rows


def test_rows_are_those_of_concatenate(rng):
    parts = [rng.normal(size=(n, 3, 2)).astype(np.float32) for n in (4, 1, 6)]
    np.testing.assert_array_equal(stack_rows(iter(parts)), np.concatenate(parts))


def test_matrices_are_those_of_vstack_and_parts_are_left_alone(rng):
    parts = [sp.random(n, 30, 0.2, format="csr", dtype=np.float32, random_state=n) for n in (5, 1, 9)]
    kept = [part.copy() for part in parts]
    given = list(parts)
    stacked = stack_matrices(given)
    assert not given
    np.testing.assert_array_equal(stacked.toarray(), sp.vstack(kept).toarray())
    stacked.data[:] = 0
    for part, before in zip(parts, kept, strict=True):
        np.testing.assert_array_equal(part.toarray(), before.toarray())
