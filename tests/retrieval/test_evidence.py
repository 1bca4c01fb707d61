"""Evidence against the masked average written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.cited_sums import cited_sums
from ragst_sd.retrieval.evidence import disagreement, effective_n, evidence_share, weighted_average


def brute_force(rows, weights, values, panels, measured):
    out = np.full((len(rows), values.shape[1]), np.nan)
    for i in range(len(rows)):
        for g in range(values.shape[1]):
            used = [
                (w, values[r, g]) for r, w in zip(rows[i], weights[i], strict=True) if r >= 0 and measured[panels[r], g]
            ]
            total = sum(w for w, _ in used)
            if total > 0:
                out[i, g] = sum(w * y for w, y in used) / total
    return out


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    panels = rng.integers(0, 3, 60)
    measured = rng.random((3, 25)) > 0.3
    measured[:, 0] = False
    values = rng.poisson(1.0, (60, 25)) * measured[panels] * rng.random((60, 25))
    rows = np.stack([rng.choice(60, 7, replace=False) for _ in range(30)])
    rows[3, 4:] = -1
    rows[5] = -1
    weights = rng.random((30, 7)) * (rows >= 0)
    total = weights.sum(axis=1, keepdims=True)
    return rows, np.divide(weights, total, out=np.zeros_like(weights), where=total > 0), values, panels, measured


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_masked_average(case, kind):
    rows, weights, values, panels, measured = case
    bank = sp.csr_matrix(values.astype(np.float32)) if kind == "csr" else values
    got = weighted_average(rows, weights, bank, panels=panels, measured=measured)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, brute_force(rows, weights, values, panels, measured), rtol=1e-5, atol=1e-6)
    assert np.isnan(got[:, 0]).all()
    assert np.isnan(got[5]).all()


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_everything_measured(case, kind):
    rows, weights, values, _, _ = case
    bank = sp.csr_matrix(values.astype(np.float32)) if kind == "csr" else values
    expected = np.einsum("nk,nkg->ng", weights, values[np.maximum(rows, 0)] * (rows >= 0)[..., None])
    expected[5] = np.nan
    np.testing.assert_allclose(weighted_average(rows, weights, bank), expected, rtol=1e-5, atol=1e-6)


def test_a_missing_gene_is_never_a_zero(case):
    rows, weights, values, panels, measured = case
    one = values.copy()
    one[measured[panels]] = 1.0
    got = weighted_average(rows, weights, one, panels=panels, measured=measured)
    np.testing.assert_allclose(got[np.isfinite(got)], 1.0, rtol=1e-5)


def test_effective_n():
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(effective_n(weights), [4, 1, np.nan])


def test_evidence_share():
    mean = np.array([1.0, 1.0])
    evidence = np.array([[2.0, 1.0], [1.0, 1.0], [1.0, 1.0], [np.nan, np.nan]])
    adjustment = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [np.nan, np.nan]])
    np.testing.assert_allclose(evidence_share(evidence, adjustment, mean), [0.5, np.nan, 0.0, np.nan])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_disagreement_is_the_weighted_spread_of_what_rows_bring(rng, sparse, shifted):
    m, g, n, k = 30, 7, 12, 5
    panels, sections = rng.integers(0, 2, m), rng.integers(0, 3, m)
    measured = np.ones((2, g), dtype=bool)
    measured[1, 3:] = False
    values = (rng.poisson(1, (m, g)) * measured[panels]).astype(np.float32)
    shifts = rng.normal(size=(3, g))
    rows = np.stack([rng.permutation(m)[:k] for _ in range(n)])
    weights = rng.random((n, k))
    rows[0, 3:], weights[0, 3:] = -1, 0
    rows[1] = np.flatnonzero(panels == 1)[:k]
    bank = Bank(None, sp.csr_matrix(values) if sparse else values, panels, measured, None, sections)
    found = disagreement(bank, rows, weights, shifts if shifted else None)
    for i in range(n):
        for j in range(g):
            own = rows[i][(rows[i] >= 0) & measured[panels[rows[i]], j]]
            if not len(own):
                assert np.isnan(found[i, j])
                continue
            weight = weights[i][np.isin(rows[i], own)]
            brought = values[own, j] - (shifts[sections[own], j] if shifted else 0)
            mean = np.average(brought, weights=weight)
            expected = np.sqrt(np.average((brought - mean) ** 2, weights=weight))
            assert found[i, j] == pytest.approx(expected, abs=2e-3)
    assert np.isnan(found).any()


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "bsr", "lil", "dok"])
def test_a_whole_matrix_of_any_format_gives_the_same(format):
    values = sp.random(50, 40, 0.2, format=format, dtype=np.float32, random_state=0)
    rows, weights = np.array([[3, 49, -1], [0, 7, 8]]), np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5]], dtype=np.float32)
    cited = values.toarray()[np.maximum(rows, 0)]
    sums = cited_sums(rows, weights, values)
    squares = cited_sums(rows, weights, values, (np.zeros(50, dtype=int), np.zeros((1, 40))))
    np.testing.assert_allclose(sums, np.einsum("nk,nkg->ng", weights, cited), atol=1e-6)
    np.testing.assert_allclose(squares, np.einsum("nk,nkg->ng", weights, cited**2), atol=1e-6)
