"""`rg.tl.fit`."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ragst_sd as rg


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


@pytest.mark.parametrize(
    ("donors", "samples", "expected"),
    [(["A", "B"], ["s", "t"], "donor"), (["A", "A"], ["s", "t"], "sample"), (["A", "A"], ["s", "s"], "spatial blocks")],
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
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.03)


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
