"""`rg.get.summary` against means taken by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg


def test_of_evaluate(predicted):
    names = np.where(np.arange(predicted.tables["table"].n_obs) % 2 == 0, "even", "odd")
    predicted.tables["table"].obs["sample"] = names
    scores = rg.tl.evaluate(predicted, n_genes=30)
    found = rg.get.summary(scores)
    assert list(found.index) == list(dict.fromkeys(names))
    assert (found["n_genes"] == 30).all()
    odd = scores[(scores["sample"] == "odd") & (scores["gene"] != "")]
    assert found.loc["odd", "pearson"] == pytest.approx(odd[odd["metric"] == "pearson"]["value"].mean())
    assert found.loc["odd", "variance_kept"] == pytest.approx(odd[odd["metric"] == "variance_kept"]["value"].median())
    assert found["n_spots"].sum() == predicted.tables["predicted"].n_obs
    assert {"pearson_all_genes", "effective_n"} <= set(found)
    several = rg.get.summary(rg.tl.evaluate({"a": predicted}, n_genes=30))
    pd.testing.assert_series_equal(several.loc[("a", "odd")], found.loc["odd"], check_names=False)


def test_of_cross_validate():
    lines = [("g1", "s1", "A", 0.2), ("g2", "s1", "A", 0.4), ("g1", "s2", "A", 0.5), ("g1", "s3", "B", 0.9)]
    scores = pd.DataFrame(lines, columns=["gene", "sample", "fold", "value"])
    scores = scores.assign(metric="pearson", method="knn", unit="u")
    about = scores.iloc[:1].assign(metric="n_spots", method="", value=7.0)
    found = rg.get.summary(pd.concat([scores, about]))
    assert list(found) == ["pearson"]
    # Genes, then sections, then donors.
    assert found.loc["knn", "pearson"] == pytest.approx(((0.3 + 0.5) / 2 + 0.9) / 2)
    with pytest.raises(ValueError, match=r"lacks .*'metric'"):
        rg.get.summary(scores.drop(columns="metric"))
