"""Where a browser was promised, doing without one is a failure and no skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TEST = "def test_needs_a_browser(browser):\n    pass\n"


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("0", "1 skipped"), ("1", "1 error")])
def test_tests_without_a_browser(tmp_path, required, outcome):
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_one.py").write_text(TEST, encoding="utf-8")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-q",
            "-rs",
            "--rootdir",
            str(tmp_path),
            "test_one.py",
        ],
        cwd=tmp_path,
        # No chromium is found on an empty path.
        env={**os.environ, "PATH": str(tmp_path), "RAGST_SD_REQUIRE_BROWSER": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in run.stdout, run.stdout + run.stderr
    assert "is not installed: no browser" in run.stdout
    assert (run.returncode == 0) == (required != "1")
