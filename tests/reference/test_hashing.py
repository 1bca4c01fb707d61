"""Hashes: equal for equal content, different for any change."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.reference.hashing import content_hash, parameters_hash
from ragst_sd.reference.normalize import as_csr


@pytest.fixture
def content(rng):
    x = rng.poisson(0.5, (12, 8)).astype(np.float32)
    return {
        "ids": [f"s:{i}" for i in range(12)],
        "genes": list("abcdefgh"),
        "x": x,
        "embedding": rng.normal(size=(12, 4)).astype(np.float32),
        "donor": np.array(["A", "B"] * 6),
        "measured": np.ones((8, 2), dtype=bool),
    }


def hashed(c, order=None):
    order = np.arange(12) if order is None else order
    return content_hash(
        ids=[c["ids"][i] for i in order],
        genes=c["genes"],
        expression=as_csr(c["x"][order]),
        embedding=c["embedding"][order],
        labels={"donor": c["donor"][order]},
        measured=c["measured"],
    )


def test_row_order_does_not_matter(content):
    assert hashed(content) == hashed(content, np.random.default_rng(3).permutation(12))


def test_explicit_zeros_do_not_matter(content):
    matrix = as_csr(content["x"])
    matrix.data[0] = 0
    first = content_hash(
        ids=content["ids"],
        genes=content["genes"],
        expression=matrix,
        embedding=content["embedding"],
        labels={},
        measured=content["measured"],
    )
    matrix.eliminate_zeros()
    second = content_hash(
        ids=content["ids"],
        genes=content["genes"],
        expression=matrix,
        embedding=content["embedding"],
        labels={},
        measured=content["measured"],
    )
    assert first == second


@pytest.mark.parametrize("field", ["ids", "genes", "x", "embedding", "donor", "measured"])
def test_every_change_shows(content, field):
    before = hashed(content)
    value = content[field]
    if field in ("ids", "genes"):
        value[3] = "other"
    elif field == "donor":
        value[3] = "C"
    elif field == "measured":
        value[3, 1] = False
    else:
        value[3, 1] += 1
    assert hashed(content) != before


def test_swapped_rows_of_content_show(content):
    before = hashed(content)
    content["embedding"][[0, 1]] = content["embedding"][[1, 0]]
    assert hashed(content) != before


def test_parameters_hash():
    first = {"a": np.arange(3.0), "b": "x", "c": {"d": 1}}
    assert parameters_hash(first) == parameters_hash({"c": {"d": 1}, "b": "x", "a": np.arange(3.0)})
    for change in ({"a": np.arange(4.0)}, {"b": "y"}, {"c": {"d": 2}}):
        assert parameters_hash(first) != parameters_hash(first | change)
