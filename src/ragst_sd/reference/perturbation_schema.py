"""The schema of the header of a perturbation reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragst_sd.reference.schema import SCHEMA, check_fields, check_task

TASK = "perturbation"

_TODO = "Build it with `rg.tl.build_perturbation_reference`."


def control_names(header: Mapping[str, Any]) -> list[str]:
    """What the screen calls its controls: one name, or several that count as the first."""
    return [str(name) for name in np.atleast_1d(header.get("control_names", header["control"]))]


def check_perturbation_header(header: Any) -> None:
    """Raise a `ValueError` unless `header` describes a perturbation reference."""
    check_task(header, TASK)
    check_fields(header, SCHEMA["screen"], "The reference's header `uns['ragst']`", _TODO)
    for name, fields in SCHEMA["parts_of_screen"].items():
        check_fields(header[name], fields, f"The part {name!r} of the reference's header", _TODO)
