from __future__ import annotations

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

from ..screens import QUICK, planted_screen


@pytest.fixture(scope="module")
def _bank():
    screen, embedding = planted_screen(n_cells=12, n_controls=20, n_genes=30)
    return rg.tl.build_perturbation_reference(
        screen, embedding=embedding, unit="log1p_cp10k", context_key="cell_type", batch_key="batch"
    )


@pytest.mark.parametrize("method", RESPONSE_METHODS)
def test_fit_follows_the_task_of_the_reference(bank, method):
    before = bank.X.copy()
    rg.tl.fit(bank, method=method, options=QUICK.get(method))
    fit = bank.uns["ragst"]["fit"]
    assert (fit["method"], fit["metric"], fit["inner_groups"]) == (method, "cosine", "perturbation")
    counts = {"rag": (16, 40), "pt_rag": (16, 16)}.get(method, (3, 32))
    assert (fit["n_neighbors"], fit["n_candidates"]) == counts
    np.testing.assert_array_equal(bank.X, before)
    np.testing.assert_array_equal(bank.obsm["retrieval_key"], bank.obsm["perturbation_embedding"])
    # What a fit learns is the same again: tests/test_methods_common.py.
    if not RESPONSE_METHODS[method].learns:
        again = bank.copy()
        rg.tl.fit(again, method=method)
        assert again.uns["ragst"]["fit"]["fit_hash"] == fit["fit_hash"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"method": "knn_supervised"},
            ValueError,
            "for a reference of perturbations available: 'rag', 'pt_rag', 'none', 'mean'",
        ),
        ({"n_neighbors": 41}, ValueError, "`n_neighbors` is 41, more than the 40 rows"),
        ({"n_neighbors": 8, "n_candidates": 6}, ValueError, "fewer than `n_neighbors`"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors` is 0"),
        ({"metric": "manhattan"}, ValueError, "`metric` is 'manhattan'"),
        ({"group_key": "donor"}, KeyError, "Key 'donor' not found"),
        ({"options": {"gate": "softmax"}}, ValueError, "has no option 'gate'"),
        ({"rng": -1}, ValueError, "`rng` is -1"),
    ],
)
def test_bad_input(bank, arguments, error, message):
    with pytest.raises(error, match=message):
        rg.tl.fit(bank, **({"method": "knn"} | arguments))
    assert "fit" not in bank.uns["ragst"]


@pytest.mark.parametrize("method", ["rag", "mean"])
def test_a_reference_of_one_perturbation_has_its_mean(method, caplog):
    screen, embedding = planted_screen()
    screen = screen[screen.obs["perturbation"].isin(["control", "P3"])].copy()
    reference = rg.tl.build_perturbation_reference(screen, embedding=embedding, unit="log1p_cp10k")
    rg.tl.fit(reference, method=method)
    table = rg.tl.perturb(screen[:3].copy(), reference, perturbations="P5", unit="log1p_cp10k")
    np.testing.assert_allclose(table.layers["response"][0], np.asarray(reference.X)[0], atol=1e-5)
    assert ("nothing can be held out to choose on" in caplog.text) == (method == "rag")


def test_the_log_says_responses(bank, caplog):
    with caplog.at_level("INFO"):
        rg.tl.fit(bank, method="mean")
    assert f"Fitted 'mean' on {bank.n_obs} responses: 3 neighbours of " in caplog.text
    assert "held out to choose" not in caplog.text
