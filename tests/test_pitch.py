"""The pitch of an array of spots."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd._pitch import array_pitch, spot_pitch


@pytest.mark.parametrize("jitter", [0, 0.1])
@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_pitch_of_a_jittered_lattice(rng, lattice, jitter):
    i, j = (axis.ravel() for axis in np.mgrid[:20, :20])
    xy = np.column_stack([i + 0.5 * (j % 2), j * np.sqrt(0.75)]) if lattice == "hexagonal" else np.column_stack([i, j])
    xy = (xy + rng.normal(scale=jitter, size=xy.shape)) * 40
    assert spot_pitch(xy) == array_pitch(xy, "Spots") == pytest.approx(40, rel=0.06)


def test_cells_that_keep_apart_lie_on_no_array(rng):
    xy = rng.uniform(0, 400, (1, 2))
    for point in rng.uniform(0, 400, (4000, 2)):
        if np.linalg.norm(xy - point, axis=1).min() > 10:
            xy = np.vstack([xy, point])
    with pytest.raises(ValueError, match=r"Shapes 'cells' do not lie on an array.*12% at most.*microns per pixel"):
        array_pitch(xy, "Shapes 'cells'")


def test_one_place_has_no_pitch():
    with pytest.raises(ValueError, match="found 1"):
        spot_pitch(np.ones((5, 2)))
