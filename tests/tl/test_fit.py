"""`rg.tl.fit`."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd._bank import open_bank
from ragst_sd.retrieval.episodes import Episodes
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.tl._folds import _margin, fitting_folds

from ..methods import marked


def test_fields_written(reference):
    rg.tl.fit(reference, method="knn", n_neighbors=7, n_candidates=12, options={"n_components": 5})
    fit = reference.uns["ragst"]["fit"]
    assert (fit["method"], fit["n_neighbors"], fit["n_candidates"], fit["inner_groups"]) == ("knn", 7, 12, "donor")
    assert reference.obsm["retrieval_key"].shape == (reference.n_obs, 5)
    assert fit["reference_hash"] == reference.uns["ragst"]["content_hash"]


def test_default_number_of_neighbours_is_logged(reference, caplog):
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        rg.tl.fit(reference, method="knn")
    assert reference.uns["ragst"]["fit"]["n_neighbors"] == min(50, reference.n_obs)
    assert "`n_neighbors` is" in caplog.text


def test_fit_replaces_fit_and_keeps_the_content_hash(reference):
    rg.tl.fit(reference, method="ridge", n_neighbors=10)
    first = dict(reference.uns["ragst"]["fit"])
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    second = reference.uns["ragst"]["fit"]
    assert "coefficients" not in second["parameters"]
    assert first["fit_hash"] != second["fit_hash"]
    assert first["reference_hash"] == second["reference_hash"]


def test_fit_is_deterministic(reference):
    hashes = set()
    for _ in range(2):
        rg.tl.fit(reference, method="ridge", n_neighbors=10)
        hashes.add(reference.uns["ragst"]["fit"]["fit_hash"])
    assert len(hashes) == 1


@pytest.mark.parametrize("missing", ["nan", "NA", " ", None])
def test_rows_without_a_group_are_refused(reference, missing):
    reference.obs["centre"] = np.where(np.arange(reference.n_obs) % 2, "x", "y").astype(object)
    reference.obs.iloc[:3, -1] = missing
    with pytest.raises(ValueError, match=r"`reference.obs\['centre'\]` is empty in 3 rows"):
        rg.tl.fit(reference, method="knn", group_key="centre")


def test_a_group_is_one_however_it_is_stored(reference):
    reference.obs["centre"] = [" 1" if i % 2 else 1.0 for i in range(reference.n_obs)]
    with pytest.raises(ValueError, match="has one group only"):
        rg.tl.fit(reference, method="knn", group_key="centre")


@pytest.mark.parametrize(
    ("donors", "samples", "expected"),
    [
        (["A", "B"], ["s", "t"], "donor"),
        (["A", "A"], ["s", "t"], "spatial blocks"),
        (["A", "A"], ["s", "s"], "spatial blocks"),
    ],
)
def test_what_is_held_out_inside(reference, donors, samples, expected, caplog):
    first = (reference.obs["donor"] == "donor1").to_numpy()
    reference.obs["donor"] = np.where(first, *donors)
    if samples[0] == samples[1]:
        reference = reference[first].copy()
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.fit(reference, method="ridge", n_neighbors=5)
    assert reference.uns["ragst"]["fit"]["inner_groups"] == expected
    assert (expected == "donor") == (not caplog.text)


def test_held_out_rows_are_flagged_at_the_calibrated_rate(sections):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    flagged = [
        rg.tl.predict(sdata, reference, inplace=False).obs["out_of_reference"].mean() for sdata in sections.values()
    ]
    # What lies beyond the 98th percentile of held-out rows.
    assert np.mean(flagged) == pytest.approx(0.02, abs=0.02)


def test_foreign_tissue_is_far(query, fitted):
    near = rg.tl.predict(query, fitted, inplace=False)
    header = query.tables["table"].uns["ragst"]["embeddings"]["X_colour"]
    query.tables["table"].obsm["X_colour"] = query.tables["table"].obsm["X_colour"] + 30 * header["section_std"].astype(
        np.float32
    )
    far = rg.tl.predict(query, fitted, inplace=False)
    assert far.obs["out_of_reference"].all()
    assert not near.obs["out_of_reference"].all()
    assert (far.obs["distance_percentile"] == 100).all()


def fitted_with(reference, method, quick, **kwargs):
    """The reference, fitted, and its fit."""
    arguments = {"n_neighbors": 10, "options": quick(method), "progress": False} | kwargs
    rg.tl.fit(reference, method=method, **arguments)
    return reference, reference.uns["ragst"]["fit"]


def assert_predicts(query, reference):
    table = rg.tl.predict(query, reference, inplace=False)
    assert np.isfinite(table.X).all()
    return table


@pytest.mark.parametrize("method", marked(METHODS))
@pytest.mark.parametrize(
    ("n_sections", "width", "expected", "said"),
    [
        (2, 112, "spatial blocks", "one donor only: a quarter of its sections is held out at a time"),
        (1, 112, "spatial blocks", "one donor only: a quarter of its sections is held out at a time"),
        # Fields of view as wide as the section leave no rows to learn from beside a quarter.
        (2, 5000, "sample", "one donor only: sections are held out"),
        (1, 5000, "spatial blocks", "one section only: four spatial blocks"),
    ],
)
def test_one_donor_is_announced_and_its_parts_are_held_out(
    query, reference, method, n_sections, width, expected, said, quick, caplog, monkeypatch
):
    if n_sections == 1:
        reference = reference[(reference.obs["donor"] == "donor1").to_numpy()].copy()
    reference.obs["donor"] = "donor1"
    monkeypatch.setattr("ragst_sd.tl._folds._margin", lambda *_: width)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        _, fit = fitted_with(reference, method, quick)
    assert said in caplog.text
    assert fit["inner_groups"] == expected
    assert np.isfinite(fit["distance_threshold"])
    assert_predicts(query, reference)


def test_one_donor_is_learned_from_away_from_the_block_that_is_held_out(reference):
    reference.obs["donor"] = "donor1"
    bank = open_bank(reference, fitted=False)
    codes, what, beside = fitting_folds(bank, None)
    assert what == "spatial blocks" and set(codes) == {0, 1, 2, 3}
    xy = reference.obs[["x_um", "y_um"]].to_numpy()
    margin = _margin(bank, reference.obs["sample"].iloc[0], xy, print)
    for block in range(4):
        learned = (codes != block) & ~beside[:, block]
        for section in np.unique(bank.sections):
            held, others = (xy[rows & (bank.sections == section)] for rows in (codes == block, learned))
            assert len(held) and len(others)
            # Square fields of view that do not overlap.
            assert np.abs(others[:, None] - held).max(axis=2).min() >= margin
    # Sections still never serve themselves in an episode.
    np.testing.assert_array_equal(replace(bank, folds=codes, beside=beside).groups[:, 0], bank.sections)


def test_blocks_take_the_place_of_donors_in_episodes(reference, quick, monkeypatch):
    """Rows of one block never serve each other, and no donor code closes the whole bank."""
    reference = reference[(reference.obs["donor"] == "donor1").to_numpy()].copy()
    seen = []
    original = Episodes.predict

    def recorded(self, member, queries, bank, temperature=None):
        evidence, weights = original(self, member, queries, bank, temperature)
        seen.append(tuple(self.kinds.shape))
        return evidence, weights

    monkeypatch.setattr(Episodes, "predict", recorded)
    fitted_with(reference, "rag", quick)
    assert set(seen) == {(4, 1)}


@pytest.mark.parametrize("method", marked(METHODS))
def test_a_donor_with_two_spots_is_no_obstacle(sections, method, quick):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    donor = reference.obs["donor"].to_numpy()
    few = (donor != "donor3") & ((donor != "donor2") | (np.cumsum(donor == "donor2") <= 2))
    reference, fit = fitted_with(reference[few].copy(), method, quick)
    assert (reference.obs["donor"] == "donor2").sum() == 2
    assert fit["inner_groups"] == "donor"
    table = assert_predicts(sections["donor3"], reference)
    if METHODS[method].cites:
        np.testing.assert_allclose(table.obsm["retrieval_weights"].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", marked(METHODS))
def test_genes_without_variance_are_predicted_as_they_are(query, reference, method, quick):
    values = reference.X.toarray()
    values[:, 3], values[:, 7] = 0, 2
    reference.X = type(reference.X)(values)
    options = {
        name: value
        for name, value in {"n_train_genes": 300}.items()
        if name in METHODS[method].options.__dataclass_fields__
    }
    fitted_with(reference, method, quick, options={**quick(method), **options})
    table = assert_predicts(query, reference)
    np.testing.assert_allclose(table.X[:, 3], 0, atol=1e-5)
    np.testing.assert_allclose(table.X[:, 7], 2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "when"), [(0, "before the first step"), (3, "inside"), (15, "in the last training")])
def test_an_interrupted_fit_keeps_its_best_state(query, reference, calls, when, quick, monkeypatch, caplog, tmp_path):
    original, n = Episodes.loss, []

    def interrupted(self, *args):
        n.append(1)
        if len(n) == calls + 1:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Episodes, "loss", interrupted)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        _, fit = fitted_with(reference, "rag", quick)
    assert "was interrupted after" in caplog.text
    assert "best state so far is kept" in caplog.text
    assert fit["parameters"]["interrupted"]
    first = assert_predicts(query, reference)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    assert back.uns["ragst"]["fit"]["parameters"]["interrupted"]
    np.testing.assert_array_equal(rg.tl.predict(query, back, inplace=False).X, first.X)


def test_a_fit_that_ran_through_says_so(reference, quick):
    _, fit = fitted_with(reference, "rag", quick)
    assert not fit["parameters"]["interrupted"]


def test_an_interrupted_mlp_still_predicts(query, reference, quick, monkeypatch, caplog):
    from ragst_sd.retrieval import mlp

    n, original = [], mlp.section_correlation

    def interrupted(*args):
        n.append(1)
        if len(n) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(mlp, "section_correlation", interrupted)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        fitted_with(reference, "mlp", quick)
    assert "was interrupted after 2 of 6 steps" in caplog.text
    assert_predicts(query, reference)
