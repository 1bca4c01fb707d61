"""`python -m benchmarks`: every target in one table, failures among them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmarks():
    spec = importlib.util.spec_from_file_location("benchmarks_main", ROOT / "benchmarks" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scripts_with_results_are_found(benchmarks):
    assert {"search", "prediction"} <= set(benchmarks.scripts())
    assert "real_sections" not in benchmarks.scripts()


@pytest.mark.slow
def test_one_table_of_a_quick_run():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "prediction", "--quick", "--threads", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "| script | what | value | target | reached |" in done.stdout, done.stderr
    assert "torch gather and batched product over ours" in done.stdout and "failed" not in done.stdout
    assert done.returncode == int("| **no** |" in done.stdout)


def test_a_script_that_fails_is_a_line_and_a_bad_exit(benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "CODE", "raise ValueError('no {name}')")
    assert benchmarks.main(["--only", "search"]) == 1
    assert "| search | failed: ValueError: no search" in capsys.readouterr().out
