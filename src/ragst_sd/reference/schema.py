"""The schema of a reference's header: what must be there, and in which version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Of tables, fits and calibrations.
SCHEMA_VERSION = 1
# Of a reference of tissue; `reference/migration.py` brings earlier ones to it when they are read.
REFERENCE_VERSION = 2

# Encoder settings that two embeddings must share to be comparable.
COMPARABLE = ("encoder", "weights_hash", "mean", "std", "input_px", "tile_px", "mpp", "context")

_HEADER = {
    "task": str,
    "use_rep": str,
    "standardize": (bool, np.bool_),
    "encoder": Mapping,
    "sections": Mapping,
    "normalization": Mapping,
    "panels": np.ndarray,
    "content_hash": str,
    "donor_key": str,
    "obs": np.ndarray,
}
_FIT = {
    "method": str,
    "n_neighbors": (int, np.integer),
    "n_candidates": (int, np.integer),
    "metric": str,
    "parameters": Mapping,
    "reference_hash": str,
    "fit_hash": str,
    "inner_groups": str,
}
_TISSUE_FIT = {**_FIT, "appearance": Mapping}
_CALIBRATION = {
    "fit_hash": str,
    "levels": np.ndarray,
    "units": np.ndarray,
    "quantiles": np.ndarray,
    "floor": np.ndarray,
    "far_distance": (float, np.floating),
}
_EMBEDDING = {
    **dict.fromkeys(("encoder", "weights_hash"), str),
    "tile_px": (int, np.integer),
    "section_mean": np.ndarray,
    "n_outside": (int, np.integer),
}


def check_fields(header: Any, fields: Mapping[str, Any], what: str, todo: str, *, known: int = SCHEMA_VERSION) -> None:
    """Raise a `ValueError` unless `header` has all `fields`, of their types, in version `known`, the one read here."""
    if not isinstance(header, Mapping):
        msg = f"{what} is missing or not a mapping (found {type(header).__name__}). {todo}"
        raise ValueError(msg)
    version = int(header.get("schema_version", known))
    if version > known:
        msg = (
            f"{what} has schema version {version}, and this installation of ragst_sd reads versions up to {known}. "
            f"Install a release that reads version {version} (`pip install --upgrade ragst-sd`), or make it again "
            "with this one."
        )
        raise ValueError(msg)
    if version < known:
        msg = (
            f"{what} has schema version {version}, and this installation of ragst_sd works with version {known}. A "
            f"reference on disk is brought to it by `rg.io.read_reference`; anything else has to be made again."
        )
        raise ValueError(msg)
    missing = [name for name in fields if name not in header]
    wrong = [name for name in fields if name in header and not isinstance(header[name], fields[name])]
    if missing or wrong:
        msg = f"{what} is damaged: missing {missing or 'nothing'}, of wrong type {wrong or 'nothing'}. {todo}"
        raise ValueError(msg)


def check_embedding_header(header: Any, where: str) -> None:
    """Raise a `ValueError` unless `header` describes an embedding made by `rg.pp.embed_tiles`."""
    check_fields(header, _EMBEDDING, f"The header of {where}", "Make the embedding with `rg.pp.embed_tiles`.")


def check_reference_header(header: Any) -> None:
    """Raise a `ValueError` unless `header` describes a reference of tissue."""
    check_task(header, "histology")
    todo = "Build it with `rg.tl.build_reference`."
    check_fields(header, _HEADER, "The reference's header `uns['ragst']`", todo, known=REFERENCE_VERSION)


def check_task(header: Any, task: str) -> None:
    """Raise a `ValueError` if `header` describes a reference for another task."""
    found = header.get("task", task) if isinstance(header, Mapping) else task
    if found != task:
        use = {"histology": "rg.tl.predict", "perturbation": "rg.tl.perturb"}
        msg = (
            f"The reference is for the task {str(found)!r}, not {task!r}. Use "
            f"`{use.get(str(found), 'its own functions')}`."
        )
        raise ValueError(msg)


def check_fit(fit: Any, *, task: str = "histology") -> None:
    """Raise a `ValueError` unless `fit` describes a method fitted for `task`."""
    if fit is None:
        msg = "The reference is not fitted. Run `rg.tl.fit(reference, method=...)` first."
        raise ValueError(msg)
    fields = _TISSUE_FIT if task == "histology" else _FIT
    check_fields(fit, fields, "The reference's fit `uns['ragst']['fit']`", "Fit again with `rg.tl.fit`.")


def check_calibration(calibration: Any, fit_hash: str) -> Mapping[str, Any]:
    """The calibration; a `ValueError` unless it describes intervals of the fit with this hash."""
    if calibration is None:
        msg = "The reference has no intervals. Run `rg.tl.calibrate(reference)` first."
        raise ValueError(msg)
    todo = "Run `rg.tl.calibrate` again."
    check_fields(calibration, _CALIBRATION, "The reference's calibration `uns['ragst']['calibration']`", todo)
    if calibration["fit_hash"] != fit_hash:
        msg = (
            f"The calibration belongs to another fit (hash {calibration['fit_hash'][:12]} against "
            f"{fit_hash[:12]}). "
            f"{todo}"
        )
        raise ValueError(msg)
    return calibration


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
        a, b = first.get(name), second.get(name)
        if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
            same = a == b
        else:
            a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
            same = a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=True))
        if not same:
            what = name if knows_tiles(first) else "name"
            clauses.append(f"{what}: {_short(first.get(name))} against {_short(second.get(name))}")
    return clauses


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
