"""`benchmarks/fill_gaps.py`: the average over the nearest measured spots, and one small section filled by all methods."""

from __future__ import annotations

import numpy as np
import pytest


def test_nearest_in_microns(script, rng):
    places = rng.uniform(0, 1000, (60, 2))
    asked = rng.uniform(100, 900, (30, 2))
    # Of a smooth map a few neighbours are better than many; of noise many are better.
    smooth, noise = np.sin(places / 200), rng.normal(size=(60, 2))
    filled, few = script.in_space(places, smooth, asked)
    assert np.abs(filled - np.sin(asked / 200)).mean() < 0.15
    _, many = script.in_space(places, noise, asked)
    assert few.mean() < many.mean()


@pytest.mark.slow
def test_one_section(script, sections, monkeypatch):
    monkeypatch.setattr(script, "USE_REP", "X_colour")
    before = sections["donor1"].tables["table"].X.copy()
    scores = script.fill(sections, "donor1", [0.5], 0).set_index("method")
    assert len(scores) == 10
    assert scores.loc["mean", "pearson"] == 0
    assert scores["pearson"].drop("mean").min() > 0
    assert scores.loc["knn, own spots", "rmse"] < scores.loc["mean", "rmse"]
    # What was measured is still there.
    assert (before != sections["donor1"].tables["table"].X).sum() == 0
