"""The schema of the header of a perturbation reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragst_sd.reference.schema import check_fields, check_task

TASK = "perturbation"

_HEADER = {
    "task": str,
    "use_rep": str,
    "perturbation_key": str,
    "control": str,
    "context_key": str,
    "batch_key": str,
    "embedding": Mapping,
    "normalization": Mapping,
    "contexts": Mapping,
    "controls": Mapping,
    "treated": Mapping,
    "control_cells": np.ndarray,
    "dropped": object,
    "sources": object,
    "content_hash": str,
}
_PARTS: dict[str, dict[str, type]] = {
    "embedding": {"name": str, "genes": np.ndarray, "values": np.ndarray},
    "contexts": {"context": np.ndarray, "mean": np.ndarray, "n_controls": np.ndarray},
    "controls": {"cell": np.ndarray, "context": np.ndarray, "batch": np.ndarray, "values": object},
    "treated": {"cell": np.ndarray, "row": np.ndarray, "values": object},
}
_TODO = "Build it with `rg.tl.build_perturbation_reference`."


def check_perturbation_header(header: Any) -> None:
    """Raise a `ValueError` unless `header` describes a perturbation reference."""
    check_task(header, TASK)
    check_fields(header, _HEADER, "The reference's header `uns['ragst']`", _TODO)
    for name, fields in _PARTS.items():
        check_fields(header[name], fields, f"The part {name!r} of the reference's header", _TODO)
