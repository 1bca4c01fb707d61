from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.reference.header import check_header
from ragst_sd.reference.responses import canonical, components, embed_perturbation
from ragst_sd.reference.schema import TASK


def test_names_have_one_spelling():
    assert canonical("B+A", "control") == canonical(" A + B", "control") == "A+B"
    assert canonical("A+ctrl", "ctrl") == "A"
    assert canonical("control", "control") == canonical("control+control", "control") == "control"
    assert components("control", "control") == ()
    assert components("SET+KLF1", "control") == ("KLF1", "SET")


def test_a_combination_is_the_sum_of_its_genes():
    table = {"A": np.array([1.0, 0.0]), "B": np.array([0.5, 2.0])}
    np.testing.assert_array_equal(embed_perturbation(("A", "B"), table), [1.5, 2.0])


@pytest.mark.parametrize("header", [None, {"task": "perturbation"}, {"task": "perturbation", "schema_version": 99}])
def test_broken_headers_are_named(header):
    with pytest.raises(ValueError, match="header"):
        check_header(header, TASK)


def test_the_task_is_checked_first():
    with pytest.raises(ValueError, match=r"for the task 'histology', not 'perturbation'. Use `rg.tl.predict`"):
        check_header({"task": "histology"}, TASK)
