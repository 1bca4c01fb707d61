"""`rg.tl.calibrate`: held-out scores against the public path, units of exchange, and what is kept in the reference."""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._bank import open_bank
from ragst_sd._reference import reference_hash
from ragst_sd.reference.hashing import fit_hash
from ragst_sd.retrieval.conformal import group_threshold
from ragst_sd.tl._calibrate import calibrate
from ragst_sd.tl._folds import outer_folds
from ragst_sd.tl._intervals import FLOOR, quantiles_by_level

QUIET = {"progress": False}


def calibrated(reference, method="knn", options=None, **kwargs):
    rg.tl.fit(reference, method=method, n_neighbors=10, options=options, progress=False)
    rg.tl.calibrate(reference, **QUIET, **kwargs)
    return reference.uns["ragst"]["calibration"]


def shared_out(reference, n_donors):
    """The same rows, said to be of so many donors: parts of a section, or several sections."""
    samples = reference.obs["sample"].cat.codes.to_numpy()
    per_section = -(-n_donors // 3)
    place = np.zeros(reference.n_obs, dtype=int)
    for sample in range(3):
        rows = np.flatnonzero(samples == sample)
        place[rows] = np.arange(len(rows)) * per_section // len(rows)
    codes = np.minimum(samples * per_section + place, n_donors - 1)
    reference.obs["donor"] = pd.Categorical([f"d{code}" for code in codes])
    assert reference.obs["donor"].nunique() == n_donors
    return reference


def test_a_fit_without_the_scale_of_its_regression_is_warned_of(three, caplog):
    rg.tl.fit(three, method="kernel_ridge", progress=False)
    record = three.uns["ragst"]["fit"]
    del record["parameters"]["regression_scale"]
    record["fit_hash"] = fit_hash(
        three.uns["ragst"], record, *(three.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )
    rg.tl.calibrate(three, **QUIET)
    assert "'kernel_ridge' was made by an earlier release" in caplog.text
    caplog.clear()
    calibrated(three, method="kernel_ridge")
    assert "earlier release" not in caplog.text


class TestQuantiles:
    def test_equal_those_of_the_public_path(self, three, sections):
        calibration = calibrated(three, levels=[0.5])
        dense = three.X.toarray().astype(float)
        samples = three.obs["sample"].astype(str).to_numpy()
        centred = np.concatenate([dense[samples == s] - dense[samples == s].mean(axis=0) for s in np.unique(samples)])
        floor = FLOOR * np.sqrt((centred**2).mean(axis=0))
        np.testing.assert_allclose(calibration["floor"], floor, rtol=1e-4)
        scores, donors = [], []
        for held in sections:
            training = {name: one for name, one in sections.items() if name != held}
            others = rg.tl.build_reference(training, use_rep="X_colour", thumbnails=False)
            rg.tl.fit(others, method="knn", n_neighbors=10)
            table = rg.tl.predict(sections[held], others, inplace=False)
            truth = dense[samples == held]
            distance = table.obsm["retrieval_distances"].mean(axis=1)
            far = np.percentile(others.uns["ragst"]["fit"]["distance_quantiles"], 95)
            scale = np.sqrt(table.layers["disagreement"] ** 2 + floor**2) * np.maximum(1, distance / far)[:, None]
            scores.append(np.abs(truth - table.X) / scale)
            donors += [held] * len(truth)
        expected = group_threshold(np.concatenate(scores), np.array(donors), 0.5)
        np.testing.assert_allclose(calibration["quantiles"][:, 0], expected, rtol=1e-3)

    def test_grow_with_the_level(self, three):
        calibration = calibrated(shared_out(three, 9), levels=[0.9, 0.5, 0.8])
        np.testing.assert_array_equal(calibration["levels"], [0.5, 0.8, 0.9])
        assert (np.diff(calibration["quantiles"], axis=1) >= 0).all()
        assert calibration["quantiles"].dtype == np.float32
        assert calibration["share_inside"] == pytest.approx([0.5, 0.8, 0.9], abs=0.05)

    @pytest.mark.parametrize("method", ["ridge", "mean", "rag"])
    def test_every_kind_of_method_has_them(self, three, method, quick):
        calibration = calibrated(three, method, quick(method), levels=[0.5])
        assert np.isfinite(calibration["quantiles"]).all()

    @pytest.mark.slow
    def test_the_same_after_a_round_trip(self, three, tmp_path):
        rg.tl.fit(three, method="knn_supervised", n_neighbors=10)
        rg.io.write_reference(three, tmp_path / "r.zarr.zip")
        back = rg.io.read_reference(tmp_path / "r.zarr.zip")
        for reference in (three, back):
            rg.tl.calibrate(reference, levels=[0.5], **QUIET)
        np.testing.assert_array_equal(*(one.uns["ragst"]["calibration"]["quantiles"] for one in (three, back)))


class TestUnit:
    @pytest.mark.parametrize(
        ("n_donors", "at_half", "at_nine_tenths"),
        [(2, "donor", "spot"), (3, "donor", "spot"), (9, "donor", "donor")],
    )
    def test_donors_where_there_are_enough(self, three, n_donors, at_half, at_nine_tenths):
        calibration = calibrated(shared_out(three, n_donors), levels=[0.5, 0.9])
        assert list(calibration["units"]) == [at_half, at_nine_tenths]
        assert calibration["n_donors"] == n_donors
        assert calibration["n_spots"] == three.n_obs

    def test_else_sections_by_the_same_rule(self, rng):
        scores = rng.random((90, 4)).astype(np.float32)
        groups = {"donor": np.arange(90) // 30, "section": np.arange(90) // 10}
        quantiles, units, _ = quantiles_by_level(scores, np.array([0.5, 0.9, 0.95]), groups)
        assert units == ["donor", "section", "spot"]
        np.testing.assert_array_equal(quantiles[:, 1], group_threshold(scores, groups["section"], 0.9))

    def test_groups_that_scored_nothing_do_not_count(self, rng):
        scores = rng.random((90, 4)).astype(np.float32)
        scores[:10] = np.nan
        _, units, _ = quantiles_by_level(scores, np.array([0.9]), {"donor": np.arange(90) // 10})
        assert units == ["spot"]

    def test_sections_of_one_donor_are_no_donors(self, three):
        three.obs["donor"] = pd.Categorical(["one"] * three.n_obs)
        assert list(calibrated(three, levels=[0.5, 0.9])["units"]) == ["section", "spot"]

    def test_blocks_of_one_section_are_spots(self, three):
        one = three[three.obs["sample"] == "donor1"].copy()
        assert list(calibrated(one, levels=[0.3, 0.9])["units"]) == ["spot", "spot"]


class TestFolds:
    def test_more_donors_than_folds_are_held_out_together(self, three):
        reference = shared_out(three, 10)
        folds = outer_folds(open_bank(reference, fitted=False), None, n_folds=4)
        assert len(folds) == 4
        donors = reference.obs["donor"].astype(str).to_numpy()
        assert sorted(np.concatenate([fold.held for fold in folds])) == list(range(reference.n_obs))
        held = [set(donors[fold.held]) for fold in folds]
        assert sum(map(len, held)) == 10
        assert max(map(len, held)) <= 3
        for fold, own in zip(folds, held, strict=True):
            assert not own & set(donors[fold.training])
            assert set(fold.name.split(", ")) == own

    def test_donors_stay_the_unit(self, three):
        calibration = calibrated(shared_out(three, 9), levels=[0.9], n_folds=3)
        assert list(calibration["units"]) == ["donor"]
        assert calibration["n_donors"] == 9

    def test_refits_repeat_what_was_fitted(self, three, monkeypatch):
        three.obs["batch"] = pd.Categorical(np.arange(three.n_obs) % 2)
        options = {"alphas": (1.0, 10.0), "n_components": 5}
        rg.tl.fit(
            three,
            method="ridge",
            n_neighbors=7,
            n_candidates=9,
            metric="cosine",
            options=options,
            rng=3,
            group_key="batch",
        )
        refits = []
        from ragst_sd.tl import _calibrate

        original = _calibrate.fit_tissue

        def spy(part, method, run, **kwargs):
            refits.append({**vars(run), "method": method, "options": asdict(run.options), **kwargs})
            return original(part, method, run, **kwargs)

        monkeypatch.setattr(_calibrate, "fit_tissue", spy)
        calibrate(three, levels=[0.5], **QUIET)
        assert len(refits) == 3
        for one in refits:
            assert {name: one[name] for name in ("method", "n_neighbors", "n_candidates", "metric", "rng")} == {
                "method": "ridge", "n_neighbors": 7, "n_candidates": 9, "metric": "cosine", "rng": 3,
            }  # fmt: skip
            assert one["group_key"] == "batch"
            assert {name: one["options"][name] for name in options} == options


class TestGenes:
    def test_trust_equals_that_of_cross_validation(self, three):
        calibrated(three, levels=[0.5])
        written = three.var[["cv_pearson", "noise_ceiling"]].copy()
        rg.tl.cross_validate(three, methods=["knn"], genes="all", n_genes=20, n_neighbors=10, cited=(), progress=False)
        np.testing.assert_allclose(written, three.var[["cv_pearson", "noise_ceiling"]], rtol=1e-6)
        assert written.notna().to_numpy().mean() > 0.95

    def test_that_never_vary_have_no_interval(self, three, caplog):
        values = three.X.tolil()
        values[:, 3] = 0
        three.X = values.tocsr().astype(np.float32)
        with caplog.at_level(logging.INFO):
            calibration = calibrated(three, levels=[0.5])
        assert np.isnan(calibration["quantiles"][3]).all()
        assert np.isfinite(np.delete(calibration["quantiles"], 3, axis=0)).all()
        assert calibration["floor"][3] == 0
        assert (
            "Intervals at 0.5: donors are the unit" in caplog.text and "1 of 260 genes get no interval" in caplog.text
        )

    def test_of_two_panels(self, sections):
        """A gene that donors 1 and 2 share is calibrated on these; one that donor 1 alone measured cannot be."""
        for name, gone in (("donor2", slice(0, 10)), ("donor3", slice(0, 20))):
            table = sections[name].tables["table"]
            left = np.ones(table.n_vars, dtype=bool)
            left[gone] = False
            sections[name].tables["table"] = table[:, left].copy()
        genes = sections["donor1"].tables["table"].var_names
        reference = rg.tl.build_reference(sections, use_rep="X_colour")
        calibration = calibrated(reference, levels=[0.5])
        quantiles = pd.Series(calibration["quantiles"][:, 0], index=reference.var_names)
        assert quantiles[genes[:10]].isna().all()
        assert quantiles[genes[10:]].notna().all()
        assert reference.var["cv_pearson"][genes[:10]].isna().all()


class TestRecord:
    def test_leaves_fit_and_hashes_as_they_are(self, fitted):
        before, fit = reference_hash(fitted), dict(fitted.uns["ragst"]["fit"])
        rg.tl.calibrate(fitted, levels=[0.5], **QUIET)
        assert reference_hash(fitted) == before
        assert open_bank(fitted).fit.fit_hash == fit["fit_hash"]
        assert fitted.uns["ragst"]["calibration"]["fit_hash"] == fit["fit_hash"]

    def test_a_new_fit_drops_it(self, fitted):
        rg.tl.calibrate(fitted, levels=[0.5], **QUIET)
        rg.tl.fit(fitted, method="knn", n_neighbors=5)
        assert "calibration" not in fitted.uns["ragst"]

    @pytest.mark.slow
    def test_survives_being_written(self, fitted, tmp_path):
        rg.tl.calibrate(fitted, levels=[0.5, 0.9], **QUIET)
        rg.io.write_reference(fitted, tmp_path / "r.zarr.zip")
        back = rg.io.read_reference(tmp_path / "r.zarr.zip").uns["ragst"]["calibration"]
        kept = fitted.uns["ragst"]["calibration"]
        assert set(back) == set(kept)
        for name, value in kept.items():
            np.testing.assert_array_equal(back[name], value)

    def test_serves_a_reference_read_back(self, fitted, query, tmp_path):
        rg.tl.calibrate(fitted, levels=[0.5, 0.9], **QUIET)
        rg.io.write_reference(fitted, tmp_path / "r.zarr.zip")
        tables = [
            rg.tl.predict(query, one, intervals=0.9, inplace=False)
            for one in (fitted, rg.io.read_reference(tmp_path / "r.zarr.zip"))
        ]
        np.testing.assert_array_equal(*(table.layers["upper"] for table in tables))
        assert [table.uns["retrieval"]["interval_unit"] for table in tables] == ["spot", "spot"]


class TestTrust:
    def test_of_another_fit_is_not_handed_on(self, fitted, query, caplog):
        rg.tl.calibrate(fitted, levels=[0.5], **QUIET)
        found = fitted.var["cv_pearson"]
        assert rg.tl.predict(query, fitted, inplace=False).var["cv_pearson"].equals(found)
        rg.tl.fit(fitted, method="mean", progress=False)
        with caplog.at_level(logging.WARNING):
            table = rg.tl.predict(query, fitted, inplace=False)
        assert table.var["cv_pearson"].isna().all()
        assert table.var["noise_ceiling"].notna().any()
        assert "was found for another fit (method 'knn')" in caplog.text
        rg.tl.fit(fitted, method="knn", n_neighbors=10, options={"sharpness": 5.0}, progress=False)
        assert rg.tl.predict(query, fitted, inplace=False).var["cv_pearson"].isna().all()

    def test_of_calibrate_outlives_cross_validation(self, fitted):
        rg.tl.calibrate(fitted, levels=[0.5], **QUIET)
        kept = fitted.var["cv_pearson"].copy()
        rg.tl.cross_validate(fitted, methods=["ridge"], n_genes=20, cited=(), progress=False)
        assert fitted.var["cv_pearson"].equals(kept)

    def test_of_cross_validation_grows_for_one_method_and_starts_anew_for_another(self, reference):
        how = {"cited": (), "progress": False}
        first, second = list(reference.var_names[:5]), list(reference.var_names[5:10])
        rg.tl.cross_validate(reference, methods=["ridge"], genes=first, **how)
        rg.tl.cross_validate(reference, methods=["ridge"], genes=second, **how)
        assert set(reference.var_names[reference.var["cv_pearson"].notna()]) == {*first, *second}
        rg.tl.cross_validate(reference, methods=["mean"], genes=first, **how)
        assert set(reference.var_names[reference.var["cv_pearson"].notna()]) == set(first)
        assert reference.uns["ragst"]["gene_trust"]["method"] == "mean"

    def test_is_that_of_the_fitted_method_if_it_was_compared(self, fitted):
        rg.tl.cross_validate(fitted, methods=["ridge", "knn"], n_genes=20, cited=(), progress=False)
        assert fitted.uns["ragst"]["gene_trust"]["method"] == "knn"


class TestBadInput:
    @pytest.mark.parametrize("levels", [[], [0.5, 1.0], [0], 90])
    def test_levels(self, fitted, levels):
        with pytest.raises(ValueError, match=r"`levels` is .*name coverages above 0 and below 1"):
            rg.tl.calibrate(fitted, levels=levels)
        assert "calibration" not in fitted.uns["ragst"]

    @pytest.mark.parametrize("n_folds", [1, 0, 2.5])
    def test_folds(self, fitted, n_folds):
        with pytest.raises(ValueError, match="`n_folds` is"):
            rg.tl.calibrate(fitted, n_folds=n_folds)

    def test_unfitted(self, reference):
        with pytest.raises(ValueError, match=r"not fitted. Run `rg.tl.fit"):
            rg.tl.calibrate(reference)
