"""Gaps of a section filled from its own measured spots and other donors: prediction, held-out blocks, intervals."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd._bank import open_bank
from ragst_sd.tl._folds import block_folds, training_part

FAST = {"n_genes": 20, "n_neighbors": 8, "progress": False}
# Widest field of the sections: 32 px x 2 µm x 2.5.
FIELD = 160


@pytest.fixture
def known(query):
    """Which spots of the query were measured."""
    return np.random.default_rng(0).random(query.tables["table"].n_obs) < 0.5


@pytest.fixture
def whole(query):
    """The query as it was measured throughout."""
    return query.tables["table"].copy()


@pytest.fixture
def gappy(query, known, whole):
    """A section with counts in half of its spots."""
    counts = query.tables["table"].X.toarray()
    counts[~known] = 0
    query.tables["table"].X = counts
    return query


def built(sections, gappy, *names, method="knn", **kwargs):
    members = {"mine": gappy} | {name: sections[name] for name in names}
    reference = rg.tl.build_reference(members, use_rep="X_colour", thumbnails=False)
    rg.tl.fit(reference, method=method, progress=False, **kwargs)
    return reference


def filled(gappy, reference, **kwargs):
    return rg.tl.predict(gappy, reference, exclude=(), inplace=False, **kwargs)


class TestPredict:
    def test_own_spots_and_other_donors_are_cited_but_no_spot_by_itself(self, sections, gappy, known):
        table = filled(gappy, built(sections, gappy, "donor1", n_neighbors=12))
        assert np.isfinite(table.X).all()
        np.testing.assert_array_equal(table.obs["measured"], known)
        cited = rg.get.neighbors(table)
        assert set(cited["donor"]) == {"donor1", "donor3"}
        assert not (cited["reference"] == "mine:" + cited["query"]).any()
        # Spots of other sections have the same names, and are other spots.
        assert (cited["reference"] == "donor1:" + cited["query"]).any()

    def test_spots_are_known_again_under_other_names(self, sections, gappy, known):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        expected = filled(gappy, reference)
        gappy.tables["table"].obs_names = [f"x{i}" for i in range(len(known))]
        table = filled(gappy, reference)
        np.testing.assert_array_equal(table.obs["measured"], known)
        np.testing.assert_array_equal(table.X, expected.X)

    def test_level_is_that_of_the_measured_spots(self, sections, gappy):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        table = filled(gappy, reference)
        x, samples = reference.X.toarray(), reference.obs["sample"].astype(str)
        means = {sample: x[samples == sample].mean(axis=0) for sample in set(samples)}
        cited = rg.get.neighbors(table, obs_names=table.obs_names[0])
        at = reference.obs_names.get_indexer(cited["reference"])
        parts = [w * (x[row] - means[samples.iloc[row]]) for w, row in zip(cited["weight"], at, strict=True)]
        np.testing.assert_allclose(table.X[0], means["mine"] + np.sum(parts, axis=0), atol=1e-4)

    def test_methods_that_learned_from_the_section(self, sections, gappy, known):
        for method in ("ridge", "mean"):
            table = filled(gappy, built(sections, gappy, "donor1", method=method))
            np.testing.assert_array_equal(table.obs["measured"], known)

    def test_stack_adds_up_and_is_found_again(self, sections, gappy, known, quick):
        reference = built(sections, gappy, "donor1", method="rag", n_neighbors=12, options=quick("rag"))
        gappy.tables["predicted"] = table = filled(gappy, reference)
        for spot in (np.flatnonzero(known)[0], np.flatnonzero(~known)[0]):
            lines = rg.get.explain(
                gappy, reference, obs_names=table.obs_names[spot], genes=table.var_names[0], terms="all"
            )
            np.testing.assert_allclose(lines["contribution"].sum(), table.X[spot, 0], atol=1e-4)
        changes = rg.get.influence(gappy, reference, group_key="sample", progress=False).set_index("group")
        assert changes.loc["mine", "n_rows"] == known.sum()
        assert changes.loc["mine", "mean_abs_change"] > 0

    def test_by_default_the_own_spots_are_left_out(self, sections, gappy):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        table = rg.tl.predict(gappy, reference, inplace=False)
        assert "measured" not in table.obs
        assert set(rg.get.neighbors(table)["donor"]) == {"donor1"}

    def test_lazy_reference(self, sections, gappy, tmp_path):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
        lazy = rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=True)
        expected, table = filled(gappy, reference), filled(gappy, lazy)
        np.testing.assert_array_equal(table.obs["measured"], expected.obs["measured"])
        np.testing.assert_allclose(table.X, expected.X, atol=1e-5)

    def test_spots_without_a_measurement_may_be_nan(self, sections, gappy, known):
        zeros = built(sections, gappy)
        gappy.tables["table"].X[~known] = np.nan
        nans = built(sections, gappy)
        assert nans.uns["ragst"]["content_hash"] == zeros.uns["ragst"]["content_hash"]
        gappy.tables["table"].X[~known, 1:] = 0
        with pytest.raises(ValueError, match="NaN or infinite"):
            built(sections, gappy)

    def test_without_own_spots_nothing_changes(self, sections, query, fitted, caplog):
        with caplog.at_level(logging.WARNING):
            table = filled(query, fitted)
        assert "but the reference has none" in caplog.text
        assert not table.obs["measured"].any()
        np.testing.assert_array_equal(table.X, rg.tl.predict(query, fitted, inplace=False).X)

    def test_nothing_measured(self, sections, gappy):
        gappy.tables["table"].X[:] = 0
        with pytest.raises(ValueError, match="no spot on tissue has both an embedding and counts"):
            built(sections, gappy)

    def test_a_single_row_does_not_predict_itself(self, sections, gappy):
        reference = built(sections, gappy, n_neighbors=5)
        with pytest.raises(ValueError, match="does not cite itself"):
            filled(gappy, reference, where=np.arange(reference.n_obs) == 3)


class TestEvaluate:
    def test_spots_that_were_learned_from_are_left_out(self, sections, gappy, known, whole):
        table = filled(gappy, built(sections, gappy, "donor1", n_neighbors=12))
        scores = rg.tl.evaluate(table, truth=whole, metrics=["pearson"])
        gaps = rg.tl.evaluate(table[~known].copy(), truth=whole[~known].copy(), metrics=["pearson"])
        np.testing.assert_allclose(scores.query("metric == 'pearson'").value, gaps.query("metric == 'pearson'").value)
        assert scores.query("metric == 'n_spots'").value.item() == (~known).sum()

    def test_nothing_held_out_is_no_accuracy(self, sections, gappy):
        gappy.tables["predicted"] = filled(gappy, built(sections, gappy, "donor1"))
        with pytest.raises(ValueError, match=r"none is held out.*split='block'"):
            rg.tl.evaluate(gappy)


class TestBlocks:
    def test_no_field_of_view_reaches_into_a_held_out_block(self, three):
        folds = block_folds(open_bank(three, fitted=False), None)
        xy, samples = three.obs[["x_um", "y_um"]].to_numpy(), three.obs["sample"].to_numpy()
        assert sorted(np.concatenate([fold.held for fold in folds])) == list(range(three.n_obs))
        for fold in folds:
            assert not set(fold.held) & set(fold.training)
            apart = np.abs(xy[fold.held][:, None] - xy[fold.training][None]).max(axis=2)
            same = samples[fold.held][:, None] == samples[fold.training][None]
            assert same.any()
            assert (apart[same] >= FIELD).all()
            # What is in neither lies within the margin.
            rest = np.setdiff1d(np.arange(three.n_obs), [*fold.held, *fold.training])
            apart = np.abs(xy[fold.held][:, None] - xy[rest][None]).max(axis=2)
            apart[samples[fold.held][:, None] != samples[rest][None]] = np.inf
            assert (apart.min(axis=0) < FIELD).all()

    @pytest.mark.parametrize("method", ["knn", "ridge"])
    def test_same_scores_as_fit_predict_evaluate(self, three, sections, method):
        genes = list(three.var_names[:20])
        scores = rg.tl.cross_validate(three, methods=[method], split="block", genes=genes, **FAST)
        assert set(scores["fold"]) == {f"blocks of donor{i}" for i in (1, 2, 3)}
        bank = open_bank(three, fitted=False)
        fold = block_folds(bank, None)[0]
        part = three[fold.training].copy()
        rg.tl.fit(part, method=method, n_neighbors=FAST["n_neighbors"])
        whole = sections["donor2"].tables["table"]
        spots = [name.partition(":")[2] for name in three.obs_names[fold.held] if name.startswith("donor2:")]
        table = filled(sections["donor2"], part, genes=genes)[spots].copy()
        expected = rg.tl.evaluate(table, truth=whole[spots].copy(), genes=genes, metrics=["pearson", "rmse"])
        for metric in ("pearson", "rmse"):
            own = scores[(scores["sample"] == "donor2") & (scores["metric"] == metric)]
            # A line for each block, in their order.
            own = own[~own.duplicated("gene")].set_index("gene")["value"]
            theirs = expected[expected["metric"] == metric].set_index("gene")["value"]
            np.testing.assert_allclose(own, theirs[own.index], atol=1e-4)

    def test_margin_of_unknown_origin_is_three_pitches(self, sections, caplog):
        for sdata in sections.values():
            sdata.tables["table"].obsm["X_mine"] = sdata.tables["table"].obsm["X_colour"]
        reference = rg.tl.build_reference(sections, use_rep="X_mine")
        with caplog.at_level(logging.WARNING):
            folds = block_folds(open_bank(reference, fitted=False), None)
        assert "3 distances between spots, 300 µm" in caplog.text
        given = block_folds(open_bank(reference, fitted=False), 300)
        assert [list(fold.training) for fold in folds] == [list(fold.training) for fold in given]

    def test_a_section_of_one_spot_is_learned_from(self, sections, caplog):
        for sdata in sections.values():
            sdata.tables["table"].obsm["X_mine"] = sdata.tables["table"].obsm["X_colour"]
        reference = rg.tl.build_reference(sections, use_rep="X_mine")
        first = np.flatnonzero(reference.obs["sample"] == "donor1")[:1]
        reference = reference[np.concatenate([first, np.flatnonzero(reference.obs["sample"] != "donor1")])].copy()
        with caplog.at_level(logging.WARNING):
            folds = block_folds(open_bank(reference, fitted=False), None)
        assert "Too small to hold out blocks with their margin: 'donor1' of 0 x 0 µm" in caplog.text
        assert all(0 in fold.training for fold in folds)

    def test_a_section_that_is_too_small_is_learned_from(self, three, caplog):
        few = np.flatnonzero(three.obs["sample"] == "donor1")[:3]
        reference = three[np.concatenate([few, np.flatnonzero(three.obs["sample"] != "donor1")])].copy()
        with caplog.at_level(logging.WARNING):
            folds = block_folds(open_bank(reference, fitted=False), None)
        assert "Too small to hold out blocks with their margin: 'donor1' of" in caplog.text
        for fold in folds:
            assert set(range(3)) <= set(fold.training)
            assert not set(range(3)) & set(fold.held)

    def test_copies_of_a_section_are_cut_together(self, three):
        bank = open_bank(three, fitted=False)
        bank.header.sections.image_hash[:] = "the same"
        for fold in block_folds(bank, 10.0):
            xy = three.obs[["x_um", "y_um"]].to_numpy()
            apart = np.abs(xy[fold.held][:, None] - xy[fold.training][None]).max(axis=2)
            assert apart.min() >= 10

    def test_one_donor(self, three):
        one = three[three.obs["donor"] == "donor1"].copy()
        scores = rg.tl.cross_validate(one, methods=["knn"], split="block", **FAST)
        assert set(scores["fold"]) == {"blocks of donor1"}
        panel = rg.pl.benchmark(scores, baseline=None, show=False, return_ax=True)
        assert panel.get_title(loc="left") == "Accuracy on held-out blocks"
        assert np.isfinite(scores.query("metric == 'pearson'")["value"]).any()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"split": "blocks"}, "'blocks'.*'block'"),
            ({"split": "block", "group_key": "donor"}, "`group_key` is 'donor'"),
            ({"margin_um": 100}, "Pass `split='block'`"),
            ({"split": "block", "margin_um": -1}, "`margin_um` is -1"),
            (
                {"split": "block", "margin_um": 600},
                "Nothing is left to learn from.*'donor1' of .* µm with a margin of 600",
            ),
        ],
    )
    def test_refused(self, three, arguments, says):
        with pytest.raises(ValueError, match=says):
            rg.tl.cross_validate(three, methods=["mean"], **FAST, **arguments)

    def test_positions_are_needed(self, three):
        three.obs.loc[three.obs["sample"] == "donor2", "x_um"] = np.nan
        with pytest.raises(ValueError, match=r"those of 'donor2' are unknown.*set_image_mpp"):
            block_folds(open_bank(three, fitted=False), None)

    def test_training_knows_nothing_of_the_block(self, three):
        bank = open_bank(three, fitted=False)
        fold = block_folds(bank, None)[1]
        part = training_part(bank, fold.training, bank.values)
        assert set(part.ids) == set(three.obs_names[fold.training])


class TestIntervals:
    @pytest.fixture
    def calibrated(self, sections, gappy):
        reference = built(sections, gappy, "donor1", "donor2", n_neighbors=12)
        rg.tl.calibrate(reference, levels=[0.5, 0.95], split="block", progress=False)
        return reference

    def test_of_blocks_are_for_gaps(self, calibrated, gappy, sections, known, whole):
        kept = calibrated.uns["ragst"]["calibration"]
        assert kept["split"] == "block"
        assert list(kept["units"]) == ["block", "spot"]
        table = filled(gappy, calibrated, intervals=0.5)
        assert table.uns["retrieval"]["interval_unit"] == "block"
        assert (table.layers["upper"] >= table.layers["lower"]).all()
        assert table.var["cv_pearson"].notna().any()
        scores = rg.tl.evaluate(table, truth=whole, metrics=["coverage"], n_genes=None)
        assert 0.3 < scores.query("metric == 'coverage'")["value"].mean() < 0.7

    def test_of_blocks_are_not_for_other_predictions(self, calibrated, gappy, caplog):
        with pytest.raises(ValueError, match=r"on held-out blocks.*calibrate\(reference, split='donor'\)"):
            rg.tl.predict(gappy, calibrated, intervals=0.5)
        with caplog.at_level(logging.WARNING):
            table = rg.tl.predict(gappy, calibrated, inplace=False)
        assert "was found for held-out blocks" in caplog.text
        assert table.var["cv_pearson"].isna().all()

    def test_of_donors_are_not_for_gaps(self, sections, gappy):
        reference = built(sections, gappy, "donor1", "donor2", n_neighbors=12)
        rg.tl.calibrate(reference, levels=[0.5], progress=False)
        with pytest.raises(ValueError, match=r"on held-out donors.*calibrate\(reference, split='block'\)"):
            filled(gappy, reference, intervals=0.5)


class TestOwnRows:
    """A spot is known as a row of the reference by its place on the image, whatever its name."""

    def test_names_that_agree_in_part(self, sections, gappy, known):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        expected = filled(gappy, reference)
        # Every spot has the name of its neighbour, as rows that are numbered anew have.
        names = gappy.tables["table"].obs_names
        gappy.tables["table"].obs_names = np.roll(names, 1)
        table = filled(gappy, reference)
        np.testing.assert_array_equal(table.obs["measured"], known)
        np.testing.assert_array_equal(table.X, expected.X)

    def test_embeddings_of_another_precision(self, sections, gappy, known):
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        embedding = gappy.tables["table"].obsm["X_colour"]
        noise = np.random.default_rng(0).normal(size=embedding.shape) * 0.02 * embedding.std(axis=0)
        gappy.tables["table"].obsm["X_colour"] = embedding + noise.astype(embedding.dtype)
        np.testing.assert_array_equal(filled(gappy, reference).obs["measured"], known)

    def test_a_section_that_may_not_be_used_is_held_out(self, sections, gappy, known, whole):
        gappy.tables["table"].obs["sample"] = "mine"
        reference = built(sections, gappy, "donor1", n_neighbors=12)
        table = rg.tl.predict(gappy, reference, exclude=("sample",), inplace=False)
        assert not table.obs["measured"].any()
        assert set(rg.get.neighbors(table)["donor"]) == {"donor1"}
        scores = rg.tl.evaluate(table, truth=whole, metrics=["pearson"])
        assert (scores.loc[scores["metric"] == "n_spots", "value"] == len(known)).all()

    def test_a_section_that_is_there_twice_is_refused(self, sections, gappy):
        reference = rg.tl.build_reference(
            {"mine": gappy, "again": gappy, "donor1": sections["donor1"]}, use_rep="X_colour", thumbnails=False
        )
        rg.tl.fit(reference, method="knn", n_neighbors=12, progress=False)
        with pytest.raises(ValueError, match="Sections 'again', 'mine' of the reference hold the same spots"):
            filled(gappy, reference)
