"""Panels."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.reference.panels import assign_panels, measured_mask, shared_genes, unlisted_share


def ones(genes):
    return dict.fromkeys(genes, 1.0)


def transcriptome(rng, depth, rename=()):
    """Genes that a section of some depth lists: those with at least one count."""
    rates = np.exp(np.random.default_rng(0).normal(0, 2, 16_000))
    counts = rng.poisson(rates / rates.sum() * depth)
    return {(f"renamed{i}" if i in rename else f"g{i}"): float(c) for i, c in enumerate(counts) if c}


def test_targeted_sections_measure_what_they_list():
    panel_of, panels = assign_panels({"a": ones("AB"), "b": ones("BC"), "c": ones("BA")}, {})
    assert panel_of["a"] == panel_of["c"] != panel_of["b"]
    np.testing.assert_array_equal(measured_mask(["A", "B", "C"], panels), [[1, 0], [1, 1], [0, 1]])


def test_transcriptomes_of_one_annotation_measure_the_union(rng):
    deep, shallow = transcriptome(rng, 3_000_000), transcriptome(rng, 400_000)
    assert len(shallow) >= 10_000
    assert set(shallow) != set(deep)
    panel_of, panels = assign_panels({"deep": deep, "shallow": shallow}, {})
    assert set(panel_of.values()) == {"transcriptome"}
    assert panels["transcriptome"] == set(deep) | set(shallow)


def test_transcriptomes_of_different_annotations_are_kept_apart(rng):
    rates = np.exp(np.random.default_rng(0).normal(0, 2, 16_000))
    abundant = set(np.argsort(-rates)[:40:4].tolist())
    first, second = transcriptome(rng, 3_000_000), transcriptome(rng, 3_000_000, rename=abundant)
    panel_of, panels = assign_panels({"a": first, "b": second}, {})
    assert panel_of == {"a": "transcriptome1", "b": "transcriptome2"}
    renamed = f"g{min(abundant)}"
    np.testing.assert_array_equal(measured_mask([renamed], panels), [[1, 0]])


def test_what_is_said_beats_what_is_counted():
    panel_of, panels = assign_panels(
        {"a": ones("AB"), "b": ones("BC"), "c": ones("AB")}, {"a": "x", "b": "x", "c": None}
    )
    assert panel_of == {"a": "x", "b": "x", "c": "panel1"}
    assert panels["x"] == {"A", "B", "C"}


def test_unlisted_share():
    assert unlisted_share({"A": 3.0, "B": 1.0}, {"B": 9.0}) == 0.75
    assert unlisted_share({}, {"B": 9.0}) == 0.0


def test_shared_genes():
    common = {f"g{i}" for i in range(200)}
    assert shared_genes({"p": common | {"x"}, "q": common}) == sorted(common)
    with pytest.raises(ValueError, match="share 199 genes"):
        shared_genes({"p": common - {"g0"}, "q": common})


def test_automatic_names_avoid_given_ones(rng):
    panel_of, _ = assign_panels({"a": ones("AB"), "b": ones("BC")}, {"a": "panel1", "b": None})
    assert panel_of["b"] != "panel1"
    first = transcriptome(rng, 3_000_000)
    panel_of, _ = assign_panels({"a": ones("AB"), "b": first}, {"a": "transcriptome", "b": None})
    assert panel_of["b"] != "transcriptome"
