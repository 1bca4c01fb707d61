"""Rows of tables find their shapes by ids, whatever type these have come to be."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._annotation import rows_in_order

from .sections import annotated, mean_colour, section

XY = np.array([[40, 30], [280, 30], [40, 200], [280, 200]], dtype=float)
COLOURS = XY * 255 / [320, 240]


@pytest.fixture
def slide():
    return section(XY)


def with_ids(sdata, ids, index=None):
    if index is not None:
        sdata.shapes["spots"].index = index
    sdata.tables["table"] = annotated(None, ids)
    return sdata


def colours(sdata):
    options = {"tile_px": 8, "mpp": None, "context": (1,), "key_added": "X", "progress": False, "overwrite": True}
    rg.pp.embed_tiles(sdata, model=mean_colour, **options)
    return sdata.tables["table"].obsm["X"][:, :2] * 255


def run(lines, sdata):
    """Do what an error says."""
    names = {"sdata": sdata, "table": sdata.tables["table"], "table_key": "table"}
    for line in lines:
        exec(line, names)


@pytest.mark.parametrize(
    ("ids", "index"),
    [
        (["2", "0", "3", "1"], None),
        ([2, 0, 3, 1], ["0", "1", "2", "3"]),
        (pd.Categorical(["2", "0", "3", "1"]), None),
        (pd.array([2, 0, 3, 1], dtype="string"), None),
        (np.array([2, 0, 3, 1], dtype=np.uint16), ["0", "1", "2", "3"]),
    ],
)
def test_texts_and_numbers_are_one_id(slide, ids, index):
    np.testing.assert_allclose(colours(with_ids(slide, ids, index)), COLOURS[[2, 0, 3, 1]], atol=3)


def test_texts_that_only_look_like_numbers_are_not(slide):
    with pytest.raises(ValueError, match=r"4 of 4 rows .* Write ids of 'spots' into `table.obs\['spot'\]`"):
        colours(with_ids(slide, ["00", "01", "02", "03"]))


@pytest.mark.parametrize("ids", [["3", "77", "0"], [3, 77, 0]])
def test_the_advice_on_rows_without_shapes_works(slide, ids):
    with_ids(slide, ids)
    with pytest.raises(ValueError, match=r"1 of 3 rows .* for instance \[.?77") as caught:
        colours(slide)
    run(re.findall(r"`([^`]*)`", str(caught.value))[-1:], slide)
    np.testing.assert_allclose(colours(slide), COLOURS[[3, 0]], atol=3)


def test_ids_that_became_floats_are_refused_and_the_advice_works(slide):
    table = slide.tables["table"]
    table.obs["spot"] = table.obs["spot"].astype(float)
    with pytest.raises(ValueError, match=r"holds float64 values, 0 of 4 missing") as caught:
        colours(slide)
    run(re.findall(r"`([^`]*)`", str(caught.value))[1:], slide)
    np.testing.assert_allclose(colours(slide), COLOURS, atol=3)


def test_rows_without_an_id_are_refused_and_the_advice_works(slide):
    table = slide.tables["table"]
    table.obs["spot"] = table.obs["spot"].where(table.obs["spot"] != 2)
    with pytest.raises(ValueError, match=r"holds float64 values, 1 of 4 missing") as caught:
        colours(slide)
    run(re.findall(r"`([^`]*)`", str(caught.value))[1:], slide)
    np.testing.assert_allclose(colours(slide), COLOURS[[0, 1, 3]], atol=3)


def test_fractions_are_not_made_whole(slide):
    table = slide.tables["table"]
    table.obs["spot"] = table.obs["spot"] + 0.5
    with pytest.raises(ValueError, match="write the ids of the element there"):
        rows_in_order(table, "table", "spots", slide.shapes["spots"].index)


def test_an_index_of_floats_is_read_as_whole_numbers(slide):
    with_ids(slide, ["2", "0", "3", "1"], index=[0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(colours(slide), COLOURS[[2, 0, 3, 1]], atol=3)


def test_rows_of_another_element_are_refused_and_the_advice_works(slide):
    slide.tables["table"].obs["region"] = pd.Categorical(["spots", "others", "spots", "spots"])
    with pytest.raises(ValueError, match=r"1 of 4 rows of table 'table' lie in 'others'") as caught:
        colours(slide)
    run(re.findall(r"`([^`]*)`", str(caught.value))[-1:], slide)
    np.testing.assert_allclose(colours(slide), COLOURS[[0, 2, 3]], atol=3)


def test_shapes_with_one_id_twice_are_refused_and_the_advice_works(slide):
    slide.shapes["spots"].index = [0, 1, 1, 2]
    with pytest.raises(ValueError, match="ids in the index of 'spots' are duplicated, for example '1'") as caught:
        colours(slide)
    run(re.findall(r"`([^`]*)`", str(caught.value))[:1], slide)
    slide.tables["table"].obs["spot"] = [3, 1, 2, 0]
    np.testing.assert_allclose(colours(slide), COLOURS[[3, 1, 2, 0]], atol=3)
