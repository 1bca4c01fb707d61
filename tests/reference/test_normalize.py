"""The unit of expression."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.normalize import as_csr, check_counts, check_log_normalized, log_normalize, size_factors


@pytest.fixture
def counts(rng):
    return rng.poisson(1.5, (20, 30)).astype(np.float32)


def test_log_normalize_is_the_formula(counts):
    names = [f"g{i}" for i in range(30)]
    shared = names[:25]
    counts[4] = 0
    matrix = as_csr(counts)
    got = log_normalize(matrix, size_factors(matrix, names, shared)).toarray()
    depth = counts[:, :25].sum(axis=1, keepdims=True)
    expected = np.log1p(np.divide(counts, depth, out=np.zeros_like(counts), where=depth > 0) * 1e4)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (got[4] == 0).all()


def test_counts_pass_and_the_input_is_left_alone(counts):
    matrix = sp.csc_matrix(counts)
    before = matrix.toarray()
    check_counts(as_csr(matrix), "X")
    log_normalize(as_csr(matrix), np.ones(20))
    np.testing.assert_array_equal(matrix.toarray(), before)


def test_estimated_counts_with_fractions_are_counts():
    check_counts(as_csr(np.array([[120.5, 3.2, 0.4]])), "X")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: -x, "negative"),
        (lambda x: x + np.inf, "NaN or infinite"),
        (np.log1p, "log-transformed"),
        (lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4), "log-transformed"),
    ],
)
def test_not_counts(counts, change, message):
    with pytest.raises(ValueError, match=message):
        check_counts(as_csr(change(counts)), "X")


def test_log_normalized_is_recognised(counts):
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    check_log_normalized(as_csr(logged), "X")
    check_log_normalized(as_csr(logged[:, :10]), "X")
    for wrong in (counts * 100, np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e6), -logged):
        with pytest.raises(ValueError, match="X"):
            check_log_normalized(as_csr(wrong), "X")
