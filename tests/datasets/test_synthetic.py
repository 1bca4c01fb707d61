from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.sparse import issparse
from scipy.spatial import cKDTree

from ragst_sd.datasets._synthetic import (
    MARKERS,
    NAMED_GENES,
    draw_counts,
    draw_programmes,
    expected_counts,
    synthetic,
)
from ragst_sd.datasets._tissue import TISSUES

SMALL = {"image_px": 500, "n_genes": 260}


def picture(sdata):
    return np.asarray(sdata["he"]["scale0"].image.compute()) if "scale0" in sdata["he"] else np.asarray(sdata["he"])


def log_normalised(table):
    counts = table.X.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def digest(sdatas):
    state = hashlib.sha256()
    for name, sdata in sdatas.items():
        table = sdata["table"]
        state.update(name.encode())
        for array in (picture(sdata), table.X.toarray(), table.layers["expected"], table.obsm["spatial"]):
            state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def donors():
    return synthetic(n_donors=2)


@pytest.mark.slow
def test_three_donors_take_less_than_ten_seconds():
    start = time.process_time()
    assert list(synthetic()) == ["donor1", "donor2", "donor3"]
    assert time.process_time() - start < 10


def test_elements_follow_the_contract(donors):
    assert list(donors) == ["donor1", "donor2"]
    for name, sdata in donors.items():
        assert sdata.attrs["ragst"]["image_mpp"] == {"he": 1.0}
        image = sdata["he"]["scale0"].image
        assert image.dims == ("c", "y", "x") and image.shape == (3, 2000, 2000) and image.dtype == np.uint8
        assert max(image.chunksizes["y"]) <= 512
        assert len(sdata["he"].children) > 1
        table, spots = sdata["table"], sdata["spots"]
        assert issparse(table.X) and table.X.format == "csr" and table.X.dtype == np.float32
        assert np.array_equal(table.X.data, np.round(table.X.data)) and table.X.min() >= 0
        assert table.shape[1] == 400 and table.var_names.is_unique and table.obs_names.is_unique
        assert (table.obs["donor"] == name).all() and (table.obs["sample"] == name).all()
        assert (table.obs["region"] == "spots").all()
        assert list(table.obs["spot_id"]) == list(spots.index)
        np.testing.assert_allclose(table.obsm["spatial"], np.column_stack([spots.geometry.x, spots.geometry.y]))
        assert set(sdata.coordinate_systems) == {"global"}


def test_spots_form_the_visium_grid_within_the_picture_and_on_tissue(donors):
    for sdata in donors.values():
        xy, spots = np.asarray(sdata["table"].obsm["spatial"]), sdata["spots"]
        assert 300 <= len(xy) <= 460
        np.testing.assert_allclose(spots["radius"], 27.5)
        assert xy.min() >= 27.5 and xy.max() <= 2000 - 27.5
        nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
        assert np.median(nearest) == pytest.approx(100)
        assert nearest.min() > 99.9
        assert (sdata["table"].obsm["tissue_fraction"].sum(1) >= 0.5).all()


def test_fractions_agree_with_the_label_image(donors):
    sdata = donors["donor1"]
    table, labels = sdata["table"], np.asarray(sdata["tissue"])
    scale = 2000 / labels.shape[0]
    rows, cols = (np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5) * scale
    for i in range(0, table.n_obs, 25):
        x, y = table.obsm["spatial"][i]
        under = labels[np.hypot(rows - y, cols - x) <= 27.5]
        truth = [(under == k + 1).mean() for k in range(len(TISSUES))]
        np.testing.assert_allclose(table.obsm["tissue_fraction"][i], truth, atol=0.06)
    assert (table.obs["label"].to_numpy() == np.array(TISSUES)[table.obsm["tissue_fraction"].argmax(1)]).all()


def test_every_tissue_is_drawn_and_looks_its_part(donors):
    for sdata in donors.values():
        image = picture(sdata).astype(float)
        coarse = np.asarray(sdata["tissue"])
        # The label of a cell of 4 x 4 pixels was read at its pixel (2, 2).
        pixels = image[:, 2::4, 2::4]
        colour = {name: pixels[:, coarse == k].mean(1) for k, name in enumerate(("glass", *TISSUES))}
        assert all((coarse == k + 1).mean() > 0.01 for k in range(len(TISSUES)))
        assert colour["glass"].min() > 220
        assert colour["adipose"].mean() > colour["stroma"].mean() + 30
        assert colour["stroma"][0] > colour["stroma"][1] + 30, "collagen is pink"
        assert colour["immune"][0] < colour["stroma"][0] - 20, "lymphocytes take up haematoxylin"
        assert colour["immune"].mean() < colour["stroma"].mean()


def test_markers_are_higher_in_their_tissue(donors):
    for sdata in donors.values():
        table = sdata["table"]
        values = log_normalised(table)
        fractions = np.asarray(table.obsm["tissue_fraction"])
        for k, name in enumerate(TISSUES):
            own = values[:, (table.var["marks"] == name).to_numpy()].mean(1)
            inside, outside = fractions[:, k] > 0.6, fractions[:, k] < 0.05
            assert own[inside].mean() > own[outside].mean() + 1
    assert {"EPCAM", "COL1A1", "CD3E", "PTPRC", "ADIPOQ"} <= set(table.var_names)


def test_gradients_drive_their_genes_and_noise_follows_nothing(donors):
    for sdata in donors.values():
        table = sdata["table"]
        values = log_normalised(table)
        names = list(table.uns["truth"]["gradients"])
        for column, name in enumerate(names):
            own = values[:, (table.var["marks"] == name).to_numpy()].mean(1)
            tissue = np.column_stack([np.ones(len(own)), table.obsm["tissue_fraction"]])
            # Beyond what the tissue explains.
            residual = own - tissue @ np.linalg.lstsq(tissue, own, rcond=None)[0]
            assert np.corrcoef(residual, table.obsm["gradients"][:, column])[0, 1] > 0.15
        unrelated = values[:, (table.var["kind"] == "noise").to_numpy()]
        for k in range(len(TISSUES)):
            r = [np.corrcoef(gene, table.obsm["tissue_fraction"][:, k])[0, 1] for gene in unrelated.T]
            assert abs(np.mean(r)) < 0.15


def test_depth_grows_with_nuclei_in_the_picture(donors):
    for sdata in donors.values():
        table = sdata["table"]
        depth = np.asarray(table.X.sum(1)).ravel()
        assert 2500 < depth.mean() < 6000
        assert np.corrcoef(depth, table.obs["n_nuclei"])[0, 1] > 0.3
        # Dense spots are dark in red, where haematoxylin absorbs and eosin does not.
        red = picture(sdata)[0]
        dark = [(red[y - 19 : y + 19, x - 19 : x + 19] < 130).mean() for x, y in table.obsm["spatial"].astype(int)]
        assert np.corrcoef(dark, table.obs["n_nuclei"])[0, 1] > 0.6


def test_counts_scatter_around_their_expectation(donors):
    table = donors["donor1"].tables["table"]
    x, expected = table.X.toarray(), np.asarray(table.layers["expected"], float)
    assert expected.dtype.kind == "f" and table.layers["expected"].dtype == np.float32
    plain = (table.var["kind"] != "noise").to_numpy()
    variance = expected + 0.12 * expected**2
    assert ((x - expected) ** 2 / variance)[:, plain].mean() == pytest.approx(1, abs=0.08)
    assert x.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_truth_has_its_shapes(donors):
    for sdata in donors.values():
        table = sdata["table"]
        truth = table.uns["truth"]
        assert list(truth["tissues"]) == list(TISSUES)
        assert table.varm["programmes"].shape == (400, len(TISSUES))
        np.testing.assert_allclose(table.varm["programmes"].sum(0), 1, rtol=1e-4)
        assert table.varm["effects"].shape == (400, len(truth["gradients"]))
        assert table.obsm["gradients"].shape == (table.n_obs, len(truth["gradients"]))
        assert truth["donor_shift"].shape == (400,)
        assert table.layers["expected"].shape == table.shape
    first, second = (sdata["table"] for sdata in donors.values())
    np.testing.assert_array_equal(first.varm["programmes"], second.varm["programmes"])
    assert np.abs(first.uns["truth"]["donor_shift"] - second.uns["truth"]["donor_shift"]).mean() > 0.1


def test_donors_differ_in_stain_more_than_sections_of_a_donor():
    sections = synthetic(n_donors=3, n_sections=2, **SMALL)
    assert list(sections)[:3] == ["donor1_section1", "donor1_section2", "donor2_section1"]
    assert set(sections["donor2_section1"]["table"].obs["donor"]) == {"donor2"}
    hues = []
    for sdata in sections.values():
        labels, pixels = np.asarray(sdata["tissue"]), picture(sdata)[:, 2::4, 2::4].astype(float)
        light = np.median(pixels[:, labels == 0], axis=1)
        absorbance = -np.log(np.clip(pixels[:, labels == 1], 1, None) / light[:, None]).mean(1)
        # Sections of one donor differ in thickness, which scales the absorbance and leaves its direction alone.
        hues.append(absorbance / np.linalg.norm(absorbance))
    hues = np.array(hues).reshape(3, 2, 3)
    within = np.abs(hues[:, 0] - hues[:, 1]).mean()
    between = min(np.abs(hues[i, 0] - hues[j, 0]).mean() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > 3 * within
    shifts = [sdata["table"].uns["truth"]["donor_shift"] for sdata in sections.values()]
    np.testing.assert_array_equal(shifts[0], shifts[1])


@pytest.mark.slow
def test_same_seed_same_tissue_in_another_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_synthetic as t;"
        "print(t.digest(t.synthetic(n_donors=1, rng=7, **t.SMALL)))"
    )
    here = __file__.rsplit("/", 1)[0]
    out = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == digest(synthetic(n_donors=1, rng=7, **SMALL))


def test_a_donor_does_not_depend_on_the_others():
    one, two = synthetic(n_donors=1, **SMALL), synthetic(n_donors=2, **SMALL)
    assert digest(one) == digest({"donor1": two["donor1"]})
    assert digest({"a": two["donor1"]}) != digest({"a": two["donor2"]})
    assert digest(one) != digest(synthetic(n_donors=1, rng=1, **SMALL))
    assert digest(one) == digest(synthetic(n_donors=1, rng=np.random.default_rng(0), **SMALL))


def test_roundtrip_through_zarr(tmp_path):
    from spatialdata import read_zarr

    sdata = synthetic(n_donors=1, **SMALL)["donor1"]
    sdata.write(tmp_path / "donor.zarr")
    back = read_zarr(tmp_path / "donor.zarr")
    assert digest({"a": back}) == digest({"a": sdata})
    assert back.attrs["ragst"]["image_mpp"]["he"] == 1.0
    np.testing.assert_array_equal(np.asarray(back["tissue"]), np.asarray(sdata["tissue"]))
    table = back["table"]
    assert table.obs["label"].astype(str).tolist() == sdata["table"].obs["label"].astype(str).tolist()
    for key, value in sdata["table"].uns["truth"].items():
        np.testing.assert_array_equal(table.uns["truth"][key], value)
    for key in ("programmes", "effects"):
        np.testing.assert_array_equal(table.varm[key], sdata["table"].varm[key])


@pytest.mark.parametrize(("mpp", "image_px"), [(0.5, 800), (2.0, 300)])
def test_other_resolutions(mpp, image_px):
    sdata = synthetic(n_donors=1, mpp=mpp, image_px=image_px, n_genes=260, n_spots=9)["donor1"]
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == mpp
    assert sdata["table"].n_obs == 9
    xy = sdata["table"].obsm["spatial"]
    np.testing.assert_allclose(sdata["spots"]["radius"], 27.5 / mpp)
    assert cKDTree(xy).query(xy, k=2)[0][:, 1] == pytest.approx(100 / mpp)
    middle = np.hypot(*(xy - image_px / 2).T) * mpp
    assert middle.max() < 200


def test_expected_counts_against_a_loop():
    rng = np.random.default_rng(3)
    programmes = draw_programmes(rng, 250)
    fractions, gradients = rng.dirichlet(np.ones(4), 5), rng.random((5, 2))
    shift, depth = rng.normal(0, 0.2, 250), rng.uniform(500, 2000, 5)
    rna = np.array([0.5, 1.0, 0.9, 0.25])
    found = expected_counts(programmes, fractions, gradients, shift, depth)
    for s in range(5):
        rate = np.zeros(250)
        for g in range(250):
            mixture = sum(fractions[s, t] * rna[t] * programmes.loadings[g, t] for t in range(4))
            rate[g] = mixture * np.exp(gradients[s] @ programmes.effects[g] + shift[g])
        np.testing.assert_allclose(found[s], depth[s] * rate / rate.sum())


def test_counts_have_negative_binomial_moments():
    expected = np.tile([0.5, 5.0, 50.0], (40_000, 1))
    dispersion = np.array([0.1, 0.5, 1.0])
    counts = draw_counts(np.random.default_rng(4), expected, dispersion)
    np.testing.assert_allclose(counts.mean(0), expected[0], rtol=0.03)
    np.testing.assert_allclose(counts.var(0), expected[0] + dispersion * expected[0] ** 2, rtol=0.06)


def test_named_genes_are_unique():
    symbols = " ".join(MARKERS.values()).split()
    assert len(symbols) == len(set(symbols))
    programmes = draw_programmes(np.random.default_rng(0), len(NAMED_GENES) + 1)
    assert len(set(programmes.genes)) == len(NAMED_GENES) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 10}, "n_genes=10"),
        ({"n_donors": 0}, "`n_donors` is 0"),
        ({"n_spots": 0}, "`n_spots` is 0"),
        ({"mpp": 0}, "`mpp` is 0; it must be a number between 0.1 and 4"),
        ({"image_px": 200}, "image_px=300"),
        ({"depth": 0}, "depth"),
        ({"donor_effect": -1}, "donor_effect"),
    ],
)
def test_impossible_requests_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**arguments)
