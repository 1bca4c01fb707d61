"""`benchmarks/perturbation.py` on a made-up screen."""

from __future__ import annotations

import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import given_responses, planted_screen


@pytest.mark.slow
def test_every_perturbation_is_held_out(script):
    adata, embedding = planted_screen(
        n_programmes=2, per_programme=3, contexts=("a",), n_cells=16, n_genes=30, combinations=("P1+P0", "P0+P5")
    )
    methods = {"mean": {"method": "mean"}, "knn": {"method": "knn"}, "additive": {"method": "additive"}}
    read = {"unit": "log1p_cp10k", "batch_key": "batch"}
    one = script.Screen(adata, embedding.drop(index="P5"), read, {})
    scores = script.hold_out(one, methods, 0).assign(screen="made up")
    # without an embedding of P5 neither it nor its combination is predicted
    assert set(scores["perturbation"]) == {"P0", "P1", "P2", "P3", "P4", "P0+P1"}
    wide = script.by_perturbation(scores)
    assert set(wide[wide["method"] == "additive"]["perturbation"]) == {"P0+P1"}
    both = wide[wide["perturbation"] == "P0+P1"].set_index("method")["pearson_delta"]
    assert both["additive"] > 0.8
    text = script.summary_table(wide)
    assert "| made up, combinations of measured singles | 1 | additive | " in text
    assert "| made up, singles, all | 5 | knn | " in text and "singles, all | 5 | additive" not in text
    assert script.detail_table(wide, "made up", list(methods)).count("\n") == 7
    parts = script.gap_table(scores), script.ceiling_table(scores)
    assert parts[0].startswith("| gap closed | n | mean | ceiling | dynamic range | knn |")
    gaps = rg.get.gap_closed(scores)
    chosen = gaps[(gaps["method"] == "knn") & (gaps["stratum"] == "baselines solve")]
    share = (chosen["value"].mean() - chosen["baseline"].mean()) / (
        chosen["ceiling"].mean() - chosen["baseline"].mean()
    )
    (line,) = [line for line in parts[0].split("\n") if line.startswith("| made up, baselines solve |")]
    assert line.split(" | ")[1] == str(len(chosen)) and line.endswith(f"| {share:.2f} |") and share > 0.5
    assert parts[1].count("\n| made up | ") == len(script.METRICS)


def test_both_tasks_of_measured_responses(script):
    """Nothing of what is held out is trained on, and what other contexts measured is used in one task only."""
    responses = script.measured_responses
    adata, embedding = given_responses(n=24)
    adata.X = (1 - 2 * (-adata.X).argsort(axis=1).argsort(axis=1) / (adata.n_vars - 1)).astype("float32")
    wanted, parts = ["mean", "knn", "knn, other contexts", "same_perturbation"], []
    for task in responses.TASKS:
        folds = responses.folds_of(adata, "made up", task, numbers=[1, 2], quick=True)
        assert [one.contexts for one in folds] == ([["a"], ["b"]] if task == "here" else [["a", "b"]])
        for fold in folds:
            seen = adata.obs[fold.training & adata.obs["context"].isin(fold.contexts).to_numpy()]
            assert not set(fold.held) & set(seen["perturbation"])
            parts.append(responses.predict(adata, embedding, fold, wanted))
    scores = pd.concat(parts)
    means = scores[scores["metric"] == "centred_cosine"].groupby(["task", "method"])["value"].mean()
    assert means["unseen here"].index.tolist() == ["knn", "knn, other contexts", "mean", "same_perturbation"]
    assert means["unseen perturbation"].index.tolist() == ["knn", "mean"]
    assert means["unseen here", "same_perturbation"] > 0.5 > means["unseen here", "mean"] == 0
    text = responses.table(scores)
    assert f"| same_perturbation | {means['unseen here', 'same_perturbation']:.3f} |" in text
    assert "| made up, unseen perturbation, 2 folds | cosine |" in text
    # A method that was asked about one fold only is compared with the others there.
    asked = scores[(scores["method"] != "knn") | (scores["context"] == "a")]
    first, second, *_ = responses.table(asked[asked["task"] == "unseen here"]).split("\n\n")
    assert first.startswith("| made up, unseen here, 2 folds") and "| knn |" not in first
    assert second.startswith("| made up, unseen here, 1 fold |") and "| knn |" in second and "| mean |" in second
