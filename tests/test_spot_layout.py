"""How spots lie: their pitch, their order, and the donors among which they lie."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd._spot_layout import array_pitch, in_other_order, share_among_others, spot_pitch


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


def test_order_is_told_from_turned_scaled_and_bent_centres(rng):
    xy = rng.uniform(0, 1000, (300, 2))
    turned = xy @ np.array([[0, 2], [-3, 0.1]]) + 70
    bent = xy + 60 * np.sin(xy[:, ::-1] / 300)
    for same in (xy, turned, bent, np.rint(xy / 20), np.where(rng.random((300, 1)) < 0.3, np.nan, xy)):
        assert not in_other_order(xy, same)
        assert in_other_order(xy, same[rng.permutation(300)])
    assert not in_other_order(xy[:5], xy[4::-1])
    assert not in_other_order(np.ones((20, 2)), xy[:20])
    assert not in_other_order(xy[:20], np.zeros((20, 2)))


@pytest.mark.filterwarnings("error")
def test_no_order_is_told_of_centres_that_are_not_known(rng):
    assert not in_other_order(np.full((20, 2), np.nan), rng.uniform(0, 1000, (20, 2)))


def test_donors_on_one_slide_lie_apart(rng):
    xy, apart = rng.uniform(0, 100, (140, 2)), np.repeat(["a", "b"], [80, 60])
    xy[apart == "b", 0] += 120
    assert share_among_others(xy, apart) == 0
    assert share_among_others(xy, np.full(140, "a")) == 0
    assert share_among_others(xy, rng.permutation(apart)) > 0.3
    assert share_among_others(xy, np.arange(140).astype(str)) == 1
    assert share_among_others(np.full((140, 2), np.nan), apart) == 0
