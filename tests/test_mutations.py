"""Kernels that are broken on purpose: the lines are still there, and tests notice."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "mutations.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no tools beside the tests")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("mutations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_that_is_broken_occurs_once(tool):
    assert {mutation.name: tool.occurrences(mutation) for mutation in tool.MUTATIONS} == {
        mutation.name: 1 for mutation in tool.MUTATIONS
    }
    assert len({mutation.name for mutation in tool.MUTATIONS}) == len(tool.MUTATIONS) == 43
    assert all(mutation.old != mutation.new for mutation in tool.MUTATIONS)
    assert all((tool.ROOT / tool.tests_of(mutation)[0]).exists() for mutation in tool.MUTATIONS)


def test_a_seed_draws_the_same_and_a_word_chooses(tool):
    first, again, other = ([one.name for one in tool.chosen(seed, 4, "")] for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 4
    assert [one.file for one in tool.chosen(None, None, "dose")] == ["response_phi.py"]


@pytest.mark.slow
def test_tests_notice_broken_kernels(tool):
    drawn = tool.chosen(int(os.environ.get("RAGST_SD_SEED", "0")), 4, "")
    assert [mutation.name for mutation in drawn if not tool.caught_by(mutation)] == []
