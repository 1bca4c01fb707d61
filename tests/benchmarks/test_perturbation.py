"""`benchmarks/perturbation.py` on a made-up screen."""

from __future__ import annotations

import pytest

from ..screens import planted_screen


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
