"""The unit of expression."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.normalize import (
    as_csr,
    check_counts,
    check_log_normalized,
    find_unit,
    log_normalize,
    size_factors,
)


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


def test_zero_and_one_alone_are_said(rng, caplog):
    found = (rng.random((200, 200)) < 0.5).astype(np.float32)
    check_counts(as_csr(found), "X")
    assert "X holds 0 and 1 only" in caplog.text
    caplog.clear()
    found[3, 4] = 2
    check_counts(as_csr(found), "X")
    assert not caplog.text


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


def deep(rng, shape=(30, 60)):
    return rng.negative_binomial(1, 0.1, shape).astype(np.float32)


def cp10k(counts, target=1e4):
    return counts / counts.sum(axis=1, keepdims=True) * target


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x, rng: x, "counts"),
        (lambda x, rng: x * 0, "counts"),
        (lambda x, rng: x[:, :0], "counts"),
        (lambda x, rng: x + rng.random(x.shape), "estimated counts"),
        (lambda x, rng: np.where(rng.random(x.shape) < 0.2, x + 0.5, x), "estimated counts"),
        (lambda x, rng: cp10k(x), "scaled counts"),
        (lambda x, rng: cp10k(x)[:, :40], "scaled counts"),
        (lambda x, rng: cp10k(x, 1e6), "scaled counts"),
        (lambda x, rng: np.log1p(cp10k(x)), "log1p_cp10k"),
        (lambda x, rng: np.log1p(cp10k(x))[:, :40], "log1p_cp10k"),
        (lambda x, rng: np.log1p(cp10k(x, 1e6)), "logarithms"),
        (lambda x, rng: np.log1p(cp10k(x, 2_000)), "logarithms"),
        (lambda x, rng: np.log2(1 + cp10k(x)), "logarithms"),
        (lambda x, rng: np.log10(1 + cp10k(x)), "logarithms"),
        (lambda x, rng: np.log1p(np.log1p(cp10k(x))), "logarithms"),
        (lambda x, rng: np.log1p(x), "logarithms"),
        (lambda x, rng: np.log1p(cp10k(x + rng.random(x.shape))), "log1p_cp10k"),
        # Strongly expressed genes, denoised: undone twice, they are far above what a float tells from a whole number.
        (lambda x, rng: np.log1p(np.c_[np.full(30, 50.0), rng.uniform(100, 150, (30, 59))]), "log1p_cp10k"),
        (lambda x, rng: x - x.mean(axis=0), "negative"),
        (lambda x, rng: np.where(x > 40, np.nan, x), "not finite"),
        (lambda x, rng: np.vstack([x, np.log1p(cp10k(x))]), "mixed"),
        (lambda x, rng: np.vstack([x[:1], np.log1p(x[1:])]), "mixed"),
        (lambda x, rng: np.vstack([x[1:], np.log1p(cp10k(x[:1], 1e6))]), "mixed"),
    ],
)
def test_units(rng, change, kind):
    values = change(deep(rng), rng)
    unit = find_unit(as_csr(values))
    assert unit.kind == kind, unit
    checks = {"counts": check_counts, "estimated counts": check_counts, "log1p_cp10k": check_log_normalized}
    for check in (check_counts, check_log_normalized):
        if checks.get(kind) is check or (check is check_log_normalized and not np.nan_to_num(values).any()):
            check(as_csr(values), "X")
        else:
            with pytest.raises(ValueError, match=r"^X holds ") as error:
                check(as_csr(values), "X")
            assert unit.why in str(error.value)


def test_units_do_not_depend_on_order_or_storage(rng):
    values = np.vstack([deep(rng), np.log1p(deep(rng))])
    order = rng.permutation(len(values))
    assert {find_unit(as_csr(one)).kind for one in (values, values[order], sp.csc_matrix(values))} == {"mixed"}


def test_mixed_rows_are_named(rng):
    values = deep(rng)
    values[[4, 9]] = np.log1p(values[[4, 9]])
    with pytest.raises(ValueError, match=r"28 rows \(the first is row 0\).* and 2 rows \(the first is row 4\)"):
        check_counts(as_csr(values), "X")


def test_scale_of_logarithms_is_named(rng):
    with pytest.raises(ValueError, match="log1p of counts per 3,000: not log1p of counts per 10,000"):
        check_log_normalized(as_csr(np.log1p(cp10k(deep(rng), 3_000))), "X")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x: np.log1p(np.log1p(cp10k(x))), "log1p taken twice"),
        (np.log1p, "log1p of counts that were not divided by depth"),
        (lambda x: np.log10(1 + cp10k(x)), "logarithms to the base 10"),
        (lambda x: np.log2(1 + cp10k(x))[:, :30], "logarithms to the base 2"),
    ],
)
def test_other_logarithms_are_named_where_genes_were_left_out(rng, change, what):
    """Their rows add up to less than 10,000, as rows do of which genes were left out."""
    counts = deep(rng, (30, 300))
    with pytest.raises(ValueError, match=f"{what}: not log1p of counts per 10,000"):
        check_log_normalized(as_csr(change(counts)), "X")


def test_units_of_real_counts(data_dir):
    import anndata as ad

    for name in ("her2st/B4", "mob/rep01", "mob2k/MOB1", "colon/d0", "lung_xenium_toy/NCBI858"):
        counts = as_csr(ad.read_h5ad(data_dir / "histology" / f"{name}.h5ad").X)
        counts = counts[np.diff(counts.indptr) > 0]
        scaled = as_csr(counts.multiply(1e4 / counts.sum(axis=1)))
        assert find_unit(counts).kind == "counts"
        for genes in (slice(None), slice(None, None, 2)):
            assert find_unit(as_csr(scaled[:, genes])).kind == "scaled counts"
            assert find_unit(as_csr(scaled[:, genes].log1p())).kind == "log1p_cp10k"
            assert find_unit(as_csr(scaled[:, genes].log1p().log1p())).kind == "logarithms"
            assert find_unit(as_csr(counts[:, genes].log1p())).kind == "logarithms"
        assert find_unit(as_csr((scaled * 0.1).log1p())).kind == "logarithms"
        half = len(counts.indptr) // 2
        assert find_unit(as_csr(sp.vstack([counts[:half], scaled[half:].log1p()]))).kind == "mixed"
