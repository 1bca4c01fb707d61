"""A method of one's own: registered, fitted, predicted with, explained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import CitingOptions


@dataclass(frozen=True)
class NearestOptions(CitingOptions):
    flavour: str = "plain"


def select_nearest(parameters, bank, query):
    distances = query.candidates.distances
    weights = np.zeros(distances.shape)
    weights[np.isfinite(distances[:, 0]), 0] = 1.0
    return cite(query, weights)


NEAREST = Method(NearestOptions, fit=lambda bank, run: {}, select=select_nearest)


@pytest.fixture
def nearest(monkeypatch):
    # What is set is taken back after the test, and with it what the test registers.
    monkeypatch.setitem(METHODS, "nearest", NEAREST)
    del METHODS["nearest"]
    rg.tl.register_method("nearest", NEAREST)


@pytest.mark.usefixtures("nearest")
def test_fit_predict_explain(query, reference, tmp_path):
    # An option that only the method itself knows is left to it.
    rg.tl.fit(reference, method="nearest", n_neighbors=5, options={"flavour": "sour"})
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    np.testing.assert_allclose(table.obs["effective_n"], 1)
    spot, gene = table.obs_names[0], table.var_names[0]
    parts = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    assert parts["contribution"].sum() == pytest.approx(table[spot, gene].X.item(), abs=1e-5)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    lazy = rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=True)
    np.testing.assert_array_equal(rg.tl.predict(query, lazy, inplace=False).X, table.X)


@pytest.mark.usefixtures("nearest")
def test_cross_validated_beside_the_others(reference):
    scores = rg.tl.cross_validate(reference, methods=["nearest", "knn"], n_genes=10, cited=(), progress=False)
    assert set(scores["method"]) == {"nearest", "knn", ""}


@pytest.mark.usefixtures("nearest")
def test_a_fit_opens_where_its_method_is_unknown(query, reference, tmp_path):
    rg.tl.fit(reference, method="nearest", n_neighbors=5)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    del METHODS["nearest"]
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    with pytest.raises(ValueError, match=r"method 'nearest', which is not registered here.*register_method\('nearest'"):
        rg.tl.predict(query, back)
    assert "predicted" not in query.tables


@pytest.mark.usefixtures("nearest")
def test_names_that_are_taken():
    rg.tl.register_method("nearest", NEAREST)
    for name in ("nearest", "rag"):
        with pytest.raises(ValueError, match=rf"`name` is '{name}', which is taken.*'knn'"):
            rg.tl.register_method(name, replace(NEAREST, candidates="random"))
    assert METHODS["nearest"] is NEAREST
    with pytest.raises(ValueError, match="which is empty"):
        rg.tl.register_method("", NEAREST)
    with pytest.raises(TypeError, match="`method` is a function"):
        rg.tl.register_method("other", select_nearest)
