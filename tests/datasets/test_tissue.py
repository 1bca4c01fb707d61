from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.datasets import _tissue


@pytest.mark.parametrize("step", [1.0, 2.5, 4.0])
def test_enlarge_keeps_a_ramp_in_place(step):
    rows, cols = (np.mgrid[: int(60 / step), : int(60 / step)] + 0.5) * step
    out = _tissue.enlarge(2 * rows - cols, 60)
    y, x = np.mgrid[:60, :60] + 0.5
    inner = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(out[inner], (2 * y - x)[inner], atol=1e-3)


@pytest.mark.parametrize("sigma", [1.5, 6.0, 20.0])
def test_noise_has_unit_variance_and_its_correlation_length(sigma):
    noise = _tissue.noise(np.random.default_rng(1), 900, sigma)
    assert noise.shape == (900, 900) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.2)
    # Filtered white noise correlates as exp(-lag^2 / (4 sigma^2)).
    lag = round(2 * sigma)
    found = (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var()
    assert found == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.15)


def test_hexagonal_neighbours_are_one_pitch_apart():
    xy, grid = _tissue.hexagonal(1000.0, 100.0, margin=30.0)
    assert xy.min() >= 30 - 1e-6 and xy.max() <= 970 + 1e-6
    distances = np.sort(np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)), axis=1)
    np.testing.assert_allclose(distances[:, 1:3], 100, rtol=1e-6)
    assert len(np.unique(grid, axis=0)) == len(xy)
    # Neighbours within a row are two columns apart, as on Visium arrays.
    same_row = grid[1:, 0] == grid[:-1, 0]
    assert set(np.diff(grid[:, 1])[same_row]) == {2}


@pytest.fixture(scope="module")
def tissue():
    rng = np.random.default_rng(0)
    return _tissue.draw_tissue(rng, 600, 1.0, _tissue.draw_donor(rng))


def test_uphill_points_along_the_steepest_ascent(tissue):
    y, x = np.mgrid[:600, :600]
    np.testing.assert_allclose(tissue.uphill((x + y).astype(float), np.array([[25.0, 25.0]])), np.pi / 4)


def test_classes_agree_with_the_distances(tissue):
    glass, _, epithelium, immune, _ = (tissue.classes == i for i in range(5))
    np.testing.assert_array_equal(glass, tissue.outside > 0)
    assert (tissue.gland[epithelium] < 0).all() and (tissue.aggregate[immune] < 0).all()
    for distance in (tissue.outside, tissue.gland, tissue.aggregate):
        # Distances: a micron further away is a micron more, away from the ridges between two cells.
        assert np.median(np.hypot(*np.gradient(distance))) == pytest.approx(1, abs=0.15)


def test_nuclei_lie_in_their_tissue_and_are_drawn_dark(tissue):
    rng = np.random.default_rng(1)
    nuclei = _tissue.draw_nuclei(rng, tissue)
    xy = nuclei[["x", "y"]].to_numpy()
    assert (tissue.at(tissue.outside, xy) < 3).all()
    assert (tissue.at(tissue.aggregate, xy[nuclei["lymphoid"]]) < 30).mean() > 0.7
    assert tissue.at(tissue.aggregate, xy[~nuclei["lymphoid"]]).min() > -3
    picture = _tissue.render(rng, tissue, nuclei, _tissue.draw_donor(rng))
    assert picture.shape == (3, 600, 600) and picture.dtype == np.uint8
    stroma = picture[0][tissue.classes == 1]
    assert tissue.at(picture[0], xy).mean() < stroma.mean() - 40
