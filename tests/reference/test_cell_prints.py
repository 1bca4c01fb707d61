"""Cells recognised by their values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.responses import cell_prints, recognised

GENES = [f"G{i}" for i in range(60)]


def counts(n, rng, depth=4.0):
    return np.random.default_rng(rng).poisson(depth * np.random.default_rng(9).gamma(2.0, size=60), size=(n, 60))


def logs(values, scale=1e4):
    return sp.csr_matrix(np.log1p(scale * values / values.sum(axis=1, keepdims=True)).astype(np.float32))


def test_copies_are_known_and_others_are_not():
    mine, others = counts(30, 0), counts(30, 1)
    known = cell_prints(logs(mine), GENES)
    assert known["values"].shape == (30, 32)
    mixed = np.concatenate([others[:20], mine[5:9]])
    found = recognised(logs(mixed), GENES, known)
    assert not found[:20].any() and found[20:].all()


@pytest.mark.parametrize("scale", [1e4, 733.0, 1e6])
def test_another_depth_and_other_genes_change_nothing(scale):
    mine = counts(20, 0)
    known = cell_prints(logs(mine), GENES)
    order = np.random.default_rng(2).permutation(60)[:50]
    assert recognised(logs(mine[:, order], scale), np.array(GENES)[order], known).all()


def test_what_a_difference_of_single_precision_leaves_is_no_count():
    values = logs(counts(20, 0, depth=0.5))
    shift = np.random.default_rng(3).normal(size=values.shape).astype(np.float32)
    again = (values.toarray() + shift) - shift
    assert recognised(values, GENES, cell_prints(sp.csr_matrix(again), GENES)).mean() > 0.9


def test_little_is_no_evidence():
    values = sp.csr_matrix(np.eye(5, 60, dtype=np.float32))
    assert not recognised(values, GENES, cell_prints(values, GENES)).any()
    known = cell_prints(logs(counts(5, 0)), GENES)
    assert not recognised(logs(counts(5, 0))[:, :3], GENES[:3], known).any()
    assert not recognised(logs(counts(5, 0)), [f"other{i}" for i in range(60)], known).any()
