"""Scripts of `benchmarks/` as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def import_script():
    """Import a script by its name, with those that it imports."""
    if not SCRIPTS.is_dir():
        pytest.skip("the benchmarks are not part of an installation")
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def script(request, import_script):
    """The script that a module of tests is named after."""
    return import_script(request.path.stem.removeprefix("test_"))
