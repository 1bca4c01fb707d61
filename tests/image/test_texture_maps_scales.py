"""Filters on maps against brute force."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.texture_maps import (  # noqa: E402
    blob_strength,
    gradient,
    halve,
    is_peak,
    plane_slope,
    ring_means,
    variance,
)


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (1, 5)])
def test_halve_matches_brute_force(shape) -> None:
    maps = torch.rand(2, *shape)
    expected = [
        [[m[y : y + 2, x : x + 2].mean() for x in range(0, shape[1], 2)] for y in range(0, shape[0], 2)]
        for m in maps.numpy()
    ]
    np.testing.assert_allclose(halve(maps).numpy(), expected, rtol=1e-6)


def test_filters_match_brute_force() -> None:
    m = np.random.default_rng(0).uniform(size=(11, 13))
    maps = torch.from_numpy(m)[None]
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smooth = np.array([[(m[y : y + 3, x : x + 3] * kernel).sum() for x in range(11)] for y in range(9)])
    blob = np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            c = smooth[y + 1, x + 1]
            blob[y, x] = c - (smooth[y, x + 1] + smooth[y + 2, x + 1] + smooth[y + 1, x] + smooth[y + 1, x + 2]) / 4
    np.testing.assert_allclose(blob_strength(maps)[0].numpy(), blob, atol=1e-12)
    peaks = [[m[y, x] == m[y - 1 : y + 2, x - 1 : x + 2].max() for x in range(1, 12)] for y in range(1, 10)]
    np.testing.assert_array_equal(is_peak(maps)[0].numpy(), peaks)
    np.testing.assert_allclose(variance(maps).numpy(), [m.var()])
    down, right = np.gradient(m)
    np.testing.assert_allclose(gradient(maps)[0][0].numpy(), down[1:-1, 1:-1], atol=1e-12)
    np.testing.assert_allclose(gradient(maps)[1][0].numpy(), right[1:-1, 1:-1], atol=1e-12)


def test_slope_and_rings_see_where_things_lie() -> None:
    y, x = np.meshgrid((np.arange(12) + 0.5) / 6 - 1, (np.arange(16) + 0.5) / 8 - 1, indexing="ij")
    plane = torch.from_numpy(5 + 3 * y - 4 * x).float()[None]
    assert float(plane_slope(plane)) == pytest.approx(5, rel=1e-5)
    distance = np.hypot(y, x)
    m = np.random.default_rng(0).uniform(size=distance.shape)
    expected = [m[(distance >= a) & (distance < b)].mean() for a, b in ((0, 0.5), (0.5, 1), (1, 2))]
    np.testing.assert_allclose(ring_means(torch.from_numpy(m).float()[None])[0].numpy(), expected, rtol=1e-5)
    assert torch.isfinite(ring_means(torch.rand(1, 4, 4))).all()
