"""Panels."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.reference.panels import assign_panels, measured_mask, shared_genes


def test_targeted_sections_measure_what_they_list():
    genes = {"a": ["A", "B"], "b": ["B", "C"], "c": ["B", "A"]}
    panel_of, panels = assign_panels(genes, {})
    assert panel_of["a"] == panel_of["c"] != panel_of["b"]
    np.testing.assert_array_equal(measured_mask(["A", "B", "C"], panels), [[1, 0], [1, 1], [0, 1]])


def test_whole_transcriptome_sections_measure_the_union():
    many = [f"g{i}" for i in range(10_000)]
    panel_of, panels = assign_panels({"a": many, "b": [*many[:-1], "extra"], "c": ["extra", "probe"]}, {})
    assert panel_of["a"] == panel_of["b"] == "whole_transcriptome"
    mask = measured_mask(["extra", many[-1], "probe"], panels)
    np.testing.assert_array_equal(mask, [[1, 1], [1, 0], [0, 1]])


def test_what_is_said_beats_what_is_counted():
    panel_of, _ = assign_panels({"a": ["A"], "b": ["B"]}, {"a": True, "b": None})
    assert panel_of == {"a": "whole_transcriptome", "b": "panel1"}


def test_shared_genes():
    common = {f"g{i}" for i in range(200)}
    assert shared_genes({"p": common | {"x"}, "q": common}) == sorted(common)
    with pytest.raises(ValueError, match="share 199 genes"):
        shared_genes({"p": common - {"g0"}, "q": common})
