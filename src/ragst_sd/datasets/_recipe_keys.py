"""Names of parts and of whole references: hashes of all that decides what is in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.datasets._recipe import DETAILS, filters_as_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragst_sd.datasets._recipe import Recipe
    from ragst_sd.datasets._recipe_sections import Planned
    from ragst_sd.image.encoders import Encoder

# Raised when a part holds something else than before, so that older ones are not taken for it.
PART_VERSION = 2


def key_of(facts: Mapping[str, Any]) -> str:
    """Name of what these facts decide: numbers, texts, and lists and mappings of them."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def plain(value: Any) -> Any:
    """What JSON has no form for, as text, numbers or lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, Path) else list(value)


def _versioned(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "part_version": PART_VERSION, "schema_version": _keys.REFERENCE_VERSION}


def _naming(plan: Recipe) -> list[Any]:
    return [plan.reference["harmonize"], plan.reference.get("orthologues_to")]


def part_facts(section: Planned, plan: Recipe, encoder: Encoder) -> dict[str, Any]:
    """Everything that decides what the part of a section holds."""
    context = plan.tiles.get("context")
    return _versioned(
        {
            "sample": section.sample,
            "read": dict(section.facts),
            "image_mpp": section.source.image_mpp,
            "inputs": section.inputs(),
            "filters": filters_as_plain(section.source.filters),
            "encoder": {
                "name": encoder.name,
                "weights_hash": encoder.weights_hash,
                "mean": encoder.mean,
                "std": encoder.std,
                "input_px": encoder.input_px,
                "amp": encoder.amp,
                "device": encoder.device.type,
                "batch_size": plan.encoder["batch_size"],
            },
            "tiles": {
                "tile_px": plan.tiles["tile_px"],
                "mpp": plan.tiles.get("mpp"),
                "context": list(encoder.context if context is None else context),
            },
            "layer": plan.reference.get("layer"),
            "unit": plan.reference["unit"],
            # Decides which spots have counts at all, and so which of them are kept.
            "naming": _naming(plan),
            "obs": sorted(plan.reference.get("obs", ())),
            "thumbnails": plan.reference["thumbnails"],
        }
    )


def recipe_key(plan: Recipe, sections: Sequence[Planned], keys: Mapping[str, str]) -> str:
    """Name of the reference that a recipe makes of its parts."""
    return key_of(
        _versioned(
            {
                "parts": dict(keys),
                "details": {one.sample: [one.source.details.get(name) for name in DETAILS] for one in sections},
                "genes": sorted(plan.genes) if isinstance(plan.genes, list) else plan.genes,
                "standardize": plan.reference["standardize"],
                "naming": _naming(plan),
                "fit": plan.fit,
                "seed": plan.seed,
            }
        )
    )
