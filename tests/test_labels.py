"""Labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ragst_sd._labels import as_names, label, labels


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", np.int8(1), np.float32(1)])
def test_one_is_one(value):
    assert label(value) == "1"


def test_others_stay_apart():
    assert len({label(value) for value in (1.5, 1, "01", True, "a", "A")}) == 6


def test_columns_of_any_dtype():
    expected = ["1", "2"]
    for column in ([1, 2], [1.0, 2.0], ["1", "2"], pd.Categorical([1, 2]), pd.array(["1", "2"], dtype="string")):
        assert list(labels(pd.Series(column))) == expected


def test_as_names():
    assert as_names("EPCAM") == ["EPCAM"]
    assert as_names(["b", "a", "b"]) == ["b", "a"]
