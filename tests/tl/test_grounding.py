"""How well grounded predictions are: held-out donors are in reference, foreign tissue is not."""

from __future__ import annotations

import logging
from functools import cache

import anndata as ad
import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.io import read_st

USE_REP = "X_colour"


@pytest.fixture(scope="module")
def _donors(embed):
    """Five donors, one section each."""
    sections = rg.datasets.synthetic(n_donors=5, n_genes=260, image_px=1000, mpp=1.0, rng=2)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, **embed)
    return sections


@pytest.fixture
def donors(_donors):
    return dict(_donors)


def with_picture(sdata, change, embed):
    """The same spots on a changed picture; (3, y, x) in and out, of 8 bits."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    picture = sdata.images["he"]["scale0"]["image"].to_numpy()
    image = Image2DModel.parse(
        change(picture.astype(float)).clip(0, 255).astype(np.uint8),
        dims=("c", "y", "x"),
        transformations={"global": Identity()},
    )
    table = sdata.tables["table"].copy()
    changed = SpatialData(
        images={"he": image}, shapes={"spots": sdata.shapes["spots"]}, tables={"table": table}, attrs=sdata.attrs
    )
    rg.pp.embed_tiles(changed, **embed)
    return changed


def predicted_obs(sdata, reference):
    return rg.tl.predict(sdata, reference, genes=list(reference.var_names[:3]), inplace=False).obs


def fitted_on(sections, names, method="knn", **kwargs):
    reference = rg.tl.build_reference({name: sections[name] for name in names}, use_rep=USE_REP, **kwargs)
    rg.tl.fit(reference, method=method, n_neighbors=20, progress=False)
    return reference


@pytest.fixture(scope="module")
def of_four(_donors):
    """(method, standardize) -> a reference of the first four donors, each made once; nobody changes it."""
    return cache(lambda method, standardize: fitted_on(_donors, list(_donors)[:4], method, standardize=standardize))


@pytest.fixture(scope="module")
def foreign(_donors, embed):
    """kind -> the section of the fifth donor on a changed picture, each made once; nobody changes it."""
    return cache(lambda kind: with_picture(_donors["donor5"], FOREIGN[kind], embed))


def leave_one_out(donors, **kwargs):
    """Columns of each donor, predicted from the others."""
    for name, sdata in donors.items():
        yield name, predicted_obs(sdata, fitted_on(donors, [other for other in donors if other != name], **kwargs))


FOREIGN = {
    "noise": lambda picture: np.random.default_rng(0).integers(0, 256, picture.shape),
    "other stain": lambda picture: picture[[1, 0, 1]],
    "negative": lambda picture: 255 - picture,
}


def test_held_out_donors_are_in_reference_and_their_percentiles_are_even(donors):
    flagged, percentiles = {}, []
    for name, obs in leave_one_out(donors):
        flagged[name] = obs["out_of_reference"].mean()
        percentiles.append(obs["distance_percentile"])
    assert max(flagged.values()) <= 0.1
    shares = np.histogram(np.concatenate(percentiles), bins=[0, 25, 50, 75, 100.1])[0] / sum(map(len, percentiles))
    assert shares.min() > 0.15
    assert 30 < np.median(np.concatenate(percentiles)) < 70


def test_held_out_donors_are_in_reference_without_standardisation(donors):
    for name, obs in leave_one_out(donors, standardize=False):
        assert obs["out_of_reference"].mean() <= 0.1, name


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("standardize", [True, False])
def test_foreign_pictures_are_out_of_reference(of_four, foreign, kind, standardize, caplog):
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        obs = predicted_obs(foreign(kind), of_four("knn", standardize))
    assert obs["out_of_reference"].mean() >= 0.95
    assert "spots look unlike every section of the reference" in caplog.text
    if standardize:
        # The section is standardised by itself, so that its distance in phi-space alone would not tell.
        assert (obs["distance_percentile"] > 98).mean() < 0.95


@pytest.mark.parametrize("method", ["mean", "ridge"])
def test_methods_that_cite_nobody_are_judged_alike(donors, of_four, foreign, method):
    raw = [predicted_obs(donors["donor5"], of_four(which, True)) for which in ("knn", method)]
    np.testing.assert_allclose(*(obs["appearance_distance"] for obs in raw))
    assert predicted_obs(foreign("negative"), of_four(method, True))["out_of_reference"].all()


def test_one_donor_is_calibrated_on_blocks(donors, foreign):
    reference = fitted_on(donors, ["donor1"])
    fit = reference.uns["ragst"]["fit"]
    assert fit["inner_groups"] == "spatial blocks"
    assert np.isfinite(fit["appearance"]["threshold"])
    assert predicted_obs(foreign("negative"), reference)["out_of_reference"].mean() >= 0.95


def test_own_donor_does_not_make_a_section_look_familiar(donors):
    """Whoever is predicted, sections of the same donor are left out of the comparison."""
    reference = fitted_on(donors, list(donors))
    strict = predicted_obs(donors["donor5"], reference)
    itself = rg.tl.predict(
        donors["donor5"], reference, genes=list(reference.var_names[:3]), exclude=(), inplace=False
    ).obs
    assert (itself["appearance_distance"] <= strict["appearance_distance"]).all()
    assert itself["appearance_distance"].median() < strict["appearance_distance"].median()


def test_the_check_changes_with_its_fit_only(donors):
    """The threshold is part of what the hash of the fit covers."""
    reference = fitted_on(donors, ["donor1", "donor2"])
    reference.uns["ragst"]["fit"]["appearance"]["threshold"] = np.float64(1e9)
    with pytest.raises(ValueError, match="does not match its hash"):
        predicted_obs(donors["donor5"], reference)


@pytest.mark.slow
def test_colon_is_out_of_a_bulb_reference_and_held_out_bulbs_are_not(data_dir):
    how = {"model": "texture", "context": (1,), "key_added": "X", "progress": False}

    def section(name, n_spots):
        path = data_dir / "histology" / f"{name}.h5ad"
        counts = ad.read_h5ad(path)
        counts = counts[np.sort(np.random.default_rng(0).permutation(counts.n_obs)[:n_spots])].copy()
        sdata = read_st(counts, path.with_suffix(".jpg"), sample=path.stem)
        rg.pp.embed_tiles(sdata, **how)
        return sdata

    bulbs = {name: section(f"mob/{name}", 120) for name in ("rep01", "rep04", "rep09", "rep11")}
    donor_of = {"rep01": "A", "rep04": "A", "rep09": "D", "rep11": "E"}

    def fitted_without(donor):
        known = {name: sdata for name, sdata in bulbs.items() if donor_of[name] != donor}
        reference = rg.tl.build_reference(known, use_rep="X", thumbnails=False)
        rg.tl.fit(reference, method="knn", progress=False)
        return reference

    for donor in ("A", "D", "E"):
        reference = fitted_without(donor)
        held = [predicted_obs(bulbs[name], reference) for name in bulbs if donor_of[name] == donor]
        assert np.mean(np.concatenate([obs["out_of_reference"] for obs in held])) <= 0.1, donor
    of_colon = predicted_obs(section("colon/d0", 80), fitted_without(None))
    assert of_colon["out_of_reference"].mean() >= 0.95
    # What sets it apart is in the raw embedding alone.
    assert (of_colon["distance_percentile"] > 98).mean() < 0.5
