"""`benchmarks/cell_types.py`: halves that share no tile, and correlations by column."""

from __future__ import annotations

import numpy as np


def test_no_tile_lies_on_both_sides(script, rng):
    xy = rng.random((400, 2)) * 3000
    found = script.halves(xy)
    assert list(found) == ["left to right", "right to left", "top to bottom", "bottom to top"]
    for i, (learned, asked) in enumerate(found.values()):
        between = np.abs(xy[learned][:, None, i // 2] - xy[asked][None, :, i // 2])
        assert between.min() > script.TILE_UM
        assert learned.sum() > 150
        assert asked.sum() > 150
    np.testing.assert_array_equal(found["left to right"][0], found["right to left"][1])


def test_correlations(script, rng):
    a, b = rng.random((50, 3)), rng.random((50, 3))
    a[:, 2] = 1.0
    found = script.correlations(a, b)
    np.testing.assert_allclose(found[:2], [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(2)])
    assert np.isnan(found[2])
