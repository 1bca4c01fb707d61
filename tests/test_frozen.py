from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "tools" / "frozen.py"


@pytest.fixture(scope="module")
def frozen():
    spec = importlib.util.spec_from_file_location("frozen", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_small_change_is_seen_and_a_smaller_one_is_not(frozen, rng):
    values = rng.normal(size=(30, 40))
    values[3, 4] = np.nan
    kept = frozen.summary(values)
    assert frozen.differences(kept, values.copy()) == (True, 0.0)
    assert frozen.differences(kept, values + 1e-8)[1] < frozen.TOLERANCE
    assert frozen.differences(kept, values + 1e-5)[1] > frozen.TOLERANCE
    assert frozen.differences(kept, np.nan_to_num(values))[1] == np.inf
    assert frozen.differences(kept, values[:, :-1])[1] == np.inf


def test_records_survive(frozen):
    record = {"method": "rag", "n": 3, "parameters": {"a": np.arange(3.0), "b": {}}, "names": np.array(["x", "y"])}
    back = frozen.nested(frozen.flat(record))
    assert back["method"] == "rag"
    assert back["n"] == 3
    assert back["parameters"]["b"] == {}
    np.testing.assert_array_equal(back["parameters"]["a"], record["parameters"]["a"])
    assert list(back["names"]) == ["x", "y"]


@pytest.mark.slow
def test_values_are_those_that_were_frozen(frozen, data_dir):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert frozen.compare(data_dir) == []
    finally:
        torch.set_num_threads(n_threads)
