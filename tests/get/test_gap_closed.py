from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import planted_screen

KEYS = {"context_key": "cell_type", "batch_key": "batch"}


def frame(ceilings, metric="pearson_delta", **methods):
    """Scores of perturbations P0, P1, ... by method."""
    parts = [
        pd.DataFrame({"perturbation": [f"P{i}" for i in range(len(ceilings))], "value": values, "ceiling": ceilings})
        for values in methods.values()
    ]
    scores = pd.concat(parts, keys=methods, names=["method", None]).reset_index("method")
    return scores.assign(context="a", task="unseen here", subset="each", metric=metric)


def test_by_hand():
    scores = frame(
        [0.8, 0.8, 0.52, np.nan], mean=[0.2, 0.2, 0.5, 0.2], knn=[0.6, 0.3, 0.4, 0.3], rag=[0.5, 0.8, 0.5, 0.3]
    )
    found = rg.get.gap_closed(scores).set_index(["method", "perturbation"])
    assert found.loc["mean", "gap_closed"].iloc[:2].tolist() == [0, 0]
    np.testing.assert_allclose(found.loc["knn", "gap_closed"], [4 / 6, 1 / 6, np.nan, np.nan])
    np.testing.assert_allclose(found.loc["rag", "gap_closed"], [0.5, 1, np.nan, np.nan])
    np.testing.assert_allclose(found.loc["rag", "dynamic_range"], [0.75, 0.75, 0.04, np.nan])
    assert list(found.loc["rag", "stratum"]) == ["baselines solve", "resists", "the mean solves", "no ceiling"]
    assert list(found.loc["mean", "stratum"]) == list(found.loc["rag", "stratum"])
    assert set(rg.get.gap_closed(scores, baselines="rag").query("perturbation == 'P1'")["stratum"]) == {
        "baselines solve"
    }


def test_errors_fall():
    found = rg.get.gap_closed(frame([0.1], "mse_delta", mean=[0.5], knn=[0.2]), metric="mse_delta").set_index("method")
    assert found.loc["knn", "gap_closed"] == pytest.approx(0.75) and found.loc["knn", "dynamic_range"] == pytest.approx(
        0.8
    )


def test_bad_input():
    scores = frame([0.8], mean=[0.2], knn=[0.6])
    with pytest.raises(KeyError, match="'method' not found in `scores`"):
        rg.get.gap_closed(scores.drop(columns="method"))
    with pytest.raises(ValueError, match="`metric`: `scores` has no 'mse'; available: 'pearson_delta'"):
        rg.get.gap_closed(scores, metric="mse")
    with pytest.raises(ValueError, match="`baseline`: `scores` has no method 'none'"):
        rg.get.gap_closed(scores, baseline="none")


def test_the_ceiling_of_a_planted_screen():
    """Half of the cells of a strong response say more of the other half than any prediction; of no response nothing."""
    adata, embedding = planted_screen(n_programmes=2, per_programme=4, n_cells=40, contexts=("a",))
    role = rg.tl.perturbation_folds(adata, n_folds=4, **KEYS)["fold1"]
    seen = adata[role.isin(["train", "control_train"])].copy()
    reference = rg.tl.build_perturbation_reference(seen, embedding=embedding, unit="log1p_cp10k", **KEYS)
    source = adata[role == "control_train"].copy()
    held = sorted(set(adata.obs["perturbation"][role == "test"]))
    tables = {}
    for method in ("none", "mean", "knn"):
        rg.tl.fit(reference, method=method)
        tables[method] = rg.tl.perturb(
            source, reference, perturbations=held, context_key="cell_type", unit="log1p_cp10k"
        )
    metrics = [
        "pearson_delta",
        "mse_delta",
        "discrimination_score_l1",
        "pearson_delta_centroid",
        "energy",
        "overlap_at_N",
    ]
    scores = rg.tl.evaluate_perturbation(tables, adata, metrics=metrics, unit="log1p_cp10k", **KEYS)
    each = (
        scores[(scores["subset"] == "each") & (scores["method"] == "knn")]
        .groupby("metric")[["value", "ceiling"]]
        .mean()
    )
    higher = ["pearson_delta", "discrimination_score_l1", "pearson_delta_centroid", "overlap_at_N"]
    assert (each.loc[higher, "ceiling"] >= each.loc[higher, "value"]).all()
    assert each.loc["mse_delta", "ceiling"] < each.loc["mse_delta", "value"]
    # What is measured of 40 cells and 60 controls of a standard deviation of .4, against responses without noise.
    assert each.loc["mse_delta", "ceiling"] == pytest.approx(0.16 * (1 / 40 + 1 / 60), rel=0.15)
    assert each.loc["pearson_delta", "ceiling"] > 0.9
    assert set(scores["task"]) == {"unseen perturbation"}
    found = rg.get.gap_closed(scores, metric="mse_delta").groupby("method")["gap_closed"].mean()
    assert found["none"] < found["mean"] == 0 < found["knn"] < 1
