"""`rg.pp.set_image_mpp`."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.transformations import Scale, set_transformation

import ragst_sd as rg


def test_given_value_is_kept_and_others_stay(query):
    query.attrs["ragst"]["image_mpp"]["other"] = 2.0
    rg.pp.set_image_mpp(query, image_key="he", mpp=0.25)
    assert query.attrs["ragst"]["image_mpp"] == {"he": 0.25, "other": 2.0}


def test_derived_from_the_pitch(query):
    rg.pp.set_image_mpp(query, um_between_centers=100)
    assert query.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(1.0, rel=0.01)


def test_pitch_is_measured_in_image_pixels(query):
    set_transformation(query.images["he"], Scale([4.0, 4.0], ("x", "y")))
    set_transformation(query.shapes["spots"], Scale([2.0, 2.0], ("x", "y")))
    rg.pp.set_image_mpp(query, shapes_key="spots", um_between_centers=100)
    assert query.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(2.0, rel=0.01)


def test_one_spot_has_no_pitch(query):
    query.shapes["spots"] = query.shapes["spots"].iloc[:1]
    with pytest.raises(ValueError, match="at least two distinct centres, found 1"):
        rg.pp.set_image_mpp(query)


@pytest.mark.parametrize("mpp", [0, -1, np.nan, np.inf, "0.5"])
def test_impossible_values(query, mpp):
    before = dict(query.attrs["ragst"]["image_mpp"])
    with pytest.raises(ValueError, match="`mpp` is"):
        rg.pp.set_image_mpp(query, mpp=mpp)
    assert query.attrs["ragst"]["image_mpp"] == before
