"""The list of encoders."""

from __future__ import annotations

import pandas as pd
import pytest

from ragst_sd.image.registry import FOUNDATION_MODELS

pytest.importorskip("ragst_sd.image.texture")

from ragst_sd.pp._encoders import encoders


def test_one_row_per_name() -> None:
    table = encoders()
    assert table.index.name == "name"
    assert list(table.index) == ["texture", *FOUNDATION_MODELS, "any timm name", "any .onnx file"]


def test_terms_are_told_apart() -> None:
    table = encoders()
    assert table.loc["texture", "commercial_use"]
    assert not table.loc["uni2", "commercial_use"]
    assert table.loc["uni2", "gated"]
    assert table.loc["h-optimus-0", "gated"] is pd.NA
    assert "gated" in table.loc["h-optimus-0", "unverified"]
    assert table.loc["any timm name", "commercial_use"] is pd.NA
    assert table["license"].notna().all()


def test_facts_are_those_of_the_registry() -> None:
    table = encoders()
    for name, row in FOUNDATION_MODELS.items():
        found = table.loc[name]
        assert (found["source"], found["width"], found["input_px"]) == (f"hf-hub:{row.hub_id}", row.width, row.input_px)
        assert (found["mean"], found["std"], found["mpp"]) == (row.mean, row.std, row.mpp)
        assert found["context"] == (1.0, 2.5, 6.0)
    assert table.loc["virchow2", "width"] == 2560
    assert table.loc["conch", "needs"].startswith("git+https://")


def test_texture_has_its_fields_of_view() -> None:
    from ragst_sd.image.texture import texture_names

    texture = encoders().loc["texture"]
    assert texture["context"] == (1.0, 2.5, 6.0)
    assert texture["width"] == len(texture_names())
    assert texture["input_px"] is pd.NA
