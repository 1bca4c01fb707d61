"""Predicted tables whose values are stored otherwise than they were written."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd._annotation import plain_table


@pytest.fixture
def sparse(predicted):
    """The same prediction, made sparse to save space."""
    table = predicted.tables["predicted"].copy()
    table.X = sp.csr_matrix(table.X)
    for name in table.layers:
        if name is not None:
            table.layers[name] = sp.csc_matrix(table.layers[name])
    return table


def test_a_table_of_arrays_is_left_alone(predicted):
    assert plain_table(predicted.tables["predicted"]) is predicted.tables["predicted"]


def test_the_same_values_and_an_unchanged_object(predicted, sparse):
    table = plain_table(sparse)
    np.testing.assert_array_equal(table.X, predicted.tables["predicted"].X)
    np.testing.assert_array_equal(table.layers["evidence"], predicted.tables["predicted"].layers["evidence"])
    assert sp.issparse(sparse.X) and sp.issparse(sparse.layers["evidence"])


CALLS = {
    "evaluate": lambda sdata, reference: rg.tl.evaluate(sdata),
    "risk_coverage": lambda sdata, reference: rg.get.risk_coverage(sdata),
    "neighbors": lambda sdata, reference: rg.get.neighbors(sdata),
    "influence": lambda sdata, reference: rg.get.influence(sdata, reference, group_key="donor"),
    "report": lambda sdata, reference: rg.tl.report(sdata, reference, pictures=False)[0].read_text(encoding="utf-8"),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_same_answers(predicted, sparse, fitted, call, tmp_path, monkeypatch):
    # Where a report lands whose place is left out.
    monkeypatch.chdir(tmp_path)
    expected = CALLS[call](predicted, fitted)
    predicted.tables["predicted"] = sparse
    found = CALLS[call](predicted, fitted)
    if isinstance(found, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    else:
        assert found == expected and len(found) > 1000


def test_pictures(predicted, sparse, fitted):
    predicted.tables["predicted"] = sparse
    rg.pl.prediction(predicted, genes="EPCAM")
    rg.pl.reliability(predicted)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_a_table_on_disk(predicted, sparse, as_sparse, tmp_path):
    table = sparse if as_sparse else predicted.tables["predicted"]
    table.write_h5ad(tmp_path / "predicted.h5ad")
    backed = ad.read_h5ad(tmp_path / "predicted.h5ad", backed="r")
    truth = predicted.tables["table"]
    expected = rg.tl.evaluate(predicted.tables["predicted"], truth=truth)
    pd.testing.assert_frame_equal(rg.tl.evaluate(backed, truth=truth), expected)
    assert backed.isbacked


def test_genes_of_a_sparse_table_are_filtered_in_place(sparse):
    sparse.var["cv_pearson"] = np.linspace(0, 1, sparse.n_vars)
    rg.pp.filter_predicted(sparse, min_cv_pearson=0.5)
    assert 0 < sparse.n_vars < 200 and sparse.uns["retrieval"]["filter"]["n_genes"] == 260
