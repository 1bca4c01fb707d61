"""`rg.tl.evaluate` against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import ragst_sd as rg
from ragst_sd.tl._metrics import pearson, spearman, variance_kept


def test_metrics_equal_scipy(predicted):
    scores = rg.tl.evaluate(predicted)
    table, truth = predicted.tables["predicted"], predicted.tables["table"]
    counts = truth.X.toarray().astype(float)
    normalized = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    gene = "EPCAM"
    p, t = table[:, gene].X.ravel().astype(float), normalized[:, truth.var_names.get_loc(gene)]
    expected = {
        "pearson": pearsonr(p, t).statistic,
        "spearman": spearmanr(p, t).statistic,
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "variance_kept": p.var() / t.var(),
    }
    got = scores[scores["gene"] == gene].set_index("metric")["value"]
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4)
    spots = scores[scores["gene"] == ""].set_index("metric")["value"]
    assert spots["effective_n"] == pytest.approx(table.obs["effective_n"].mean())
    assert spots["n_spots"] == table.n_obs


def test_flat_prediction_scores_zero_and_flat_truth_nan():
    truth = np.random.default_rng(0).normal(size=(30, 3))
    truth[:, 2] = 1
    flat = np.full((30, 3), 7.0)
    np.testing.assert_array_equal(pearson(flat, truth), [0, 0, np.nan])
    np.testing.assert_array_equal(spearman(flat, truth), [0, 0, np.nan])
    np.testing.assert_array_equal(variance_kept(flat, truth), [0, 0, np.nan])


def test_samples_are_scored_apart(predicted):
    names = np.where(np.arange(predicted.tables["table"].n_obs) % 2 == 0, "even", "odd")
    predicted.tables["table"].obs["sample"] = names
    scores = rg.tl.evaluate(predicted, metrics=["pearson"])
    assert set(scores["sample"]) == {"even", "odd"}


def test_bare_tables_and_subsets(predicted):
    whole = rg.tl.evaluate(predicted, genes=["EPCAM"], metrics="pearson")
    table, truth = predicted.tables["predicted"], predicted.tables["table"]
    bare = rg.tl.evaluate(table, truth=truth[::-1].copy(), genes=["EPCAM"], metrics="pearson")
    np.testing.assert_allclose(bare["value"], whole["value"])
    some = rg.tl.evaluate(table[:20].copy(), truth=truth, genes=["EPCAM"])
    assert some.set_index("metric").loc["n_spots", "value"] == 20
    with pytest.raises(ValueError, match="pass it with `truth="):
        rg.tl.evaluate(table)


def test_spots_without_a_prediction_are_left_out(predicted):
    table = predicted.tables["predicted"].copy()
    table.X[:3] = np.nan
    scores = rg.tl.evaluate(table, truth=predicted.tables["table"])
    assert scores[scores["metric"] == "n_spots"]["value"].item() == table.n_obs - 3
    assert scores[scores["gene"] == "EPCAM"]["value"].notna().all()


def test_tables_of_different_elements_are_not_compared(predicted, sections):
    """Equal names of spots on tiles and on spots are different places."""
    table = predicted.tables["predicted"].copy()
    truth = predicted.tables["table"].copy()
    truth.uns["spatialdata_attrs"] = {**truth.uns["spatialdata_attrs"], "region": "tiles"}
    with pytest.raises(ValueError, match="annotate different elements: 'spots' against 'tiles'"):
        rg.tl.evaluate(table, truth=truth)


def test_spots_are_matched_by_instance_not_by_name(predicted):
    expected = rg.tl.evaluate(predicted, genes=["EPCAM"], metrics="pearson")["value"].iloc[0]
    truth = predicted.tables["table"].copy()
    truth.obs_names = list(truth.obs_names[::-1])
    got = rg.tl.evaluate(predicted.tables["predicted"], truth=truth, genes=["EPCAM"], metrics="pearson")
    assert got["value"].iloc[0] == pytest.approx(expected)


def test_truth_without_counts_is_no_truth(predicted):
    truth = predicted.tables["table"].copy()
    counts = truth.X.toarray()
    counts[:4] = 0
    truth.X = counts
    scores = rg.tl.evaluate(predicted.tables["predicted"], truth=truth)
    assert scores[scores["metric"] == "n_spots"]["value"].item() == truth.n_obs - 4


def test_a_gene_that_some_spots_lack_is_scored_over_the_others(predicted):
    table = predicted.tables["predicted"].copy()
    gene = table.var_names.get_loc("EPCAM")
    table.X[:10, gene] = np.nan
    some = rg.tl.evaluate(table, truth=predicted.tables["table"], metrics="pearson", genes=["EPCAM", "CD3E"])
    fewer = rg.tl.evaluate(table[10:].copy(), truth=predicted.tables["table"], metrics="pearson", genes=["EPCAM"])
    assert some.set_index("gene").loc["EPCAM", "value"] == pytest.approx(fewer["value"].iloc[0])


def test_unknown_unit(predicted):
    with pytest.raises(ValueError, match="`unit` is 'count'"):
        rg.tl.evaluate(predicted, unit="count")
