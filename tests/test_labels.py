"""Labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ragst_sd._labels import is_missing, label, labels, plain_column, warn_of_alike


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", b"1", np.int8(1), np.float32(1)])
def test_one_is_one(value):
    assert label(value) == "1"


def test_others_stay_apart():
    assert len({label(value) for value in (1.5, 1, "01", True, "a", "A")}) == 6


def test_columns_of_any_dtype():
    expected = ["1", "2"]
    for column in ([1, 2], [1.0, 2.0], ["1", "2"], pd.Categorical([1, 2]), pd.array(["1", "2"], dtype="string")):
        assert list(labels(pd.Series(column))) == expected


MISSING = [None, np.nan, pd.NA, pd.NaT, "", "  ", "nan", "NaN", "None", "<NA>", "NA", "N/A", "null"]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_missing(value):
    column = pd.Series(["a", value, "b"], dtype=object)
    assert list(is_missing(column)) == [False, True, False]
    assert list(labels(column, missing="?")) == ["a", "?", "b"]
    assert list(plain_column(column, "obs").cat.categories) == ["a", "b"]


def test_a_name_that_was_given_is_a_label():
    assert list(is_missing(["None", "nan"], named=["None"])) == [False, True]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array(["b", None, "a"], dtype="string"), ["b", None, "a"]),
        (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
        (pd.array([True, None, False], dtype="boolean"), ["True", None, "False"]),
        (pd.DatetimeIndex(["2020-01-02", None, "2021-01-01"]), ["2020-01-02 00:00:00", None, "2021-01-01 00:00:00"]),
        (pd.cut([0.5, np.nan, 1.5], [0, 1, 2]), ["(0, 1]", None, "(1, 2]"]),
        (np.array([1, None, "1"], dtype=object), ["1", None, "1"]),
        (np.array([1j, 2j, 1j]), ["1j", "2j", "1j"]),
    ],
)
def test_columns_that_become_categories(column, expected):
    found = plain_column(pd.Series(column), "obs")
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert [None if pd.isna(value) else value for value in found] == expected
    assert all(type(name) is str for name in found.cat.categories)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pd.array([1, 2], dtype="Int64"), "int64"),
        (pd.array([1, None], dtype="Int64"), "float64"),
        (pd.array([True, False], dtype="boolean"), "bool"),
        (pd.arrays.SparseArray([0.0, 1.5]), "float64"),
        (np.array([0.5, np.nan], dtype=np.float32), "float32"),
    ],
)
def test_numbers_stay_numbers(column, dtype):
    found = plain_column(pd.Series(column), "obs")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.to_numpy(float), pd.Series(column).to_numpy(float, na_value=np.nan))


def test_ordered_categories_keep_their_order():
    found = plain_column(pd.Series(pd.Categorical(["low", "high"], ["low", "mid", "high"], ordered=True)), "obs")
    assert found.cat.ordered and list(found.cat.categories) == ["low", "mid", "high"]


def test_objects_are_no_labels():
    with pytest.raises(ValueError, match=r"`obs\['x'\]` holds a list \(\[1, 2\]\) where a label is expected"):
        plain_column(pd.Series([[1, 2], None]), "obs['x']")


@pytest.mark.parametrize(
    ("found", "known", "is_said"),
    [("t cell", "T_cell", True), ("01", "1", True), ("P-07", "p7", True), ("P17", "P7", False), ("-", "_", False)],
)
def test_labels_that_are_written_in_another_way_are_said(found, known, is_said, caplog):
    warn_of_alike([found, known], [known, "other"], "context", "something happens")
    assert (f"context {found!r} and {known!r} of the reference count as different" in caplog.text) == is_said
