"""The code of the first pages runs as it is printed, in order, from an empty folder and a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "docs" / "start"
# In the order in which they are read.
PAGES = ("install.md", "ten_minutes.md", "words.md")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that sees what a user sees: no settings of the tests, and the warnings that Python shows by itself."""
    hidden = ("PYTHONWARNINGS", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Bars of progress aside, and what reading a store of labels says by itself, nothing is complained of.
    fine = re.compile(r"\d+%\||\| \d+/\d+|ome_zarr\.reader\.Label")
    complaints = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and not fine.search(line)]
    assert complaints == []
    return done


def test_every_page_is_run():
    assert set(PAGES) == {path.name for path in START.glob("*.md")}


def test_the_first_pages_run_as_written(tmp_path):
    code = []
    for page in PAGES:
        for kind, text in BLOCK.findall((START / page).read_text(encoding="utf-8")):
            if kind == "python":
                code.append(text)
                continue
            for line in text.splitlines():
                # Installing is shown by the wheel check; the command itself is called the same way.
                command = line.partition("#")[0].split()
                if command[:2] == ["ragst-sd", "demo"]:
                    said = run([sys.executable, "-m", "ragst_sd", *command[1:]], tmp_path).stdout
                    printed = (START / "demo_output.txt").read_text(encoding="utf-8").splitlines()
                    assert said.splitlines()[-len(printed)].split() == printed[0].split()
                    assert [line.split()[0] for line in said.splitlines()[-4:]] == ["mean", "ridge", "knn", "rag"]
    assert len(code) >= 2
    (tmp_path / "pages.py").write_text("\n".join(code), encoding="utf-8")
    said = run([sys.executable, "pages.py"], tmp_path).stdout
    assert (tmp_path / "viewer.html").is_file() and (tmp_path / "demo" / "prediction.png").is_file()
    assert re.search(r"^rag +0\.\d+ +\d", said, flags=re.MULTILINE)
    assert re.search(r"^donor4 +0\.\d+", said, flags=re.MULTILINE)
