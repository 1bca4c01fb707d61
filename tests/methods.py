"""Methods that the quick tests try, one of each kind; the slow ones try the others, which do the same and take as long again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

QUICK = ("rag", "knn", "ridge", "mlp", "mean")


def marked(names: Iterable[str]) -> list[Any]:
    """Names of methods for `parametrize`, those that are not tried quickly marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
