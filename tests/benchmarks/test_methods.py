"""`benchmarks/methods`: methods that are no part of the package work as registered ones, and their old fits say what to do."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.methods import METHODS

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

import methods  # noqa: E402

QUICK = {"ridge_residual": {}, "bleep": {"max_steps": 6, "n_train_genes": 60}}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The methods, for the time of a test."""
    for name in methods.METHODS:
        monkeypatch.setitem(METHODS, name, methods.METHODS[name])
    methods.register()


def fit(reference, name):
    rg.tl.fit(reference, method=name, n_neighbors=8, options=QUICK[name], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_explained_and_the_same_from_a_store_and_in_another_order(query, reference, name, tmp_path):
    shuffled = reference[np.random.default_rng(0).permutation(reference.n_obs)].copy()
    fit(reference, name)
    fit(shuffled, name)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    back, lazy = (rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=lazy) for lazy in (False, True))
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    for other in (back, lazy):
        np.testing.assert_array_equal(rg.tl.predict(query, other, inplace=False).X, table.X)
    np.testing.assert_allclose(rg.tl.predict(query, shuffled, inplace=False).X, table.X, atol=1e-6)
    spot, gene = table.obs_names[3], table.var_names[5]
    parts = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    assert parts["contribution"].sum() == pytest.approx(table[spot, gene].X.item(), abs=1e-5)
    genes = list(table.var_names[[20, 15, 2]])
    np.testing.assert_allclose(
        rg.tl.predict(query, reference, genes=genes, inplace=False).X, table[:, genes].X, atol=1e-6
    )


def test_ridge_residual_is_ridge_less_its_value_at_neighbours(query, reference):
    """f(x) - sum_j w_j f without the fold of j, at x_j."""
    fit(reference, "ridge_residual")
    rg.tl.predict(query, reference)
    table, parameters = query.tables["predicted"], reference.uns["ragst"]["fit"]["parameters"]
    header = query.tables["table"].uns["ragst"]["embeddings"]["X_colour"]
    key = (np.asarray(query.tables["table"].obsm["X_colour"], float) - header["section_mean"]) / header["section_std"]
    key = (key - parameters["projection_mean"]) @ parameters["projection"]
    expected = key @ parameters["coefficients"] + parameters["intercept"]
    names = table.uns["retrieval"]["cited"]["reference"].to_numpy()
    for i, (rows, weights) in enumerate(
        zip(table.obsm["retrieval_rows"], table.obsm["retrieval_weights"], strict=True)
    ):
        for row, weight in zip(rows, weights, strict=True):
            at = reference.obs_names.get_loc(names[row])
            fold, own = parameters["folds"][at], reference.obsm["retrieval_key"][at]
            expected[i] -= weight * (own @ parameters["fold_coefficients"][fold] + parameters["fold_intercept"][fold])
    np.testing.assert_allclose(table.X - table.layers["evidence"], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_fit_of_a_method_that_is_not_registered(query, reference, name, tmp_path, monkeypatch):
    fit(reference, name)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    monkeypatch.delitem(METHODS, name)
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    assert back.uns["ragst"]["fit"]["method"] == name
    with pytest.raises(ValueError, match=rf"method '{name}'.*benchmarks/methods/{name}\.py.*register_method\('{name}'"):
        rg.tl.predict(query, back)
    rg.tl.register_method(name, methods.METHODS[name])
    rg.tl.predict(query, back)
    assert np.isfinite(query.tables["predicted"].X).all()


def test_nothing_varies(reference):
    reference.X = type(reference.X)(np.ones(reference.shape, dtype=np.float32))
    with pytest.raises(ValueError, match=r"'bleep' has nothing to learn.*varies within a section"):
        fit(reference, "bleep")


def test_an_interrupted_bleep_still_predicts(query, reference, monkeypatch, caplog):
    calls, original = [], methods.bleep.contrastive_loss

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(methods.bleep, "contrastive_loss", interrupted)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        fit(reference, "bleep")
    assert "was interrupted after 2 of 6 steps" in caplog.text
    rg.tl.predict(query, reference)
    assert np.isfinite(query.tables["predicted"].X).all()
