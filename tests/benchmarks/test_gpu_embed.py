"""The benchmark of embedding on a GPU runs on a processor with a small network, and its two paths agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_embed


def test_rows_and_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    command = ["gpu_embed.py", "--model", "test_vit", "--tiles", "9", "--batch-size", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--repeats", "1", "--out", str(tmp_path)])
    gpu_embed.main()
    report = json.loads((tmp_path / "gpu_embed.json").read_text())
    assert report["device"]
    rows = {row["name"]: row for row in report["rows"]}
    assert all(set(row) == {"name", "value", "target", "unit", "passed"} for row in report["rows"])
    assert rows["largest difference between queued and one-by-one batches"]["value"] == 0
    assert rows["texture: largest difference between device and processor"]["value"] == 0
    assert rows["texture on cpu"]["value"] > 0
    assert "target 1.1" in capsys.readouterr().out
