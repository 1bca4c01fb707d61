"""How many random examples a property is tried on."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

THOROUGH = os.environ.get("RAGST_SD_THOROUGH") == "1"


def examples(few: int, many: int) -> settings:
    """The same examples in every run, `many` of them when asked to be thorough."""
    return settings(
        max_examples=many if THOROUGH else few,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
