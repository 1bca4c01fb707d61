"""`rg.pl.reliability`: maps against the table, curves against brute force."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import ragst_sd as rg
from ragst_sd.pl import _style

LEVELS = [0.5, 0.8, 0.9, 0.95]


@pytest.fixture
def risk(monkeypatch):
    """Stands for `rg.get.risk_coverage`; the arguments of its calls are kept."""
    frame = pd.DataFrame(
        [
            (by, share, int(share * 40), metric, start + share / 10)
            for metric in ("rmse", "nrmse")
            for by, start in (("distance_percentile", 0.8), ("effective_n", 0.9), ("random", 0.88))
            for share in (1.0, 0.25, 0.5)
        ],
        columns=["by", "share", "n_spots", "metric", "value"],
    )
    calls = []
    monkeypatch.setattr(rg.get, "risk_coverage", lambda *_, **named: calls.append(named) or frame, raising=False)
    return frame, calls


def drawn(ax, label):
    return next(one for one in ax.collections if one.get_label() == label)


def named(ax, gid):
    return [one for one in ax.get_children() if one.get_gid() == gid]


def note(ax):
    return "".join(text.get_text() for text in named(ax, "note"))


def normalized(table):
    counts = table.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_maps_show_the_columns_of_the_table(predicted):
    table = predicted.tables["predicted"]
    table.obs["n_donors"] = np.arange(table.n_obs) % 2 + 1
    assert list(rg.pl.reliability(predicted, truth_key=False, return_ax=True)) == [
        "disagreement",
        "distance_percentile",
    ]
    maps = ["distance_percentile", "effective_n", "n_donors", "disagreement"]
    axes = rg.pl.reliability(predicted, truth_key=False, maps=maps, return_ax=True)
    assert list(axes) == maps
    for name in list(axes)[:3]:
        np.testing.assert_allclose(drawn(axes[name], name).get_array(), table.obs[name].to_numpy(float))
    mean = np.asarray(table.layers["disagreement"]).mean(axis=1)
    np.testing.assert_allclose(drawn(axes["disagreement"], "disagreement").get_array(), mean, rtol=1e-5)
    assert drawn(axes["distance_percentile"], "distance_percentile").get_clim() == (0, 100)
    maps = {name: drawn(ax, name).get_cmap().name for name, ax in axes.items()}
    # What does not order errors is not coloured as good or bad.
    assert {name for name, cmap in maps.items() if cmap.endswith("_r")} == {"distance_percentile", "disagreement"}
    assert {maps[name] for name in ("effective_n", "n_donors")} == {_style.NEUTRAL}
    (bar,) = axes["n_donors"].child_axes
    axes["n_donors"].figure.canvas.draw()
    assert all(float(text.get_text()) % 1 == 0 for text in bar.get_yticklabels())


def test_spots_out_of_reference_are_outlined(predicted):
    table = predicted.tables["predicted"]
    table.obs["out_of_reference"] = np.arange(table.n_obs) % 7 == 0
    outside = table.obs["out_of_reference"].to_numpy()
    ax = rg.pl.reliability(predicted, return_ax=True)["distance_percentile"]
    rim = drawn(ax, "out_of_reference")
    np.testing.assert_allclose(rim.get_offsets(), table.obsm["spatial"][outside])
    assert len(rim.get_facecolor()) == 0
    assert to_hex(rim.get_edgecolor()[0]) == _style.ADJUSTMENT.lower()
    assert note(ax) == f"outlined: {outside.sum()} of {table.n_obs} spots out of reference"
    table.obs["out_of_reference"] = False
    ax = rg.pl.reliability(predicted, return_ax=True)["distance_percentile"]
    assert note(ax) == "no spot out of reference"
    assert len(drawn(ax, "out_of_reference").get_offsets()) == 0


def test_maps_without_input_are_left_out(predicted, with_intervals, query, reference):
    table = predicted.tables["predicted"]
    with_intervals(table)
    names = ["disagreement", "interval_width", "distance_percentile"]
    assert list(rg.pl.reliability(predicted, truth_key=False, return_ax=True)) == names
    del table.layers["disagreement"]
    assert list(rg.pl.reliability(predicted, truth_key=False, return_ax=True)) == names[1:]


def test_spot_outside_the_image_is_hollow_and_outlined(predicted):
    table = predicted.tables["predicted"]
    table.obs.loc[table.obs_names[2], ["distance_percentile", "effective_n"]] = np.nan
    table.obs["n_donors"] = np.where(np.arange(table.n_obs) == 2, 0, 2)
    table.obs["out_of_reference"] = np.arange(table.n_obs) == 2
    axes = rg.pl.reliability(predicted, truth_key=False, return_ax=True, maps=["distance_percentile", "n_donors"])
    for ax in axes.values():
        np.testing.assert_allclose(drawn(ax, "no value").get_offsets(), table.obsm["spatial"][[2]])


def test_interval_width_is_hatched_unless_calibrated_over_donors(predicted, with_intervals):
    table = predicted.tables["predicted"]
    with_intervals(table)
    width = (table.layers["upper"] - table.layers["lower"]).mean(axis=1)
    for unit in ("donor", "section"):
        table.uns["retrieval"]["interval_unit"] = unit
        ax = rg.pl.reliability(predicted, return_ax=True)["interval_width"]
        np.testing.assert_allclose(drawn(ax, "interval_width").get_array(), width, rtol=1e-5)
        assert bool(named(ax, "hatch")) == (unit == "section")
        assert note(ax) == ("" if unit == "donor" else "calibrated over sections, not donors")


def test_one_gene(predicted, with_intervals):
    table = predicted.tables["predicted"]
    gene = table.var_names[3]
    table.var.loc[gene, "cv_pearson"] = 0.02
    ax = rg.pl.reliability(predicted, genes=gene, return_ax=True)["disagreement"]
    np.testing.assert_allclose(drawn(ax, "disagreement").get_array(), table[:, gene].layers["disagreement"].ravel())
    assert ax.get_title(loc="left") == f"disagreement of cited spots, {gene}"
    assert "cross-validated r = 0.02" in note(ax)
    assert drawn(ax, "disagreement").get_cmap().name == "distrust"
    with_intervals(table)
    ax = rg.pl.reliability(predicted, genes=gene, min_cv_pearson=0, return_ax=True)["interval_width"]
    assert note(ax) == "" and drawn(ax, "interval_width").get_cmap().name != "distrust"


def test_maps_can_be_chosen(predicted):
    predicted.tables["predicted"].obs["my_score"] = np.linspace(0, 1, predicted.tables["predicted"].n_obs)
    axes = rg.pl.reliability(predicted, maps=["my_score", "evidence_share"], truth_key=False, return_ax=True)
    assert list(axes) == ["my_score", "evidence_share"]
    assert axes["my_score"].get_title(loc="left") == "my score"
    with pytest.raises(KeyError, match=r"`maps`: the table has no 'interval_width'; available: .*'effective_n'"):
        rg.pl.reliability(predicted, maps=["interval_width"])
    with pytest.raises(ValueError, match="`maps` is empty"):
        rg.pl.reliability(predicted, maps=[])


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_calibration_counts_the_truth_inside(predicted, with_intervals, risk, level):
    table, measured = predicted.tables["predicted"], predicted.tables["table"]
    scale = with_intervals(table, level=level)
    truth = normalized(measured)[:, measured.var_names.get_indexer(table.var_names)]
    error = np.abs(truth - np.asarray(table.X))
    expected = np.array([(error <= table.varm["interval_quantiles"][:, k] * scale).mean(axis=0) for k in range(4)])
    ax = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    (line,) = named(ax, "coverage")
    np.testing.assert_allclose(line.get_xdata(), LEVELS)
    np.testing.assert_allclose(line.get_ydata(), expected.mean(axis=1), atol=1e-3)
    assert 0.05 < expected.mean() < 0.95
    (band,) = named(ax, "range of genes")
    corners = band.get_paths()[0].vertices
    low, high = np.quantile(expected, [0.05, 0.95], axis=1)
    for k, one in enumerate(LEVELS):
        there = corners[np.isclose(corners[:, 0], one), 1]
        np.testing.assert_allclose([there.min(), there.max()], [low[k], high[k]], atol=0.03)
    assert band.get_hatch() is None
    assert note(ax) == f"mean of {table.n_vars} genes, band: 90 % of them"


def test_calibration_says_what_it_is_about(predicted, with_intervals, risk):
    table = predicted.tables["predicted"]
    with_intervals(table, unit="section")
    ax = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    assert named(ax, "range of genes")[0].get_hatch()
    assert note(ax).endswith("calibrated over sections, not donors")
    # Earlier releases did not write the unit of each level.
    del table.uns["retrieval"]["interval_units"]
    ax = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    assert note(ax).endswith("calibrated over sections, not donors")
    table.varm["interval_quantiles"] = table.varm["interval_quantiles"][:, ::-1]
    table.uns["retrieval"]["interval_levels"] = np.array(LEVELS[::-1])
    again = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    np.testing.assert_allclose(
        named(again, "coverage")[0].get_xydata(), named(ax, "coverage")[0].get_xydata(), atol=1e-12
    )
    one = rg.pl.reliability(predicted, genes=table.var_names[0], truth_key="table", return_ax=True)["calibration"]
    assert not named(one, "range of genes") and note(one).startswith("one gene")


def test_genes_and_spots_without_an_interval_or_a_truth_do_not_count(predicted, with_intervals, risk):
    table = predicted.tables["predicted"]
    with_intervals(table)
    whole = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    table.varm["interval_quantiles"][0] = np.nan
    table.layers["upper"][:, 0] = table.layers["lower"][:, 0] = np.nan
    ax = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["calibration"]
    assert note(ax).startswith(f"mean of {table.n_vars - 1} genes")
    assert np.isfinite(named(ax, "coverage")[0].get_ydata()).all()
    assert not np.array_equal(named(ax, "coverage")[0].get_ydata(), named(whole, "coverage")[0].get_ydata())
    table.layers["upper"][:] = np.nan
    axes = rg.pl.reliability(predicted, truth_key="table", maps=["effective_n"], return_ax=True)
    assert list(axes) == ["effective_n", "risk_coverage"]


def test_risk_and_coverage(predicted, risk):
    frame, calls = risk
    axes = rg.pl.reliability(predicted, truth_key="table", return_ax=True)
    assert "calibration" not in axes
    given = {"prediction_key": "predicted", "truth_key": "table", "layer": None, "unit": "counts", "genes": None}
    assert calls == [given | {"by": [name for name in axes if name != "risk_coverage"]}]
    ax = axes["risk_coverage"]
    for by, line in frame[frame["metric"] == "nrmse"].groupby("by"):
        line = line.sort_values("share")
        (curve,) = named(ax, by)
        np.testing.assert_allclose(curve.get_xydata(), line[["share", "value"]])
    colors = [line.get_color() for line in ax.lines]
    assert colors == [*_style.PALETTE[:2], _style.MUTED]
    assert len({str(line._dash_pattern) for line in ax.lines}) == 3
    assert "own mean" not in note(ax)
    frame.loc[frame["metric"] == "nrmse", "value"] += 0.5
    above = rg.pl.reliability(predicted, truth_key="table", return_ax=True)["risk_coverage"]
    assert "above 1: further off than the gene's own mean" in note(above)
    assert named(above, "own mean")[0].get_ydata()[0] == 1
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["distance percentile", "effective n", "random"]
    assert ax.get_ylabel() == "RMSE / SD of the gene"
    other = rg.pl.reliability(predicted, truth_key="table", metric="rmse", return_ax=True)["risk_coverage"]
    assert other.get_ylabel() == "RMSE"
    with pytest.raises(ValueError, match=r"`metric` is 'rsme'; it must be one of 'rmse', 'nrmse'\. Did you mean"):
        rg.pl.reliability(predicted, truth_key="table", metric="rsme")
    gene = predicted.tables["predicted"].var_names[0]
    rg.pl.reliability(predicted, truth_key="table", genes=gene)
    assert calls[-1]["genes"] == [gene]


def test_errors(predicted):
    with pytest.raises(KeyError, match="the table has no gene 'NOGENE'"):
        rg.pl.reliability(predicted, genes="NOGENE")
    with pytest.raises(ValueError, match="`image_fade` is 2"):
        rg.pl.reliability(predicted, image_fade=2)
    with pytest.raises(TypeError, match="SpatialData"):
        rg.pl.reliability(predicted.tables["predicted"])
    with pytest.raises(KeyError, match=r"'other' not found in `sdata\.tables`"):
        rg.pl.reliability(predicted, prediction_key="other")
    del predicted.images["he"]
    with pytest.raises(ValueError, match=r"image 'he', which is not in `sdata\.images`"):
        rg.pl.reliability(predicted)
    assert not plt.get_fignums()


def test_save_and_given_axes(predicted, with_intervals, risk, tmp_path):
    with_intervals(predicted.tables["predicted"])
    path = tmp_path / "reliability.png"
    assert rg.pl.reliability(predicted, save=path, dpi=50) is None
    assert path.stat().st_size > 3000 and not plt.get_fignums()
    figure, (_, right) = plt.subplots(1, 2, figsize=(16, 5))
    axes = rg.pl.reliability(predicted, truth_key="table", ax=right, return_ax=True)
    figure.canvas.draw()
    place = right.get_window_extent()
    for ax in axes.values():
        box = ax.get_window_extent()
        assert place.x0 - 1 <= box.x0 < box.x1 <= place.x1 + 1 and place.y0 - 1 <= box.y0 < box.y1 <= place.y1 + 1
    assert plt.get_fignums() == [figure.number]


def test_picture(predicted, with_intervals, risk, distance_to_baseline):
    table = predicted.tables["predicted"]
    with_intervals(table, unit="section")
    table.obs["out_of_reference"] = np.arange(table.n_obs) % 7 == 0
    maps = ["distance_percentile", "interval_width"]
    axes = rg.pl.reliability(predicted, truth_key="table", maps=maps, image_fade=0.7, return_ax=True)
    assert distance_to_baseline(axes["calibration"].figure, "reliability") < 6
    for name in ("interval_width", "calibration"):
        axes[name].set_visible(False)
        assert distance_to_baseline(axes[name].figure, "reliability") > 8
        axes[name].set_visible(True)


def test_dark_is_weak_only_where_errors_follow(predicted):
    table = predicted.tables["predicted"]
    table.obs["of_the_user"] = np.linspace(0, 1, table.n_obs)
    maps = ["appearance_distance", "distance_percentile", "of_the_user", "effective_n"]
    axes = rg.pl.reliability(predicted, maps=maps, return_ax=True)
    names = [drawn(axes[name], name).get_cmap().name for name in maps]
    assert names == [f"{_style.SEQUENTIAL}_r"] * 2 + [_style.NEUTRAL] * 2
