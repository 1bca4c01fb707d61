"""The noise ceiling on counts of known rate."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import binom

from ragst_sd.reference.noise_ceiling import noise_ceiling
from ragst_sd.reference.normalize import as_csr, log_normalize, size_factors


def columns_of(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


@pytest.mark.parametrize(("depth", "dispersion"), [(2000, None), (10_000, 2.0)], ids=["poisson", "negative binomial"])
def test_ceiling_is_what_the_true_rate_reaches(rng, depth, dispersion):
    n_spots, n_genes = 400, 200
    rates = rng.lognormal(0, 1.2, n_genes) * np.exp(rng.normal(size=(n_spots, 3)) @ rng.normal(size=(3, n_genes)) / 2)
    if dispersion is not None:
        rates *= rng.gamma(dispersion, 1 / dispersion, size=rates.shape)
    rates *= rng.lognormal(np.log(depth), 0.3, (n_spots, 1)) / rates.sum(axis=1, keepdims=True)
    counts = rng.poisson(rates)
    factors = counts.sum(axis=1) / 1e4
    measured = log_normalize(sp.csr_matrix(counts, dtype=np.float32), factors).toarray()
    # The best prediction: the value expected of each rate at the spot's depth.
    expected = np.mean([np.log1p(rng.poisson(rates) / factors[:, None]) for _ in range(100)], axis=0)
    reached = columns_of(expected, measured)
    ceiling = noise_ceiling(sp.csr_matrix(counts, dtype=np.float32), np.arange(n_genes))
    assert ceiling.mean() == pytest.approx(reached.mean(), abs=0.03)
    assert np.corrcoef(ceiling, reached)[0, 1] > 0.9


def test_halves_equal_a_loop_in_numpy():
    counts = np.random.default_rng(3).poisson(4, size=(30, 12)) + np.arange(30)[:, None] // 3
    got = noise_ceiling(sp.csr_matrix(counts, dtype=np.float32), np.arange(8), n_splits=1, rng=5)
    matrix = sp.csr_matrix(counts)
    first = matrix.copy()
    first.data = np.random.default_rng(5).binomial(matrix.data, 0.5)
    halves = [
        half / half[:, :8].sum(axis=1, keepdims=True) * 1e4 for half in (first.toarray(), (matrix - first).toarray())
    ]
    r = columns_of(*(np.log1p(half) for half in halves))
    np.testing.assert_allclose(got, np.sqrt(np.where(r > 0, 2 * r / (1 + r), 0)), rtol=1e-4)


def test_genes_without_signal_or_counts(rng):
    counts = rng.poisson(3.0, size=(300, 40))
    counts[:, 0] = 0
    counts[:, 1] = 0
    counts[4, 1] = 1
    ceiling = noise_ceiling(sp.csr_matrix(counts, dtype=np.float32), np.ones(40, dtype=bool))
    assert np.isnan(ceiling[0])
    assert ceiling[1] == 0
    assert (ceiling[2:] >= 0).all()
    assert np.median(ceiling[2:]) < 0.3
    assert (ceiling[2:] == 0).any()


def test_spots_without_counts_are_left_out(rng):
    counts = sp.csr_matrix(rng.poisson(rng.gamma(2, 2, size=(60, 20))), dtype=np.float32)
    empty = sp.vstack([counts, sp.csr_matrix((5, 20), dtype=np.float32)]).tocsr()
    np.testing.assert_array_equal(noise_ceiling(empty, np.arange(20)), noise_ceiling(counts, np.arange(20)))
    assert np.isnan(noise_ceiling(empty[-5:], np.arange(20))).all()
    assert np.isnan(noise_ceiling(counts[:1], np.arange(20))).all()


def test_splits_follow_the_seed_and_leave_the_counts_alone(rng):
    counts = sp.csr_matrix(rng.poisson(2.0, size=(50, 20)), dtype=np.float32)
    before = counts.toarray()
    a, b, c = (noise_ceiling(counts, np.arange(20), rng=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    np.testing.assert_array_equal(counts.toarray(), before)


def test_more_depth_raises_it(rng):
    counts = rng.poisson(rng.gamma(2, 4, size=(200, 50)))
    thinned = binom.rvs(counts, 0.2, random_state=0)
    deep, shallow = (noise_ceiling(sp.csr_matrix(c, dtype=np.float32), np.arange(50)) for c in (counts, thinned))
    assert deep.mean() > shallow.mean() + 0.1


def test_real_sections(data_dir):
    """Variable genes of the mouse olfactory bulb at about 3,000 counts per spot leave room up to about .7."""
    section = ad.read_h5ad(data_dir / "histology" / "mob2k" / "MOB1.h5ad")
    counts, names = as_csr(section.X), list(section.var_names)
    values = log_normalize(counts, size_factors(counts, names, names)).toarray()
    top = np.argsort(-values.var(axis=0))[:250]
    assert 0.6 < noise_ceiling(counts, np.arange(len(names)))[top].mean() < 0.75
