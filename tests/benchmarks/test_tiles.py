"""The benchmarks of tiles and encoders run on a small image."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)

FIELDS = {"name", "value", "target", "unit", "passed"}


def test_tiles(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    tiles = importlib.import_module("tiles")
    rows = tiles.results(edge=700, chunk=128, tiles=30, subset=3, repeats=1, folder=tmp_path, memory=False)
    assert all(set(row) == FIELDS and row["value"] > 0 for row in rows)
    targets = {row["name"]: row["target"] for row in rows if row["target"]}
    assert targets == {
        "time against zarr alone, one reading thread each": "at most 1.3",
        "speed against ImageTilesDataset": "at least 8",
    }
    store = next(tmp_path.glob("*.zarr"))
    pyramid, centers = tiles.opened(store)
    assert tiles.read_ours(pyramid, centers) == tiles.read_ours(pyramid, centers, 2) == 30
    _, regions = tiles.touched_chunks(store, centers)
    assert 0 < len(regions) <= 36
    assert tiles.as_table(rows).count("\n") == len(rows) + 1


@pytest.mark.slow
def test_encoders(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(SCRIPTS)
    encoders = importlib.import_module("encoders")
    rows = encoders.results(
        texture_tiles=8, network_tiles=2, overlap_tiles=6, edge=400, networks=("mobilenetv2_050",), overlap="mobilenetv2_050",
        repeats=1,
    )  # fmt: skip
    assert all(set(row) == FIELDS and row["value"] > 0 for row in rows)
    assert {row["target"] for row in rows} == {"", "at least 200", "at most 1.1"}
    assert sum("mobilenetv2_050, bfloat16" in row["name"] for row in rows) == 2
