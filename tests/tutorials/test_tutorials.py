"""The notebooks of `tutorials/`: committed with their output, and, among the slow tests, run with `fast`.

RAGST_SD_TEST_DATA=<folder> pytest -m slow tests/tutorials

Those that need real tissue find it as a reader does, through `rg.datasets.load` and a mirror (RAGST_SD_DATA_DIR), here a folder
of links into the test data.
"""

from __future__ import annotations

import os
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Data set as `rg.datasets.load` calls it -> folder of the test data.
MIRRORED = {
    "mob_stutility": "histology/mob2k",
    "mob": "histology/mob",
    "her2st": "histology/her2st",
    "cmu_1_small_region": "histology/wsi_test",
}
# Weights of the small encoder that one of them uses; a reader's are downloaded.
WEIGHTS = "weights/mobilenetv2_100_tf.safetensors"
OPTIONAL = ("lazyslide", "spatialdata_plot")
SECONDS = 300


@cache
def committed(path: Path):
    nbformat = pytest.importorskip("nbformat")  # takes seconds
    return nbformat.read(path, as_version=4)


def parameters(notebook) -> list:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def code(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def needed(notebook) -> list[str]:
    """Data sets that a notebook loads."""
    return [name for name in MIRRORED if re.search(rf'load\("{name}["/]', code(notebook))]


def by_name(path: Path) -> str:
    return path.stem


def test_there_are_tutorials():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
class TestCommitted:
    def test_is_executed_without_errors(self, path):
        cells = [cell for cell in committed(path).cells if cell.cell_type == "code" and cell.source.strip()]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it again from the top"
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert any("image/png" in output.get("data", {}) for output in outputs), "no picture is committed"

    def test_has_a_parameter_fast_that_is_off(self, path):
        tagged = parameters(committed(path))
        assert len(tagged) == 1
        scope: dict[str, object] = {}
        exec(tagged[0].source, scope)
        assert scope["fast"] is False

    def test_begins_with_a_title_and_says_what_it_asks(self, path):
        first = committed(path).cells[0]
        assert first.cell_type == "markdown" and first.source.startswith("# ")
        assert len(first.source.split("\n\n")) > 1

    def test_is_small_and_names_no_place_of_this_machine(self, path):
        text = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 4e6
        assert not [place for place in ("/work/", "/tmp/", "/home/", "/root/", "/opt/", "file://") if place in text]

    def test_is_listed_in_the_documentation(self, path):
        assert f"tutorials/{path.stem}" in (FOLDER.parent / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_runs_fast(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    notebook = deepcopy(committed(path))
    for module in OPTIONAL:
        if f"import {module}" in code(notebook):
            pytest.importorskip(module, reason=f"{path.stem} needs {module}, which is not installed")
    sets = needed(notebook)
    data = os.environ.get("RAGST_SD_TEST_DATA")
    if sets:
        missing = [name for name in sets if not data or not (Path(data) / MIRRORED[name]).is_dir()]
        if missing:
            pytest.skip(f"{path.stem} needs the data sets {', '.join(missing)}; they are not in RAGST_SD_TEST_DATA")
        mirror = tmp_path / "mirror"
        mirror.mkdir()
        for name in sets:
            (mirror / name).symlink_to(Path(data) / MIRRORED[name])
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(mirror))
        if (Path(data) / WEIGHTS).exists():
            monkeypatch.setenv("WEIGHTS", str(Path(data) / WEIGHTS))
    cell = parameters(notebook)[0]
    assert "fast = False" in cell.source
    cell.source = cell.source.replace("fast = False", "fast = True")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    work = tmp_path / "work"
    work.mkdir()
    client.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    for one in notebook.cells:
        for output in one.get("outputs", []):
            assert output.output_type != "error"
