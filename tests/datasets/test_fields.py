from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from ragst_sd.datasets import _fields as fields


def test_thin_is_the_greedy_choice_in_order():
    xy = np.random.default_rng(0).uniform(0, 20, (400, 2))
    greedy = []
    for point in xy:
        if all(np.hypot(*(point - other)) > 1.5 for other in greedy):
            greedy.append(point)
    np.testing.assert_array_equal(fields.thin(xy, 1.5, rounds=50), np.array(greedy))
    few_rounds = fields.thin(xy, 1.5)
    assert pdist(few_rounds).min() > 1.5
    assert len(few_rounds) > 0.9 * len(greedy)


@pytest.mark.parametrize("step", [1.0, 2.5, 4.0])
def test_enlarge_keeps_a_ramp_in_place(step):
    shape = (40, 60)
    coarse = fields.coarse_shape(shape, step)
    rows, cols = (np.mgrid[: coarse[0], : coarse[1]] + 0.5) * step
    out = fields.enlarge(2 * rows - cols, step, shape)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inner = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(out[inner], (2 * y - x)[inner], atol=1e-3)


@pytest.mark.parametrize("sigma", [1.5, 6.0, 20.0])
def test_smooth_noise_has_unit_variance_and_its_correlation_length(sigma):
    noise = fields.smooth_noise(np.random.default_rng(1), (900, 900), sigma)
    assert noise.shape == (900, 900)
    assert noise.std() == pytest.approx(1, abs=0.2)
    # Filtered white noise correlates as exp(-lag^2 / (4 sigma^2)).
    lag = round(2 * sigma)
    found = (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var()
    assert found == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.15)


def test_hexagonal_neighbours_are_one_pitch_apart():
    xy, grid = fields.hexagonal((1000.0, 1000.0), 100.0, margin=30.0)
    assert xy.min() >= 30 - 1e-6 and xy.max() <= 970 + 1e-6
    distances = np.sort(np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)), axis=1)
    np.testing.assert_allclose(distances[:, 1:3], 100, rtol=1e-6)
    assert len(np.unique(grid, axis=0)) == len(xy)
    # Neighbours within a row are two columns apart, as on Visium arrays.
    same_row = grid[1:, 0] == grid[:-1, 0]
    assert set(np.diff(grid[:, 1])[same_row]) == {2}


def test_scatter_stays_in_the_mask():
    mask = np.zeros((30, 30), bool)
    mask[10:20, 5:15] = True
    xy = fields.scatter(np.random.default_rng(2), mask, 2.0, 3.0)
    assert pdist(xy).min() > 3
    assert fields.sample(mask, xy, 2.0).all()
    assert len(xy) > 0.4 * 400 / 9
    assert fields.scatter(np.random.default_rng(2), mask & False, 2.0, 3.0).shape == (0, 2)


def test_slope_points_uphill():
    y, x = np.mgrid[:50, :50]
    angle = fields.slope((x + y).astype(float), np.array([[25.0, 25.0]]), 3)
    np.testing.assert_allclose(angle, np.pi / 4)
