"""`rg.tl.predict(intervals=)` and what `rg.tl.evaluate` says of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd.retrieval.conformal import limits_around
from ragst_sd.tl._intervals import interval_rule

from ..sections import copied

KNN = {"method": "knn", "n_neighbors": 10, "progress": False}


@pytest.fixture(scope="module")
def ten_donors(embed):
    """Sections of ten donors, and for each of the first two a calibrated reference of the nine others."""
    sections = rg.datasets.synthetic(n_donors=10, n_genes=260, image_px=500, mpp=1.0, rng=1)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, **embed)
    references = {}
    for held in ("donor1", "donor2"):
        training = {name: one for name, one in sections.items() if name != held}
        references[held] = rg.tl.build_reference(training, use_rep="X_colour", thumbnails=False)
        rg.tl.fit(references[held], **KNN)
        rg.tl.calibrate(references[held], progress=False)
    return sections, references


@pytest.fixture
def ten(ten_donors):
    """The section of the first donor, and the reference of the others."""
    sections, references = ten_donors
    return copied(sections["donor1"]), references["donor1"]


@pytest.fixture
def calibrated(fitted):
    rg.tl.calibrate(fitted, levels=[0.3, 0.5], progress=False)
    return fitted


@pytest.mark.slow
class TestTenDonors:
    def test_cover_a_donor_that_was_left_out(self, ten_donors):
        sections, references = ten_donors
        for level, within in ((0.5, 0.06), (0.8, 0.05), (0.9, 0.04)):
            found = []
            for held, reference in references.items():
                table = rg.tl.predict(sections[held], reference, intervals=level, inplace=False)
                assert table.uns["retrieval"]["interval_unit"] == "donor"
                scores = rg.tl.evaluate(table, truth=sections[held].tables["table"], metrics=["coverage"])
                found.append(scores[scores["metric"] == "coverage"]["value"].mean())
            assert np.mean(found) == pytest.approx(level, abs=within)

    def test_of_donors_carry_no_warning(self, ten, caplog):
        query, reference = ten
        with caplog.at_level(logging.WARNING):
            rg.tl.predict(query, reference, intervals=0.9)
        assert "Intervals" not in caplog.text

    def test_of_spots_do(self, ten, caplog):
        query, reference = ten
        with caplog.at_level(logging.WARNING):
            rg.tl.predict(query, reference, intervals=0.95)
        assert (
            "Intervals at 0.95 rest on single spots, since the reference has too few donors for that level (9)"
            in caplog.text
        )
        assert query.tables["predicted"].uns["retrieval"]["interval_unit"] == "spot"

    def test_are_wider_on_spots_out_of_reference(self, ten):
        """Noise in place of tissue is further from everything than any measured spot."""
        query, reference = ten
        before = rg.tl.predict(query, reference, intervals=0.9, inplace=False)
        table = query.tables["table"]
        strange = np.arange(4)
        table.obsm["X_colour"][strange] += 8 * table.obsm["X_colour"].std(axis=0)
        after = rg.tl.predict(query, reference, intervals=0.9, inplace=False)
        ratio = np.median(
            (after.layers["upper"] - after.layers["lower"]) / (before.layers["upper"] - before.layers["lower"]), axis=1
        )
        assert after.obs["out_of_reference"].to_numpy()[strange].all()
        assert (ratio[strange] > 1.5).all()
        known = ~after.obs["out_of_reference"].to_numpy() & ~before.obs["out_of_reference"].to_numpy()
        np.testing.assert_allclose(ratio[known], 1, rtol=1e-4)

    def test_of_another_level_follow_from_the_table(self, ten):
        query, reference = ten
        table = rg.tl.predict(query, reference, intervals=0.9, inplace=False)
        header, quantiles = table.uns["retrieval"], table.varm["interval_quantiles"]
        np.testing.assert_allclose(header["interval_levels"], [0.5, 0.8, 0.9, 0.95])
        assert header["interval_level"] == 0.9
        scale = (table.layers["upper"] - table.X) / quantiles[:, 2]
        other = rg.tl.predict(query, reference, intervals=0.5, inplace=False)
        np.testing.assert_allclose(table.X + scale * quantiles[:, 0], other.layers["upper"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(other.varm["interval_quantiles"], quantiles)


class TestLimits:
    def test_surround_the_prediction(self, query, calibrated):
        table = rg.tl.predict(query, calibrated, intervals=0.5, inplace=False)
        lower, upper = table.layers["lower"], table.layers["upper"]
        assert lower.dtype == upper.dtype == np.float32
        assert (lower <= table.X).all()
        assert (upper >= table.X).all()
        # More than half of the values of a rare gene are predicted exactly: they are zero, as are those cited.
        exact = table.varm["interval_quantiles"][:, 1] == 0
        assert (upper > table.X)[:, ~exact].all()
        assert exact.mean() < 0.05
        half = upper - table.X
        kept = lower > np.minimum(table.X, 0)
        np.testing.assert_allclose((table.X - lower)[kept], half[kept], rtol=1e-3, atol=1e-5)
        assert (lower >= np.minimum(table.X, 0)).all()
        assert (lower[~kept] == np.minimum(table.X, 0)[~kept]).all()
        assert not kept.all()

    def test_widen_with_disagreement(self, query, calibrated):
        table = rg.tl.predict(query, calibrated, intervals=0.5, inplace=False)
        calibration = calibrated.uns["ragst"]["calibration"]
        distance = table.obsm["retrieval_distances"].mean(axis=1) / calibration["far_distance"]
        scale = np.sqrt(table.layers["disagreement"] ** 2 + calibration["floor"] ** 2)
        half = calibration["quantiles"][:, 1] * scale * np.maximum(1, distance)[:, None]
        np.testing.assert_allclose(table.layers["upper"] - table.X, half, rtol=1e-3, atol=1e-5)

    def test_follow_the_genes_asked_for(self, query, calibrated):
        whole = rg.tl.predict(query, calibrated, intervals=0.5, inplace=False)
        genes = list(calibrated.var_names[[7, 3]])
        some = rg.tl.predict(query, calibrated, genes=genes, intervals=0.5, inplace=False)
        for name in ("lower", "upper"):
            np.testing.assert_allclose(some.layers[name], whole[:, genes].layers[name], atol=1e-5)
        np.testing.assert_array_equal(some.varm["interval_quantiles"], whole[:, genes].varm["interval_quantiles"])

    def test_are_nan_where_the_prediction_is(self, query, calibrated):
        table = query.tables["table"]
        table.obsm["X_colour"][2] = np.nan
        table.uns["ragst"]["embeddings"]["X_colour"]["n_outside"] = 1
        found = rg.tl.predict(query, calibrated, intervals=0.5, inplace=False)
        assert np.isnan(found.layers["lower"][2]).all()
        assert np.isnan(found.layers["upper"][2]).all()
        assert np.isfinite(np.delete(found.layers["upper"], 2, axis=0)).all()

    @pytest.mark.parametrize("method", ["ridge", "mean"])
    def test_methods_that_cite_nobody_have_them(self, query, reference, method):
        rg.tl.fit(reference, **(KNN | {"method": method}))
        rg.tl.calibrate(reference, levels=[0.5], progress=False)
        table = rg.tl.predict(query, reference, intervals=0.5, inplace=False)
        assert (table.layers["lower"] <= table.X).all()
        assert (table.layers["upper"] > table.X).all()

    def test_gene_without_a_quantile_has_none(self, query, calibrated):
        calibrated.uns["ragst"]["calibration"]["quantiles"][5] = np.nan
        table = rg.tl.predict(query, calibrated, intervals=0.5, inplace=False)
        assert np.isnan(table.layers["upper"][:, 5]).all()
        assert np.isfinite(table.X).all()
        scores = rg.tl.evaluate(
            table, truth=query.tables["table"], n_genes=None, metrics=["coverage", "interval_width"]
        )
        own = scores[scores["gene"] == table.var_names[5]]
        assert own["value"].isna().all()

    def test_only_when_asked_for(self, query, calibrated):
        table = rg.tl.predict(query, calibrated, inplace=False)
        assert "lower" not in table.layers
        assert "interval_unit" not in table.uns["retrieval"]
        assert "interval_quantiles" not in table.varm

    @pytest.mark.slow
    def test_survive_being_written(self, query, calibrated, tmp_path):
        rg.tl.predict(query, calibrated, intervals=0.5)
        query.write(tmp_path / "q.zarr")
        table, back = query.tables["predicted"], sd.read_zarr(tmp_path / "q.zarr").tables["predicted"]
        for name in ("lower", "upper"):
            np.testing.assert_array_equal(back.layers[name], table.layers[name])
        np.testing.assert_array_equal(back.varm["interval_quantiles"], table.varm["interval_quantiles"])
        for name in ("interval_level", "interval_unit", "interval_levels", "interval_units"):
            np.testing.assert_array_equal(back.uns["retrieval"][name], table.uns["retrieval"][name])

    def test_of_a_donor_that_was_calibrated_on_carry_a_warning(self, sections, calibrated, caplog):
        with caplog.at_level(logging.WARNING):
            rg.tl.predict(sections["donor1"], calibrated, intervals=0.5)
        assert "calibrated on what was measured in 'donor1' too" in caplog.text

    def test_widen_on_spots_that_look_unlike_the_reference(self, calibrated):
        calibration, n, g = calibrated.uns["ragst"]["calibration"], 3, calibrated.n_vars
        prediction = disagreement = np.ones((n, g), dtype=np.float32)
        rule = interval_rule(calibration, 0, np.arange(g), as_calibrated=True)
        unlike = np.array([0.5, 2.0, np.nan])
        _, upper = limits_around(rule, prediction, disagreement, np.zeros(n), unlike)
        half = upper - prediction
        np.testing.assert_allclose(half[1], 2 * half[0], rtol=1e-5)
        np.testing.assert_array_equal(half[2], half[0])

    @pytest.mark.parametrize("less", [{"n_neighbors": 5}, {"where": {"donor": "donor1"}}])
    def test_of_fewer_rows_than_calibrated_carry_a_warning(self, query, calibrated, less, caplog):
        with caplog.at_level(logging.WARNING):
            rg.tl.predict(query, calibrated, intervals=0.5, inplace=False, **less)
        assert "here fewer are used: coverage may differ" in caplog.text


class TestEvaluate:
    def test_coverage_and_width_by_hand(self, query, calibrated):
        rg.tl.predict(query, calibrated, intervals=0.5)
        table, truth = query.tables["predicted"], query.tables["table"]
        counts = truth.X.toarray().astype(float)
        measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        measured = measured[:, truth.var_names.get_indexer(table.var_names)].astype(np.float32)
        lower, upper = table.layers["lower"], table.layers["upper"]
        scores = rg.tl.evaluate(query, n_genes=None, metrics=["coverage", "interval_width"])
        own = scores[scores["gene"] != ""].pivot_table(index="gene", columns="metric", values="value")
        inside = ((lower <= measured) & (measured <= upper)).mean(axis=0)
        np.testing.assert_allclose(own["coverage"][table.var_names], inside, atol=1.01 / table.n_obs)
        assert own["coverage"].mean() == pytest.approx(inside.mean(), abs=1e-3)
        np.testing.assert_allclose(own["interval_width"][table.var_names], (upper - lower).mean(axis=0), rtol=1e-5)

    def test_needs_intervals(self, predicted):
        with pytest.raises(KeyError, match=r"Predict with `rg.tl.predict\(..., intervals=...\)`"):
            rg.tl.evaluate(predicted, metrics=["coverage"])


class TestBadInput:
    def test_no_calibration(self, query, fitted):
        with pytest.raises(ValueError, match=r"has no intervals. Run `rg.tl.calibrate\(reference\)` first"):
            rg.tl.predict(query, fitted, intervals=0.9)
        assert "predicted" not in query.tables

    def test_calibration_of_another_fit(self, query, calibrated):
        kept = calibrated.uns["ragst"]["calibration"]
        rg.tl.fit(calibrated, **(KNN | {"n_neighbors": 5}))
        calibrated.uns["ragst"]["calibration"] = kept
        with pytest.raises(ValueError, match=r"belongs to another fit .* Run `rg.tl.calibrate` again"):
            rg.tl.predict(query, calibrated, intervals=0.5)

    def test_level_that_was_not_calibrated(self, query, calibrated):
        with pytest.raises(ValueError, match=r"`intervals` is 0.9; calibrated are '0.3', '0.5'.*levels=\[0.9\]"):
            rg.tl.predict(query, calibrated, intervals=0.9)

    @pytest.mark.parametrize("level", [True, "0.5", [0.5]])
    def test_no_number(self, query, calibrated, level):
        with pytest.raises(TypeError, match=r"the wanted coverage, for instance 0.9"):
            rg.tl.predict(query, calibrated, intervals=level)

    def test_damaged(self, query, calibrated):
        del calibrated.uns["ragst"]["calibration"]["floor"]
        with pytest.raises(ValueError, match=r"damaged: missing \['floor'\]"):
            rg.tl.predict(query, calibrated, intervals=0.5)
