"""The benchmark of what a user waits for, at a small size."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)


@pytest.fixture
def seconds(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("seconds")


def test_each_case_is_named_and_has_a_target(seconds):
    assert {"fit_small", "fit", "fit_large", "cross_validate", "calibrate", "evaluate", "predict"} <= set(seconds.CASES)
    assert all(case.wall and case.label for case in seconds.CASES.values())


def test_busy_processes_end_with_the_block(seconds, monkeypatch):
    started, popen = [], seconds.subprocess.Popen

    def watched(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(seconds.subprocess, "Popen", watched)
    with seconds.busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
def test_lines_of_two_cases(seconds):
    rows = seconds.results(only=["evaluate", "explain"], busy=1, scale=0.01)
    assert len(rows) == 10
    assert all(row["value"] >= 0 for row in rows)
    assert [row["target"] for row in rows[:3]] == ["at most 5", "", "at most 1000"]
    assert sum("beside 1 busy processes" in row["name"] for row in rows) == 4
