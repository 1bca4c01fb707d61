"""The pitch of an array of spots."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd._pitch import spot_pitch


@pytest.mark.parametrize("jitter", [0, 0.1])
@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_pitch_of_a_jittered_lattice(rng, lattice, jitter):
    i, j = (axis.ravel() for axis in np.mgrid[:20, :20])
    xy = np.column_stack([i + 0.5 * (j % 2), j * np.sqrt(0.75)]) if lattice == "hexagonal" else np.column_stack([i, j])
    assert spot_pitch((xy + rng.normal(scale=jitter, size=xy.shape)) * 40) == pytest.approx(40, rel=0.06)


def test_one_place_has_no_pitch():
    with pytest.raises(ValueError, match="found 1"):
        spot_pitch(np.ones((5, 2)))
