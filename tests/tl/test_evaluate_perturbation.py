from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.tl._perturbation_metrics import CHOICES, DEFAULT_METRICS

from ..screens import QUICK, permuted, planted_screen

LOGS = {"unit": "log1p_cp10k", "context_key": "cell_type"}
BATCH = {**LOGS, "batch_key": "batch"}
KEYS = {"context_key": "cell_type", "batch_key": "batch"}
ALWAYS = [name for name, method in RESPONSE_METHODS.items() if method.lacks is None]
CONTEXTUAL = ["same_perturbation", "context_additive"]


@pytest.fixture(scope="module")
def screen():
    return planted_screen()


def predictions(adata, embedding, methods, role):
    """Predicted tables of the held-out perturbations of one fold, by method."""
    reference = rg.tl.build_perturbation_reference(
        adata[role.isin(["train", "control_train"])].copy(), embedding=embedding, **BATCH
    )
    out = {}
    for method in methods:
        rg.tl.fit(reference, method=method, options=QUICK.get(method))
        out[method] = []
        for context in adata.obs["cell_type"].unique():
            held = adata.obs["perturbation"][(role == "test") & (adata.obs["cell_type"] == context)]
            source = adata[(role == "control_train") & (adata.obs["cell_type"] == context)].copy()
            if len(held):
                out[method].append(rg.tl.perturb(source, reference, perturbations=sorted(set(held)), **LOGS))
    return out


def all_scores(adata, embedding, methods, metric="pearson_delta", **split):
    """Scores of every held-out perturbation by method."""
    folds = rg.tl.perturbation_folds(adata, **KEYS, **split)
    out = {method: [] for method in methods}
    for name in folds:
        tables = predictions(adata, embedding, methods, folds[name])
        for same in zip(*tables.values(), strict=True):
            given = dict(zip(tables, same, strict=True))
            scores = rg.tl.evaluate_perturbation(given, adata, metrics=[metric], **BATCH)
            each = scores[(scores["subset"] == "each") & (scores["metric"] == metric)]
            for method in methods:
                out[method].extend(each[each["method"] == method]["value"])
    return {method: np.array(values) for method, values in out.items()}


@pytest.fixture(scope="module")
def fold(screen):
    adata, embedding = screen
    role = rg.tl.perturbation_folds(adata, n_folds=5, **KEYS)["fold1"]
    return adata, role, predictions(adata, embedding, ["knn", "mean", "none"], role)


def test_scores_of_one_fold(fold):
    adata, role, tables = fold
    scores = rg.tl.evaluate_perturbation(tables["knn"][0], adata, **BATCH)
    columns = ["context", "perturbation", "subset", "metric", "value", "n_cells", "reliability", "task", "ceiling"]
    assert list(scores.columns) == columns
    assert set(scores["metric"]) == {*DEFAULT_METRICS, "ceiling"}
    each = scores[scores["subset"] == "each"]
    held = set(adata.obs["perturbation"][role == "test"])
    assert set(each["perturbation"]) == held and set(each["context"]) == {"a"}
    assert (each["n_cells"] == 30).all()
    for subset, part in (("all", each), ("reliable", each[each["reliability"] >= 0.5])):
        means = scores[scores["subset"] == subset].set_index("metric")["value"]
        np.testing.assert_allclose(means["mse"], part[part["metric"] == "mse"]["value"].mean())
    again = rg.tl.evaluate_perturbation(tables["knn"][0], adata, **BATCH)
    assert again.equals(scores)


def test_several_methods_against_one_truth(fold):
    adata, _, tables = fold
    given = {method: tables[method][0] for method in ("knn", "mean")}
    both = rg.tl.evaluate_perturbation(given, adata, metrics=["pearson_delta", "energy"], max_cells=20, **BATCH)
    assert list(both["method"].unique()) == ["knn", "mean"]
    for method, table in given.items():
        alone = rg.tl.evaluate_perturbation(table, adata, metrics=["pearson_delta", "energy"], max_cells=20, **BATCH)
        same = both[both["method"] == method].drop(columns="method").reset_index(drop=True)
        assert same.equals(alone)
    other = tables["mean"][0][:, :10].copy()
    with pytest.raises(ValueError, match="'knn' and 'mean' differ in genes"):
        rg.tl.evaluate_perturbation({**given, "mean": other}, adata, **BATCH)
    with pytest.raises(ValueError, match="`data` is empty"):
        rg.tl.evaluate_perturbation({}, adata, **BATCH)


def test_values_agree_with_brute_force(fold):
    adata, role, tables = fold
    table = tables["knn"][0]
    name = table.obs["perturbation"].iloc[0]
    scores = rg.tl.evaluate_perturbation(table, adata, **BATCH)
    found = scores[scores["perturbation"] == name].set_index("metric")["value"]
    dense, here = adata.to_df(), adata.obs["cell_type"] == "a"
    own = here & (adata.obs["perturbation"] == name)
    truth = np.mean(
        [
            dense[own & (adata.obs["batch"] == b)].mean()
            - dense[here & (role == "control_test") & (adata.obs["batch"] == b)].mean()
            for b in "12"
        ],
        axis=0,
    )
    predicted = table[table.obs["perturbation"] == name]
    response = predicted.layers["response"].mean(axis=0)
    assert found["pearson_delta"] == pytest.approx(np.corrcoef(response, truth)[0, 1], abs=1e-4)
    assert found["mae_delta"] == pytest.approx(np.abs(response - truth).mean(), abs=1e-4)
    assert found["mse"] == pytest.approx(((predicted.X.mean(axis=0) - dense[own].mean()) ** 2).mean(), abs=1e-4)


def test_metrics_of_cells_and_genes(fold):
    adata, _, tables = fold
    chosen = ["overlap_at_N", "precision_at_50", "de_direction_match", "energy", "wasserstein1", "wasserstein2", "mmd"]
    values = {}
    for method in ("knn", "none"):
        scores = rg.tl.evaluate_perturbation(tables[method][1], adata, metrics=chosen, max_cells=30, **BATCH)
        assert list(scores["metric"].unique()) == [*chosen, "ceiling"]
        values[method] = scores[scores["subset"] == "all"].set_index("metric")["value"]
        assert values[method][chosen].between(0, np.inf).all()
    for name in ("energy", "wasserstein1", "wasserstein2", "mmd"):
        assert values["knn"][name] < values["none"][name]
    assert values["knn"]["de_direction_match"] > 0.8 and values["none"]["overlap_at_N"] == 0


@pytest.mark.slow
def test_accuracy_and_its_ceiling_on_a_planted_screen(screen):
    adata, embedding = screen
    scores = all_scores(adata, embedding, ["none", "mean", "knn", "ridge", "random_rag"], n_folds=5)
    means = {method: values.mean() for method, values in scores.items()}
    assert means["none"] == 0
    assert means["knn"] > 0.6 and means["ridge"] > 0.6
    assert means["knn"] > means["mean"] + 0.3 and means["knn"] > means["random_rag"] + 0.3


@pytest.mark.slow
def test_held_out_contexts_on_a_planted_screen(screen):
    adata, embedding = screen
    scores = all_scores(adata, embedding, [*CONTEXTUAL, "mean"], split="context")
    assert scores["same_perturbation"].mean() > scores["mean"].mean() + 0.2
    assert scores["context_additive"].mean() > scores["mean"].mean() + 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "split"), [(ALWAYS, {"n_folds": 2}), (CONTEXTUAL, {"split": "context"})])
def test_without_any_effect_no_method_scores(methods, split):
    """Labels permuted over all cells, controls included; prediction and truth have disjoint halves of the controls.

    Over several permutations: in a single one the controls drawn are a little nearer to the others or farther than they
    should be, which all perturbations share.
    """
    adata, embedding = planted_screen(n_programmes=3, per_programme=4, n_cells=16, n_controls=60, n_genes=100)
    scores = [all_scores(permuted(adata, rng), embedding, methods, **split) for rng in range(4)]
    for method in methods:
        assert abs(np.mean([values[method].mean() for values in scores])) < 0.1, method


def test_with_shared_controls_the_mean_would_score_without_any_effect(screen):
    """Why shared controls are refused."""
    adata = permuted(screen[0])
    dense, here = adata.to_df(), (adata.obs["cell_type"] == "a").to_numpy()
    names = adata.obs["perturbation"].to_numpy()
    generator = np.random.default_rng(0)
    few = generator.choice(np.flatnonzero(here & (names == "control")), 20, replace=False)
    means = np.array([dense[here & (names == f"P{i}")].mean() for i in range(20)])
    delta = means - dense.iloc[few].mean().to_numpy()
    shared = [np.corrcoef(np.delete(delta, i, axis=0).mean(axis=0), delta[i])[0, 1] for i in range(20)]
    assert np.mean(shared) > 0.5


def test_ceiling_is_reported_and_low_without_effect(screen):
    adata = permuted(screen[0])
    role = rg.tl.perturbation_folds(adata, n_folds=4, **KEYS)["fold1"]
    table = predictions(adata, screen[1], ["mean"], role)["mean"][0]
    scores = rg.tl.evaluate_perturbation(table, adata, metrics=["pearson_delta"], **BATCH)
    assert scores[(scores["metric"] == "ceiling") & (scores["subset"] == "all")]["value"].item() < 0.5
    assert "reliable" not in set(scores["subset"])


def test_controls_that_were_used_are_refused(screen):
    adata, embedding = screen
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **BATCH)
    rg.tl.fit(reference, method="mean")
    source = adata[(adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "a")].copy()
    table = rg.tl.perturb(source, reference, perturbations=["P3"], **LOGS)
    with pytest.raises(ValueError, match=r"All 240 controls of `adata` were used.*perturbation_folds"):
        rg.tl.evaluate_perturbation(table, adata, **BATCH)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ["pearson"]}, ValueError, "`metrics` has 'pearson'"),
        ({"context_key": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ({"context_key": None, "batch_key": None}, ValueError, "Contexts of both must be named alike"),
        ({"unit": "counts"}, ValueError, "looks log-transformed already"),
        ({"min_cells": 1000}, ValueError, "measured none. No perturbation has `min_cells` cells"),
        ({"max_cells": 0}, ValueError, "`max_cells` is 0"),
    ],
)
def test_bad_input(fold, arguments, error, message):
    adata, _, tables = fold
    with pytest.raises(error, match=message):
        rg.tl.evaluate_perturbation(tables["mean"][0], adata, **{**BATCH, **arguments})


def test_bad_tables(fold, predicted):
    adata, _, tables = fold
    with pytest.raises(ValueError, match="no complete provenance"):
        rg.tl.evaluate_perturbation(adata, adata, **BATCH)
    with pytest.raises(ValueError, match=r"compare it with `rg\.tl\.evaluate`"):
        rg.tl.evaluate_perturbation(predicted.tables["predicted"], adata, **BATCH)
    strangers = adata.copy()
    strangers.var_names = [f"OTHER{i}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match="share 0 genes"):
        rg.tl.evaluate_perturbation(tables["mean"][0], strangers, **BATCH)
    assert set(DEFAULT_METRICS) < set(CHOICES)


@pytest.mark.slow
def test_a_held_out_gene_of_a_real_screen(data_dir):
    """Interferon gamma receptor 1, by its partners in the pathway."""
    adata = ad.read_h5ad(data_dir / "perturb/expression/papalexi2021_thp1_sceptre.h5ad")
    embedding = rg.tl.embed_genes(data_dir / "perturb/embeddings/GO_Biological_Process_2021.gmt")
    role = rg.tl.perturbation_folds(adata, batch_key="bio_rep")["IFNGR1"]
    seen = adata[role.isin(["train", "control_train"])].copy()
    reference = rg.tl.build_perturbation_reference(seen, embedding=embedding, batch_key="bio_rep", target_sum=None)
    source, tables = adata[role == "control_train"].copy(), {}
    for method in ("none", "mean", "knn", "ridge"):
        rg.tl.fit(reference, method=method)
        tables[method] = rg.tl.perturb(source, reference, perturbations=["IFNGR1"])
    assert "IFNGR2" in set(tables["knn"].uns["retrieval"]["cited"]["perturbation"])
    scores = rg.tl.evaluate_perturbation(tables, adata, metrics=["pearson_delta", "energy"], batch_key="bio_rep")
    each = scores[scores["subset"] == "each"].pivot(index="method", columns="metric", values="value")
    found = each["pearson_delta"]
    assert 0.7 < found["mean"] < found["knn"] < each["ceiling"]["knn"] and found["ridge"] > 0.88
    assert each["energy"]["knn"] < each["energy"]["mean"] < each["energy"]["none"]
