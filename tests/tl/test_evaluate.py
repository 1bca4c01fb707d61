"""`rg.tl.evaluate` against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import ragst_sd as rg
from ragst_sd._metrics import pearson, spearman, variance_kept
from ragst_sd.reference.noise_ceiling import noise_ceiling
from ragst_sd.reference.normalize import as_csr
from ragst_sd.tl._evaluate import CHOICES
from ragst_sd.tl._section_metrics import SECTION_METRICS, section_metrics


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


def normalized(truth):
    counts = truth.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_metrics_of_a_section_have_no_gene(predicted):
    table, truth = predicted.tables["predicted"], predicted.tables["table"]
    truth.obs["domain"] = np.where(table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0]), "a", "b")
    names = [name for name in SECTION_METRICS if name not in ("ssim", "gene_set_pearson")]
    scores = rg.tl.evaluate(predicted, metrics=names, label_key="domain", n_genes=None)
    assert (scores["gene"] == "").all()
    got = scores.set_index("metric")["value"]
    order = truth.var_names.get_indexer(table.var_names)
    expected = section_metrics(
        table.X, normalized(truth)[:, order], names, positions=table.obsm["spatial"], labels=truth.obs["domain"]
    ).set_index("metric")["value"]
    for name in names:
        assert got[name] == pytest.approx(expected[name], abs=1e-3)


def test_metrics_of_maps_and_gene_sets(predicted):
    """Maps per gene compared; gene sets by name, over all genes, whichever are compared one by one."""
    table = predicted.tables["predicted"]
    sets = {"first": list(table.var_names[:12]), "last": list(table.var_names[-12:]), "none": ["nothing"]}
    some = list(table.var_names[3:6])
    scores = rg.tl.evaluate(predicted, metrics=["mae", "ssim", "gene_set_pearson"], gmt=sets, genes=some)
    assert list(scores.loc[scores["metric"] == "ssim", "gene"]) == some
    assert set(scores.loc[scores["metric"] == "gene_set_pearson", "gene"]) == set(sets)
    every = rg.tl.evaluate(predicted, metrics=["gene_set_pearson"], gmt=sets, n_genes=20)
    of_sets = every[every["metric"] == "gene_set_pearson"].set_index("gene")["value"]
    assert of_sets[["first", "last"]].notna().all() and np.isnan(of_sets["none"])
    assert (
        rg.get.summary(rg.tl.evaluate(predicted, metrics=["mae", "gene_set_pearson"], gmt=sets)).iloc[0]["n_genes"]
        == 250
    )
    with pytest.raises(ValueError, match="needs gene sets"):
        rg.tl.evaluate(predicted, metrics="gene_set_pearson")


def test_sections_are_taken_apart_in_metrics_of_a_section(predicted):
    table, truth = predicted.tables["predicted"], predicted.tables["table"]
    truth.obs["sample"] = np.where(np.arange(truth.n_obs) < truth.n_obs // 2, "first", "second")
    whole = rg.tl.evaluate(predicted, metrics=["moran_agreement", "noise_ceiling"])
    half = rg.tl.evaluate(table[truth.n_obs // 2 :].copy(), truth=truth, metrics=["moran_agreement", "noise_ceiling"])
    second = whole[whole["sample"] == "second"].reset_index(drop=True)
    assert second.equals(half)


def test_share_of_the_noise_ceiling(predicted):
    truth = predicted.tables["table"]
    names = ["pearson", "noise_ceiling", "share_of_ceiling"]
    scores = rg.tl.evaluate(predicted, metrics=names)
    wide = scores[scores["gene"] != ""].pivot_table(index="gene", columns="metric", values="value", dropna=False)
    expected = noise_ceiling(as_csr(truth.X), np.arange(truth.n_vars))
    np.testing.assert_allclose(wide["noise_ceiling"], expected[truth.var_names.get_indexer(wide.index)])
    high = wide["noise_ceiling"] >= 0.1
    assert high.any()
    np.testing.assert_allclose(
        wide["share_of_ceiling"][high], wide["pearson"][high] / wide["noise_ceiling"][high], rtol=1e-6
    )
    assert wide["share_of_ceiling"][~high].isna().all()
    some = rg.tl.evaluate(predicted, metrics="share_of_ceiling", genes=["CD3E", "EPCAM"]).set_index("gene")["value"]
    np.testing.assert_allclose(some[["CD3E", "EPCAM"]], wide["share_of_ceiling"][["CD3E", "EPCAM"]])


def test_defaults_stay_per_gene(predicted):
    scores = rg.tl.evaluate(predicted, genes=["EPCAM"])
    assert list(scores["metric"]) == [
        *("pearson", "spearman", "rmse", "variance_kept"),
        *("effective_n", "evidence_share", "out_of_reference", "n_spots"),
    ]


def test_every_metric_is_explained():
    page = Path(__file__).parents[2] / "docs" / "howto" / "report_honestly.md"
    for name in CHOICES:
        assert f'`"{name}"`' in rg.tl.evaluate.__doc__, name
        assert not page.exists() or f"`{name}`" in page.read_text(encoding="utf-8"), name


def test_metrics_that_lack_their_input(predicted):
    table, truth = predicted.tables["predicted"].copy(), predicted.tables["table"].copy()
    with pytest.raises(KeyError, match=r"'domain' not found .* Name the column of labels with `label_key=`"):
        rg.tl.evaluate(table, truth=truth, metrics="domain_ari", label_key="domain")
    del table.obsm["spatial"]
    with pytest.raises(KeyError, match="Moran's I need positions"):
        rg.tl.evaluate(table, truth=truth, metrics="svg_overlap")
    truth.X = normalized(truth)
    with pytest.raises(ValueError, match="estimated by splitting counts"):
        rg.tl.evaluate(table, truth=truth, unit="log1p_cp10k", metrics="noise_ceiling")
    with pytest.raises(ValueError, match=r"`metrics` has 'moran_agrement'; .* Did you mean 'moran_agreement'"):
        rg.tl.evaluate(table, truth=truth, unit="log1p_cp10k", metrics="moran_agrement")


def test_compared_are_the_genes_that_vary_most_over_the_reference(predicted, fitted):
    scores = rg.tl.evaluate(predicted, n_genes=40)
    variance = fitted.X.toarray().astype(float).var(axis=0)
    most = np.sort(np.argsort(-variance, kind="stable")[:40])
    assert list(scores[scores["metric"] == "pearson"]["gene"]) == list(fitted.var_names[most])
    everything = rg.tl.evaluate(predicted, n_genes=None, metrics=["pearson"])
    of_genes = everything[everything["gene"] != ""]["value"]
    assert len(of_genes) == predicted.tables["table"].n_vars
    beside = scores.set_index("metric").loc["pearson_all_genes", "value"]
    assert beside == pytest.approx(of_genes.mean())
    assert "pearson_all_genes" not in set(everything["metric"])


def test_a_table_that_does_not_know_which_genes_vary_says_what_to_do(predicted):
    del predicted.tables["predicted"].var["reference_variance"]
    with pytest.raises(ValueError, match="n_genes=None"):
        rg.tl.evaluate(predicted, n_genes=40)
    assert len(rg.tl.evaluate(predicted, n_genes=None))
    with pytest.raises(ValueError, match="`n_genes` is 0"):
        rg.tl.evaluate(predicted, n_genes=0)
