"""`rg.pp.filter_predicted`."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg


@pytest.fixture
def scored(predicted):
    """A prediction whose genes were assessed, some of them badly."""
    var = predicted.tables["predicted"].var
    random = np.random.default_rng(0)
    var["cv_pearson"] = random.uniform(-0.2, 0.8, len(var))
    var["noise_ceiling"] = random.uniform(0.05, 0.9, len(var))
    var.iloc[:7, var.columns.get_loc("cv_pearson")] = np.nan
    var.iloc[7:9, var.columns.get_loc("noise_ceiling")] = np.nan
    var.iloc[20:30, var.columns.get_loc("n_measured")] = 3
    return predicted


def test_genes_below_the_threshold_are_dropped(scored, caplog):
    before = scored.tables["predicted"].copy()
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        assert rg.pp.filter_predicted(scored, min_cv_pearson=0.3) is None
    keep = [gene for gene, value in before.var["cv_pearson"].items() if value >= 0.3]
    table = scored.tables["predicted"]
    assert list(table.var_names) == keep
    np.testing.assert_array_equal(table.X, before[:, keep].X)
    np.testing.assert_array_equal(table.layers["evidence"], before[:, keep].layers["evidence"])
    low = int((before.var["cv_pearson"] < 0.3).sum())
    assert (
        f"Dropping {len(before.var) - len(keep)} of 260 genes (7 for not_assessed, {low} for cv_pearson)" in caplog.text
    )
    record = table.uns["retrieval"]["filter"]
    assert record == {"min_cv_pearson": 0.3, "n_genes": 260, "dropped": {"not_assessed": 7, "cv_pearson": low}}


def test_every_threshold_by_hand(scored):
    thresholds = {"min_cv_pearson": 0.1, "min_share_of_ceiling": 0.5, "min_n_measured": 4}
    kept = rg.pp.filter_predicted(scored, inplace=False, **thresholds)
    reasons = {"not_assessed": 0, "cv_pearson": 0, "share_of_ceiling": 0, "n_measured": 0}
    expected = []
    for gene, line in scored.tables["predicted"].var.iterrows():
        if np.isnan(line["cv_pearson"]):
            reasons["not_assessed"] += 1
        elif line["cv_pearson"] < 0.1:
            reasons["cv_pearson"] += 1
        elif not (line["noise_ceiling"] >= 0.1 and line["cv_pearson"] / line["noise_ceiling"] >= 0.5):
            reasons["share_of_ceiling"] += 1
        elif line["n_measured"] < 4:
            reasons["n_measured"] += 1
        else:
            expected.append(gene)
    assert list(kept.var_names) == expected
    assert kept.uns["retrieval"]["filter"]["dropped"] == reasons
    assert min(reasons.values()) > 0
    alone = rg.pp.filter_predicted(scored, min_n_measured=4, inplace=False)
    assert alone.n_vars == 250


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_second_call_keeps_what_the_first_dropped(scored, fitted, tmp_path, on_disk):
    before = scored.tables["predicted"].var.copy()
    rg.pp.filter_predicted(scored, min_cv_pearson=0.3)
    if on_disk:
        scored.write(tmp_path / "s.zarr")
        scored = sd.read_zarr(tmp_path / "s.zarr")
    rg.pp.filter_predicted(scored, min_n_measured=4, min_cv_pearson=0.5)
    rg.pp.filter_predicted(scored, min_cv_pearson=0.1)
    table = scored.tables["predicted"]
    low = int((before["cv_pearson"] < 0.5).sum())
    rare = int(((before["cv_pearson"] >= 0.5) & (before["n_measured"] < 4)).sum())
    assert rare > 0
    record = table.uns["retrieval"]["filter"]
    assert record == {
        "min_cv_pearson": 0.5, "min_n_measured": 4, "n_genes": 260,
        "dropped": {"not_assessed": 7, "cv_pearson": low, "n_measured": rare},
    }  # fmt: skip
    assert table.n_vars == 260 - 7 - low - rare
    text = rg.tl.report(scored, fitted, path=tmp_path / "card", pictures=False)[0].read_text()
    text = text.replace("\\", "")
    assert (
        f"has dropped {7 + low + rare} of 260 genes before ({low} by cv_pearson, {rare} by n_measured, 7 by not_assessed)"
        in text
    )


@pytest.mark.slow
def test_provenance_outlives_it(scored, fitted, tmp_path):
    expected = rg.get.neighbors(scored)
    rg.pp.filter_predicted(scored, min_cv_pearson=0.3)
    scored.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    table = back.tables["predicted"]
    assert rg.get.neighbors(back).astype(str).equals(expected.astype(str))
    spot, gene = table.obs_names[2], table.var_names[-1]
    parts = rg.get.explain(back, fitted, obs_names=spot, genes=gene)
    assert parts["contribution"].sum() == pytest.approx(float(table[spot, gene].X.item()), abs=1e-5)
    assert len(rg.get.influence(back, fitted, progress=False)) == 2
    assert table.uns["retrieval"]["filter"]["n_genes"] == 260


def test_where_it_goes(scored):
    whole = scored.tables["predicted"]
    rg.pp.filter_predicted(scored, min_cv_pearson=0.3, key_added="trusted")
    assert scored.tables["predicted"] is whole
    rg.pp.filter_predicted(scored, min_cv_pearson=0.5, key_added="trusted")
    few = scored.tables["trusted"]
    assert few.n_vars < whole.n_vars and few.var["cv_pearson"].min() >= 0.5
    assert "filter" not in whole.uns["retrieval"]
    bare = whole.copy()
    assert rg.pp.filter_predicted(bare, min_cv_pearson=0.5) is None
    assert list(bare.var_names) == list(few.var_names)
    assert bare.layers["evidence"].shape == bare.shape
    before = bare.shape
    assert rg.pp.filter_predicted(bare, min_cv_pearson=0.7, inplace=False).n_vars < before[1]
    assert bare.shape == before


def not_assessed(sdata):
    sdata.tables["predicted"].var["cv_pearson"] = np.nan


def stripped(sdata):
    del sdata.tables["predicted"].uns["retrieval"]


BAD = {
    "no threshold": (None, {}, ValueError, ["No threshold", "min_cv_pearson"]),
    "not a number": (None, {"min_cv_pearson": "0.3"}, ValueError, ["`min_cv_pearson` is '0.3'"]),
    "a percentage": (None, {"min_cv_pearson": 30}, ValueError, ["between -1 and 1"]),
    "share": (None, {"min_share_of_ceiling": 1.5}, ValueError, ["`min_share_of_ceiling` is 1.5"]),
    "rows": (None, {"min_n_measured": 0}, ValueError, ["`min_n_measured` is 0"]),
    "never assessed": (
        not_assessed, {"min_cv_pearson": 0.1}, ValueError, ["NaN for all 260 genes", "rg.tl.cross_validate", "rg.tl.calibrate"],
    ),
    "no ceiling": (
        lambda s: s.tables["predicted"].var.__setitem__("noise_ceiling", np.nan), {"min_share_of_ceiling": 0.1}, ValueError,
        ["var['noise_ceiling']", "needs counts"],
    ),
    "column gone": (
        lambda s: s.tables["predicted"].var.__delitem__("cv_pearson"), {"min_cv_pearson": 0.1}, KeyError, ["'cv_pearson'", "table.var"],
    ),
    "nothing left": (None, {"min_cv_pearson": 0.99}, ValueError, ["None of the 260 genes passes", "cv_pearson 0.79"]),
    "no table": (None, {"min_cv_pearson": 0.1, "prediction_key": "predictd"}, KeyError, ["'predictd'", "Did you mean"]),
    "another tool's table": (None, {"min_cv_pearson": 0.1, "prediction_key": "table"}, ValueError, ["lacks uns['retrieval']"]),
    "stripped": (stripped, {"min_cv_pearson": 0.1}, ValueError, ["lacks uns['retrieval']"]),
    "a table of counts": (None, {"min_cv_pearson": 0.1, "key_added": "table"}, ValueError, ["'table'", "was not made by"]),
    "a name that shapes have": (None, {"min_cv_pearson": 0.1, "key_added": "Spots"}, ValueError, ["'Spots'", "'spots'"]),
    "an illegal name": (None, {"min_cv_pearson": 0.1, "key_added": "a b"}, ValueError, ["'a b'", "a_b"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(scored, name):
    change, arguments, error, parts = BAD[name]
    if change is not None:
        change(scored)
    before = {key: table.shape for key, table in scored.tables.items()}
    with pytest.raises(error) as caught:
        rg.pp.filter_predicted(scored, **arguments)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert {key: table.shape for key, table in scored.tables.items()} == before


def test_a_bare_table_has_no_other_tables(scored):
    with pytest.raises(ValueError, match="`key_added` names a table of a SpatialData"):
        rg.pp.filter_predicted(scored.tables["predicted"], min_cv_pearson=0.1, key_added="trusted")


def test_after_cross_validation(sections, query, reference):
    rg.tl.cross_validate(reference, methods=["knn"], genes="all", cited=(5,), n_neighbors=10, progress=False)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    rg.pp.filter_predicted(query, min_cv_pearson=0.2)
    kept = set(query.tables["predicted"].var_names)
    assert kept == set(reference.var_names[reference.var["cv_pearson"] >= 0.2])
    assert 5 < len(kept) < 200
