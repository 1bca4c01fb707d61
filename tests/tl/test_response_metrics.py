"""Evaluation where responses are given: metrics that need no cells, and what others say."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

import ragst_sd as rg
from ragst_sd.tl._response_metrics import CHOICES

from ..screens import given_responses

CONTEXT = {"context_key": "context"}


def ranked(adata):
    out = adata.copy()
    ranks = rankdata(adata.X, axis=1)
    out.X = (2 * (ranks - 1) / (adata.n_vars - 1) - 1).astype(np.float32)
    return out


def predict(adata, role, unit, methods, embedding=None):
    reference = rg.tl.build_perturbation_reference(adata[role == "train"], unit=unit, embedding=embedding, **CONTEXT)
    test, tables = adata[role == "test"], {}
    for method in methods:
        rg.tl.fit(reference, method=method)
        names = sorted(set(test.obs["perturbation"]))
        tables[method] = rg.tl.perturb(test.obs, reference, perturbations=names, **CONTEXT)
    return tables


@pytest.fixture(scope="module")
def here():
    adata, _ = given_responses(n=20)
    role = rg.tl.perturbation_folds(adata, split="here", **CONTEXT)["a fold1"]
    return (
        adata,
        role,
        predict(adata, role, "log_fold_change", ["none", "mean", "same_perturbation", "context_additive"]),
    )


def wide(scores):
    each = scores[scores["subset"] == "each"]
    return each.pivot_table(index="method", columns="metric", values="value")


def test_the_order_of_methods(here):
    adata, _, tables = here
    found = wide(rg.tl.evaluate_perturbation(tables, adata, **CONTEXT))
    assert set(found) == set(CHOICES)
    assert found.loc["mean", "centred_cosine"] == 0 and found.loc["mean", "rank_score"] == pytest.approx(0.525)
    assert found.loc["context_additive", "centred_cosine"] > found.loc["same_perturbation", "centred_cosine"] > 0.5
    assert found.loc["context_additive", "rank_score"] > 0.95 and found.loc["context_additive", "best_tenth"] >= 0.75
    assert found.loc["context_additive", "mse_delta"] < found.loc["mean", "mse_delta"] < found.loc["none", "mse_delta"]
    assert found.loc["none", "top_genes"] == pytest.approx(0.1)


def test_by_hand(here):
    adata, role, tables = here
    scores = rg.tl.evaluate_perturbation(tables["same_perturbation"], adata, **CONTEXT)
    name = adata.obs["perturbation"][role == "test"].iloc[0]
    of_a = adata[adata.obs["context"] == "a"]
    centre = of_a[(role == "train")[of_a.obs_names]].X.mean(axis=0)
    predicted, measured = adata[f"b|{name}"].X[0], of_a.X
    a, b = predicted - centre, measured - centre
    cosine = (b @ a) / np.linalg.norm(b, axis=1) / np.linalg.norm(a)
    own = int(np.flatnonzero(of_a.obs["perturbation"] == name)[0])
    each = scores[scores["perturbation"] == name].set_index("metric")["value"]
    assert each["centred_cosine"] == pytest.approx(cosine[own], abs=1e-5)
    assert each["rank_score"] == pytest.approx(1 - (cosine > cosine[own]).mean())
    assert each["best_tenth"] == float((cosine > cosine[own]).sum() < 2)
    top = [set(np.argsort(-values)[:6]) for values in (predicted, measured[own])]
    assert each["top_genes"] == pytest.approx(len(top[0] & top[1]) / 6)
    assert each["pearson_delta"] == pytest.approx(np.corrcoef(predicted, measured[own])[0, 1], abs=1e-5)


def test_the_task_is_told(here):
    adata, _, tables = here
    scores = rg.tl.evaluate_perturbation(tables, adata, **CONTEXT)
    assert set(scores["task"]) == {"unseen here"}
    adata, embedding = given_responses(n=20)
    role = rg.tl.perturbation_folds(adata, n_folds=5, **CONTEXT)["fold1"]
    tables = predict(adata, role, "log_fold_change", ["knn"], embedding)
    assert set(rg.tl.evaluate_perturbation(tables, adata, **CONTEXT)["task"]) == {"unseen perturbation"}


def test_truth_as_a_data_frame(here):
    adata, _, tables = here
    frame = adata.to_df().assign(**adata.obs[["perturbation", "context"]])
    one, other = (rg.tl.evaluate_perturbation(tables, truth, **CONTEXT) for truth in (adata, frame))
    pd.testing.assert_frame_equal(one, other)


def test_ranks_have_no_sizes():
    adata = ranked(given_responses(n=20)[0])
    role = rg.tl.perturbation_folds(adata, split="here", **CONTEXT)["a fold1"]
    tables = predict(adata, role, "rank", ["same_perturbation"])
    scores = rg.tl.evaluate_perturbation(tables, adata, **CONTEXT)
    assert not {"mae_delta", "mse_delta"} & set(scores["metric"])
    with pytest.raises(ValueError, match=r"`metrics` 'mse_delta' compare sizes of effects, which ranks do not have"):
        rg.tl.evaluate_perturbation(tables, adata, metrics=["mse_delta", "rank_score"], **CONTEXT)


@pytest.mark.parametrize("metric", ["mse", "energy", "overlap_at_N", "pearson_delta_centroid", "de_direction_match"])
def test_metrics_that_need_cells_say_so(here, metric):
    with pytest.raises(ValueError, match=rf"`metrics` '{metric}' need cells or controls.*'centred_cosine'"):
        rg.tl.evaluate_perturbation(here[2], here[0], metrics=[metric], **CONTEXT)


def test_bad_input(here):
    adata, _, tables = here
    with pytest.raises(ValueError, match=r"`metrics` has 'cosine'"):
        rg.tl.evaluate_perturbation(tables, adata, metrics=["cosine"], **CONTEXT)
    twice = ad.concat([adata, adata[:1]])
    twice.obs_names_make_unique()
    with pytest.raises(ValueError, match="more than one row for 'P0 in a'"):
        rg.tl.evaluate_perturbation(tables, twice, **CONTEXT)
    with pytest.raises(ValueError, match="looks like ranks"):
        rg.tl.evaluate_perturbation(tables, ranked(adata), **CONTEXT)


@pytest.mark.slow
class TestRealScreens:
    """Ranked responses at real scale. Figures are near those of closed forms on the same data."""

    def test_knock_downs_of_two_cell_lines(self, data_dir):
        adata = ad.read_h5ad(data_dir / "perturb/ranks/replogle2022_k562_rpe1_ranks.h5ad")
        embedding = rg.tl.embed_genes(data_dir / "perturb/embeddings/GO_Biological_Process_2021.gmt", min_terms=1)
        adata = adata[adata.obs["perturbation"].isin(embedding.index)].copy()
        metrics = ["centred_cosine", "rank_score", "best_tenth"]
        role = rg.tl.perturbation_folds(adata, n_folds=5, **CONTEXT)["fold1"]
        nowhere = predict(adata, role, "rank", ["mean", "knn", "random_rag"], embedding)
        found = wide(rg.tl.evaluate_perturbation(nowhere, adata, metrics=metrics, **CONTEXT))
        assert found.loc["mean", "centred_cosine"] == pytest.approx(0, abs=1e-6)
        assert 0.2 < found.loc["knn", "centred_cosine"] < 0.4 and 0.8 < found.loc["knn", "rank_score"] < 0.9
        assert abs(found.loc["random_rag", "centred_cosine"]) < 0.05
        role = rg.tl.perturbation_folds(adata, split="here", **CONTEXT)["K562 fold1"]
        elsewhere = predict(adata, role, "rank", ["same_perturbation", "context_additive"])
        found = wide(rg.tl.evaluate_perturbation(elsewhere, adata, metrics=metrics, **CONTEXT))
        assert 0.1 < found.loc["context_additive", "centred_cosine"] < 0.25
        assert found.loc["context_additive", "rank_score"] > 0.85 and found.loc["context_additive", "best_tenth"] > 0.65

    def test_drugs_in_four_cell_types_without_an_embedding(self, data_dir):
        adata = ad.read_h5ad(data_dir / "perturb/ranks/neurips2023_pbmc_ranks.h5ad")
        role = rg.tl.perturbation_folds(adata, split="here", **CONTEXT)["nk fold1"]
        tables = predict(adata, role, "rank", ["mean", "same_perturbation", "context_additive"])
        found = wide(rg.tl.evaluate_perturbation(tables, adata, metrics=["centred_cosine", "rank_score"], **CONTEXT))
        assert found.loc["context_additive", "centred_cosine"] > 0.15
        assert found.loc["context_additive", "rank_score"] > 0.8 > found.loc["mean", "rank_score"]
        assert set(tables["same_perturbation"].uns["retrieval"]["cited"]["context"]) == {"b", "myeloid", "t"}
