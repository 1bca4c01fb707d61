"""How well a gene of one section can be predicted at all, given how deeply it was measured."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ragst_sd.reference.normalize import TARGET_SUM, log_normalize


def noise_ceiling(
    counts: sp.csr_matrix, factor_columns: np.ndarray, *, n_splits: int = 5, rng: int | np.random.Generator = 0
) -> np.ndarray:
    r"""Largest Pearson correlation with the measured values of one section that the noise of counting allows, per gene.

    Every count c is split into binomial halves, :math:`c' \sim B(c, 1/2)` and :math:`c'' = c - c'`. Where counts are
    Poisson given the rate of their spot, the halves are independent given that rate: two measurements of half the
    depth. Both are brought to log1p of counts per 10,000 with size factors of their own, and r is the Pearson
    correlation between them, averaged over `n_splits` splits. A measurement of full depth then has the reliability

    .. math:: R = 2 r / (1 + r)

    (Spearman and Brown), the share of its variance that is not noise, and the best prediction, which knows the rate of
    every spot, reaches a correlation of :math:`\sqrt{R}` with it. What differs between spots of the same tissue
    beyond counting (overdispersion, depth) counts as predictable, so that this is an upper bound. For a gene of which
    next to nothing was counted it is a rough one: r is then a small number estimated from one section.

    Parameters
    ----------
    counts
        Counts of (spots, genes) of one section.
    factor_columns
        The genes that size factors rest on: positions or a mask.
    n_splits
        Number of random splits.
    rng
        Seed or generator of the splits.

    Returns
    -------
    One number per gene: NaN where its values do not vary, 0 where the halves do not agree.

    References
    ----------
    Spearman C (1910), Correlation calculated from faulty data, British Journal of Psychology 3, 271.
    Brown W (1910), Some experimental results in the correlation of mental abilities, British Journal of Psychology 3,
    296. Neufeld A et al. (2024), Inference after latent variable estimation for single-cell RNA sequencing data,
    Biostatistics 25, 270, doi:10.1093/biostatistics/kxac047.
    """
    generator = np.random.default_rng(rng)
    basis = np.zeros(counts.shape[1])
    basis[factor_columns] = 1.0

    def factors(some: sp.csr_matrix) -> np.ndarray:
        return np.asarray(some @ basis).ravel() / TARGET_SUM

    counts = counts[factors(counts) > 0]
    n_genes = counts.shape[1]
    if counts.shape[0] < 2:
        return np.full(n_genes, np.nan)
    whole = np.rint(counts.data).astype(np.int64)
    total = np.zeros(n_genes)
    for _ in range(n_splits):
        first, second = counts.astype(np.float64), counts.astype(np.float64)
        first.data = generator.binomial(whole, 0.5).astype(np.float64)
        second.data = whole - first.data
        # A shallow spot may have all of its counts in one half.
        both = (factors(first) > 0) & (factors(second) > 0)
        first, second = (log_normalize(half[both], factors(half[both])) for half in (first, second))
        total += _correlation(first, second)
    r = total / n_splits
    values = log_normalize(counts, factors(counts))
    ceiling = np.sqrt(np.where(r > 0, 2 * r / (1 + np.maximum(r, 0)), 0.0))
    return np.where(_moments(values)[1] > 0, ceiling, np.nan)


def _correlation(a: sp.csr_matrix, b: sp.csr_matrix) -> np.ndarray:
    """Pearson correlation of the columns of two sparse matrices; 0 where one of them does not vary."""
    if not a.shape[0]:
        return np.zeros(a.shape[1])
    a, b = a.astype(np.float64), b.astype(np.float64)
    (mean_a, spread_a), (mean_b, spread_b) = _moments(a), _moments(b)
    product = np.asarray(a.multiply(b).sum(axis=0)).ravel() / a.shape[0] - mean_a * mean_b
    scale = np.sqrt(spread_a * spread_b)
    return np.divide(product, scale, out=np.zeros(len(scale)), where=scale > 0)


def _moments(values: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the columns of a sparse matrix; a variance within rounding is 0."""
    values = values.astype(np.float64)
    mean = np.asarray(values.sum(axis=0)).ravel() / values.shape[0]
    square = np.asarray(values.power(2).sum(axis=0)).ravel() / values.shape[0]
    variance = square - mean**2
    return mean, np.where(variance > 1e-9 * square, variance, 0.0)
