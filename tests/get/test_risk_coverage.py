"""`rg.get.risk_coverage` against numpy."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd.get._risk_coverage import risk_coverage
from ragst_sd.io import read_st


def measured(sdata):
    """log1p of counts per 10,000 in the order of the predicted table, written out."""
    table, truth = sdata.tables["predicted"], sdata.tables["table"]
    counts = truth.X.toarray().astype(float)
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    return values[:, truth.var_names.get_indexer(table.var_names)]


def value(frame, **wanted):
    for name, one in wanted.items():
        frame = frame[frame[name] == one]
    return frame["value"].item()


def test_errors_of_the_spots_kept_by_hand(predicted):
    table, truth = predicted.tables["predicted"], measured(predicted)
    frame = rg.get.risk_coverage(predicted, by="distance_percentile", shares=[1.0, 0.4])
    kept = np.argsort(table.obs["distance_percentile"], kind="stable")[: round(0.4 * table.n_obs)]
    error = (table.X - truth)[kept]
    rmse = np.sqrt((error**2).mean(axis=0))
    own = {"by": "distance_percentile", "share": 0.4}
    assert value(frame, **own, metric="rmse") == pytest.approx(rmse.mean(), rel=1e-5)
    assert value(frame, **own, metric="mae") == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert value(frame, **own, metric="nrmse") == pytest.approx((rmse / truth.std(axis=0)).mean(), rel=1e-5)
    spread = np.sqrt(((truth[kept] - truth.mean(axis=0)) ** 2).mean(axis=0)) / truth.std(axis=0)
    assert value(frame, **own, metric="spread") == pytest.approx(spread.mean(), rel=1e-5)
    pearson = [np.corrcoef(p, t)[0, 1] for p, t in zip(table.X[kept].T, truth[kept].T, strict=True) if t.std() > 1e-9]
    assert value(frame, **own, metric="pearson") == pytest.approx(np.mean(pearson), rel=1e-3)
    assert (frame[frame["share"] == 0.4]["n_spots"] == len(kept)).all()
    assert list(frame.columns) == ["by", "share", "n_spots", "metric", "value"]


def test_with_all_spots_every_order_is_the_same(predicted):
    frame = rg.get.risk_coverage(predicted, by=["disagreement", "effective_n"], shares=[1.0])
    assert (frame.groupby("metric")["value"].agg(np.ptp) < 1e-9).all()
    assert set(frame["by"]) == {"disagreement", "effective_n", "random", "oracle"}


def test_no_order_beats_the_oracle(predicted):
    frame = rg.get.risk_coverage(predicted, by=["disagreement", "distance_percentile"], shares=[0.5])
    error = frame[frame["metric"] == "nrmse"].set_index("by")["value"]
    assert error.idxmin() == "oracle"


def test_disagreement_is_relative_to_the_gene(predicted):
    table = predicted.tables["predicted"]
    frame = risk_coverage(predicted, shares=[0.5], baselines=False)
    relative = (table.layers["disagreement"] / table.layers["disagreement"].mean(axis=0)).mean(axis=1)
    kept = np.argsort(relative, kind="stable")[: round(table.n_obs / 2)]
    rmse = np.sqrt(((table.X - measured(predicted))[kept] ** 2).mean(axis=0)).mean()
    assert value(frame, metric="rmse") == pytest.approx(rmse, rel=1e-5)
    assert set(frame["by"]) == {"disagreement"}


def test_the_more_is_better_columns_keep_large_values(predicted):
    table = predicted.tables["predicted"]
    table.obs["mine"] = -table.obs["effective_n"]
    frame = risk_coverage(predicted, by=["effective_n", "mine"], shares=[0.3], baselines=False)
    pairs = frame.pivot_table(index="metric", columns="by", values="value")
    np.testing.assert_allclose(pairs["mine"], pairs["effective_n"])


def test_error_falls_as_badly_grounded_spots_are_left_out(query, fitted):
    """Spots whose embedding is noise are predicted badly, and are the first to go."""
    table = query.tables["table"]
    noise = np.random.default_rng(0).permutation(table.n_obs)[: table.n_obs // 4]
    table.obsm["X_colour"][noise] += 9 * table.obsm["X_colour"].std(axis=0)
    rg.tl.predict(query, fitted)
    frame = risk_coverage(query, by="distance_percentile", shares=[1.0, 0.75], baselines=False)
    error = frame[frame["metric"] == "rmse"].set_index("share")["value"]
    assert error[0.75] < 0.98 * error[1.0]


def test_spots_without_a_prediction_take_no_part(query, fitted):
    table = query.tables["table"]
    table.obsm["X_colour"][2] = np.nan
    table.uns["ragst"]["embeddings"]["X_colour"]["n_outside"] = 1
    rg.tl.predict(query, fitted)
    frame = risk_coverage(query, shares=[1.0])
    assert (frame["n_spots"] == table.n_obs - 1).all()
    assert frame["value"].notna().all()


def test_sections_are_taken_apart(predicted):
    truth = predicted.tables["table"]
    half = np.where(np.arange(truth.n_obs) < truth.n_obs // 2, "a", "b")
    truth.obs["half"] = pd.Categorical(half)
    both = risk_coverage(predicted, shares=[0.5], sample_key="half", baselines=False)
    parts = [
        risk_coverage(predicted.tables["predicted"][half == one], truth=truth, shares=[0.5], baselines=False)
        for one in "ab"
    ]
    expected = np.mean([part["value"] for part in parts], axis=0)
    np.testing.assert_allclose(both["value"], expected, rtol=1e-5)
    assert both["n_spots"].iloc[0] == sum(part["n_spots"].iloc[0] for part in parts)


def test_interval_width_orders_too(query, fitted):
    rg.tl.calibrate(fitted, levels=[0.5], progress=False)
    rg.tl.predict(query, fitted, intervals=0.5)
    frame = risk_coverage(query, by="interval_width", shares=[1.0, 0.5], genes=list(fitted.var_names[:40]))
    assert np.isfinite(frame["value"]).all()


@pytest.mark.slow
def test_disagreement_finds_the_errors_of_a_held_out_donor(data_dir):
    sections = {}
    for name in ("MOB1", "MOB2", "MOB3", "MOB4"):
        path = data_dir / "histology" / "mob2k" / f"{name}.h5ad"
        counts = ad.read_h5ad(path)
        counts = counts[np.sort(np.random.default_rng(0).permutation(counts.n_obs)[:200])].copy()
        sections[name] = read_st(counts, path.with_suffix(".jpg"), sample=name)
        # One field of view, for speed.
        rg.pp.embed_tiles(sections[name], model="texture", context=(1,), key_added="X", progress=False)
    donor_of = {name: sdata.tables["table"].obs["donor"].iloc[0] for name, sdata in sections.items()}
    query = sections["MOB4"]
    others = {name: one for name, one in sections.items() if donor_of[name] != donor_of["MOB4"]}
    reference = rg.tl.build_reference(others, use_rep="X", thumbnails=False)
    rg.tl.fit(reference, method="knn", progress=False)
    rg.tl.predict(query, reference)
    frame = risk_coverage(query, by="disagreement", shares=[1.0, 0.5])
    error = frame[frame["metric"] == "nrmse"].set_index(["by", "share"])["value"]
    assert error["disagreement", 0.5] < error["disagreement", 1.0]
    assert error["disagreement", 0.5] < error["random", 0.5]
    assert error["oracle", 0.5] < error["disagreement", 0.5]


def test_bad_input(predicted):
    with pytest.raises(KeyError, match=r"Predict with `rg.tl.predict\(..., intervals=...\)`"):
        risk_coverage(predicted, by="interval_width")
    with pytest.raises(KeyError, match=r"`by` is 'distance_percentil'.*Did you mean 'distance_percentile'"):
        risk_coverage(predicted, by="distance_percentil")
    with pytest.raises(KeyError, match="`by` is 'donor'"):
        risk_coverage(predicted, by="donor")
    for shares in ([], [0.0], [1.5]):
        with pytest.raises(ValueError, match="`shares` is"):
            risk_coverage(predicted, shares=shares)
