"""How many random examples a property is tried on."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def examples(number: int) -> settings:
    """The same examples in every run, unless a seed asks for others.

    Which others they are is chosen by `--hypothesis-seed`.
    """
    return settings(
        max_examples=number,
        deadline=None,
        derandomize="RAGST_SD_SEED" not in os.environ,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
