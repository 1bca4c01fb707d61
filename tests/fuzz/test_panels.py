"""Random panels, masks and donors: evidence is the masked average, weights add up, and nobody is predicted from himself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import ragst_sd as rg
from ragst_sd._reference import reference_hash
from ragst_sd.retrieval.evidence import weighted_average

from .examples import examples

pytestmark = pytest.mark.slow


@st.composite
def cited(draw):
    """Rows and weights that some queries cite, in a bank of several panels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    n, m, g, k, p = (draw(st.integers(1, top)) for top in (8, 30, 12, 9, 4))
    k = min(k, m)
    panels, measured = rng.integers(0, p, m), rng.random((p, g)) < draw(st.sampled_from([1.0, 0.7, 0.2, 0.0]))
    values = rng.normal(size=(m, g)) * 10.0 ** draw(st.integers(-6, 6)) * measured[panels]
    values *= rng.random((m, g)) < draw(st.sampled_from([1.0, 0.2]))
    rows = np.stack([rng.permutation(m)[:k] for _ in range(n)])
    rows[rng.random((n, k)) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = -1
    weights = rng.random((n, k)) ** draw(st.sampled_from([1, 20])) * (rows >= 0)
    total = weights.sum(axis=1, keepdims=True)
    return rows, np.divide(weights, total, out=np.zeros_like(weights), where=total > 0), values, panels, measured


@examples(1500)
@given(case=cited(), sparse=st.booleans())
def test_evidence_is_the_masked_average(case, sparse):
    rows, weights, values, panels, measured = case
    bank = sp.csr_matrix(values.astype(np.float32)) if sparse else values.astype(np.float32)
    found = weighted_average(rows, weights, bank, panels=panels, measured=measured)
    stored = values.astype(np.float32).astype(np.float64)
    for i in range(len(rows)):
        for j in range(values.shape[1]):
            used = [
                (w, stored[r, j]) for r, w in zip(rows[i], weights[i], strict=True) if r >= 0 and measured[panels[r], j]
            ]
            total = sum(w for w, _ in used)
            if total == 0:
                assert np.isnan(found[i, j])
                continue
            if total < 1e-30:  # what float32 makes of it is not worth a promise
                continue
            own = np.array([y for _, y in used])
            expected = sum(w * y for w, y in used) / total
            # Relative to the largest value that is averaged: cancellation cannot be better than float32.
            assert abs(found[i, j] - expected) <= 1e-5 * max(np.abs(own).max(), 1e-30)
            # A convex combination lies between its parts.
            assert own.min() - 1e-5 * abs(own).max() <= found[i, j] <= own.max() + 1e-5 * abs(own).max()


@st.composite
def tissues(draw):
    """Donors, panels and eligibility of the rows and spots of two small sections."""
    return {
        "rng": draw(st.integers(0, 2**31)),
        "n_donors": draw(st.integers(2, 4)),
        "n_panels": draw(st.integers(1, 3)),
        "share": draw(st.sampled_from([1.0, 0.8])),
        "k": draw(st.integers(1, 8)),
        "as_numbers": draw(st.booleans()),
        "where": draw(st.booleans()),
    }


@pytest.fixture(scope="module")
def bank(_sections):
    reference = rg.tl.build_reference(
        {"donor1": _sections["donor1"], "donor2": _sections["donor2"]}, use_rep="X_colour"
    )
    return reference[::2, :60].copy(), _sections["donor3"]


def with_panels(bank, case, rng):
    """The bank with other donors and panels; what a panel did not measure is gone."""
    reference = bank.copy()
    donors = rng.integers(0, case["n_donors"], reference.n_obs)
    donors[: case["n_donors"]] = np.arange(case["n_donors"])
    reference.obs["donor"] = donors if case["as_numbers"] else [f"d{one}" for one in donors]
    names = [f"p{i}" for i in range(case["n_panels"])]
    measured = rng.random((reference.n_vars, len(names))) < case["share"]
    # The unit rests on what all panels share.
    measured[:20] = True
    panel = rng.integers(0, len(names), reference.n_obs)
    reference.obs["panel"] = np.array(names)[panel]
    reference.varm["measured"] = measured
    for layer in (None, "counts"):
        values = (reference.X if layer is None else reference.layers[layer]).toarray() * measured.T[panel]
        if layer is None:
            reference.X = sp.csr_matrix(values)
        else:
            reference.layers[layer] = sp.csr_matrix(values)
    header = reference.uns["ragst"] = dict(reference.uns["ragst"])
    header["panels"] = np.array(names)
    header["content_hash"] = reference_hash(reference)
    return reference, donors, measured[:, panel].T


@examples(100)
@given(case=tissues())
def test_predictions_of_random_donors_and_panels(bank, case):
    from spatialdata import deepcopy

    rng = np.random.default_rng(case["rng"])
    reference, donors, measured = with_panels(bank[0], case, rng)
    query = deepcopy(bank[1])
    own = rng.integers(0, case["n_donors"] + 1, query.tables["table"].n_obs)
    # The query spells its donors as another program would: numbers as text, text with a blank behind it.
    query.tables["table"].obs["donor"] = [str(one) if case["as_numbers"] else f"d{one}" for one in own]
    allowed = rng.random(reference.n_obs) < 0.7 if case["where"] else np.ones(reference.n_obs, dtype=bool)
    eligible = np.array([(allowed & (donors != one)).sum() for one in own])
    if (eligible < case["k"]).any():
        allowed[:] = True
        eligible = np.array([(donors != one).sum() for one in own])
        case["k"] = int(min(case["k"], eligible.min()))
        if case["k"] == 0:
            return
    logging.disable(logging.WARNING)
    try:
        rg.tl.fit(reference, method="knn", n_neighbors=case["k"], options={"center_sections": False}, progress=False)
        table = rg.tl.predict(query, reference, inplace=False, where=allowed if case["where"] else None)
    finally:
        logging.disable(logging.NOTSET)
    place = {name: i for i, name in enumerate(reference.obs_names)}
    lines = [place[name] for name in table.uns["retrieval"]["cited"]["reference"]]
    rows, weights = np.asarray(table.obsm["retrieval_rows"]), np.asarray(table.obsm["retrieval_weights"], dtype=float)
    values = reference.X.toarray()
    spots = [query.tables["table"].obs_names.get_loc(name) for name in table.obs_names]
    for i, spot in enumerate(spots):
        here = np.array([lines[row] if lines else row for row in rows[i][rows[i] >= 0]])
        weight = weights[i][rows[i] >= 0]
        assert abs(weight.sum() - 1) < 1e-5 and (weight >= 0).all()
        assert len(set(here)) == len(here) <= case["k"]
        assert allowed[here].all()
        assert (donors[here] != own[spot]).all()
        votes = measured[here] * weight[:, None]
        total = votes.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = np.where(total > 0, (votes * values[here]).sum(axis=0) / total, np.nan)
        found = table[:, reference.var_names].layers["evidence"][i]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(table.X), np.isnan(table.layers["evidence"]))
