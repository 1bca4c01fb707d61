"""Genes and intervals that must not be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd import _results
from ragst_sd.pl import prediction as draw_prediction
from ragst_sd.pl._maps import distrust


def test_only_genes_that_were_assessed_and_failed_are_named(predicted):
    table = predicted.tables["predicted"]
    prediction, genes = _results.predicted(predicted, "predicted"), np.arange(5)
    table.var.loc[table.var_names[:5], "cv_pearson"] = [0.031, 0.1, np.nan, -0.2, 0.7]
    words = distrust(prediction, genes, 0.1)
    assert words[0] == "not to be trusted (cross-validated r = 0.03)"
    assert words[3] == "not to be trusted (cross-validated r = \N{MINUS SIGN}0.20)"
    assert [bool(one) for one in words] == [True, False, False, True, False]
    assert distrust(prediction, genes, -1) == [""] * 5
    assert all(distrust(prediction, genes[4:], 0.8))
    del table.var["cv_pearson"]
    assert distrust(prediction, genes, 1) == [""] * 5


@pytest.mark.parametrize("wrong", [1.5, -2, float("nan"), None, "0.1", True])
def test_threshold_must_be_a_correlation(predicted, wrong):
    prediction = _results.predicted(predicted, "predicted")
    with pytest.raises(
        ValueError, match=r"`min_cv_pearson` is .*must be a number between -1 and 1\. It is a correlation"
    ):
        distrust(prediction, np.array([0]), wrong)


def test_intervals_say_what_they_hold_for(predicted, with_intervals):
    table = predicted.tables["predicted"]
    prediction = _results.predicted(predicted, "predicted")
    assert prediction.intervals(np.arange(2)) is None
    with pytest.raises(KeyError, match=r"'lower' not found in `table\.layers`.*no intervals.*intervals=0\.9"):
        draw_prediction(predicted, genes=table.var_names[0], interval=True)
    with_intervals(table)
    upper = table.layers.pop("upper")
    with pytest.raises(KeyError, match=r"'upper' not found in `table\.layers`"):
        draw_prediction(predicted, genes=table.var_names[0], interval=True)
    table.layers["upper"] = upper
    found = prediction.intervals(np.array([3, 1]))
    assert (found.name, found.caveat, found.hatch) == ("90 % interval", "", None)
    expected = (table.layers["upper"] - table.layers["lower"])[:, [3, 1]]
    np.testing.assert_allclose(found.width, expected, rtol=1e-5)
    for unit in ("section", "spot"):
        prediction.header["interval_unit"] = unit
        found = prediction.intervals(np.array([0]))
        assert found.caveat == f"calibrated over {unit}s, not donors"
        assert found.hatch
