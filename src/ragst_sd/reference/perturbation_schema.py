"""The schema of the header of a perturbation reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragst_sd.reference.schema import check_fields, check_task

TASK = "perturbation"
RESPONSE_UNITS = {
    "log_fold_change": "log fold change",
    "z_score": "z score",
    "rank": "rank, from 1 (most up) to -1 (most down)",
}
"""Units of responses that are given as they are, and what a table calls them."""

_NAMES = ("task", "use_rep", "perturbation_key", "control", "context_key", "batch_key", "content_hash")
_HEADER = {
    **dict.fromkeys(_NAMES, str),
    **dict.fromkeys(("embedding", "normalization", "contexts", "controls", "treated"), Mapping),
    "control_cells": np.ndarray,
    **dict.fromkeys(("dropped", "sources"), object),
}
_PARTS: dict[str, dict[str, type]] = {
    "embedding": {"name": str, "genes": np.ndarray, "values": np.ndarray},
    "contexts": {"context": np.ndarray, "mean": np.ndarray, "n_controls": np.ndarray},
    "controls": {"cell": np.ndarray, "context": np.ndarray, "batch": np.ndarray, "values": object},
    "treated": {"cell": np.ndarray, "row": np.ndarray, "values": object},
}
_TODO = "Build it with `rg.tl.build_perturbation_reference`."


def control_names(header: Mapping[str, Any]) -> list[str]:
    """What the screen calls its controls: one name, or several that count as the first."""
    return [str(name) for name in np.atleast_1d(header.get("control_names", header["control"]))]


def check_perturbation_header(header: Any) -> None:
    """Raise a `ValueError` unless `header` describes a perturbation reference."""
    check_task(header, TASK)
    check_fields(header, _HEADER, "The reference's header `uns['ragst']`", _TODO)
    for name, fields in _PARTS.items():
        check_fields(header[name], fields, f"The part {name!r} of the reference's header", _TODO)
