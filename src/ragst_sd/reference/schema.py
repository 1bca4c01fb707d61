"""What headers must hold, and in which version; when two embeddings are alike."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TASK = "perturbation"
RESPONSE_UNITS = {
    "log_fold_change": "log fold change",
    "z_score": "z score",
    "rank": "rank, from 1 (most up) to -1 (most down)",
}
"""Units of responses that are given as they are, and what a table calls them."""
# Of tables, fits and calibrations.
SCHEMA_VERSION = 1
# Of a reference of tissue; `reference/header.py` brings earlier ones to it when they are read.
REFERENCE_VERSION = 2

# Encoder settings that two embeddings must share to be comparable.
COMPARABLE = ("encoder", "weights_hash", "mean", "std", "input_px", "tile_px", "mpp", "context")

# What `schema.toml` calls the types.
_TYPES: dict[str, Any] = {
    "text": str,
    "flag": (bool, np.bool_),
    "whole": (int, np.integer),
    "number": (float, np.floating),
    "array": np.ndarray,
    "mapping": Mapping,
    "any": object,
}
SCHEMA = tomllib.loads(Path(__file__).with_name("schema.toml").read_text(encoding="utf-8"))


def check_fields(header: Any, fields: Mapping[str, str], what: str, todo: str, *, known: int = SCHEMA_VERSION) -> None:
    """Raise a `ValueError` unless `header` has all `fields`, of their types, in version `known`, the one read here."""
    if not isinstance(header, Mapping):
        raise ValueError(f"{what} is missing or not a mapping (found {type(header).__name__}). {todo}")
    version = int(header.get("schema_version", known))
    if version > known:
        raise ValueError(
            f"{what} has schema version {version}, and this installation of ragst_sd reads versions up to {known}. "
            f"Install a release that reads version {version} (`pip install --upgrade ragst-sd`), or make it again "
            "with this one."
        )
    if version < known:
        raise ValueError(
            f"{what} has schema version {version}, and this installation of ragst_sd works with version {known}. A "
            f"reference on disk is brought to it by `rg.io.read_reference`; anything else has to be made again."
        )
    missing = [name for name in fields if name not in header]
    wrong = [name for name in fields if name in header and not isinstance(header[name], _TYPES[fields[name]])]
    if missing or wrong:
        raise ValueError(
            f"{what} is damaged: missing {missing or 'nothing'}, of wrong type {wrong or 'nothing'}. {todo}"
        )


def check_embedding_header(header: Any, where: str) -> None:
    """Raise a `ValueError` unless `header` describes an embedding made by `rg.pp.embed_tiles`."""
    check_fields(header, SCHEMA["embedding"], f"The header of {where}", "Make the embedding with `rg.pp.embed_tiles`.")


def knows_tiles(header: Mapping[str, Any]) -> bool:
    """Whether a header says of which tiles an embedding was made; that of one of unknown origin does not."""
    tile_px = header.get("tile_px", 0)
    return bool(np.ndim(tile_px) or tile_px != 0)


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Encoder settings in which two embedding headers differ, as readable clauses.

    Embeddings of unknown origin differ by their names; from all that say where they come from they differ.
    """
    if knows_tiles(first) != knows_tiles(second):
        return [f"origin: {' against '.join(_origin(header) for header in (first, second))}"]
    clauses = []
    for name in COMPARABLE:
        if not same_value(first.get(name), second.get(name)):
            what = name if knows_tiles(first) else "name"
            clauses.append(f"{what}: {_short(first.get(name))} against {_short(second.get(name))}")
    return clauses


def same_value(first: Any, second: Any) -> bool:
    """Equality of header values, arrays and NaN included."""
    if isinstance(first, str) or isinstance(second, str) or first is None or second is None:
        return first is second or str(first) == str(second)
    return bool(np.array_equal(np.asarray(first, dtype=float), np.asarray(second, dtype=float), equal_nan=True))


def embed_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What to do about embeddings that differ."""
    if knows_tiles(first) and knows_tiles(second):
        return "Embed both with the same call of `rg.pp.embed_tiles`."
    return (
        "Embed both with the same call of `rg.pp.embed_tiles`, or, of features from elsewhere, state the origin of "
        "both alike with `rg.pp.use_features`, or keep both without a header under one name."
    )


def _origin(header: Mapping[str, Any]) -> str:
    return f"encoder {_short(header['encoder'])}" if knows_tiles(header) else "unknown"


def _short(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 40 else f"{text[:12]}..."
