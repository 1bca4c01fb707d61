"""Labels of donors, samples and the like, compared by what they mean and not by how a column happens to store them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd


def label(value: Any) -> str:
    """One label: `1`, `1.0`, `"1"` and `" 1"` are the same donor.

    One missing value turns a whole column of integers into floats, which must not make a new donor of everyone.
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def labels(values: pd.Series | Iterable[Any]) -> np.ndarray:
    """Labels of a column, as an object array of strings."""
    return np.array([label(value) for value in values], dtype=object)


def as_names(names: str | Iterable[Any]) -> list[str]:
    """One name or several, without repeats, in their order."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(str(name) for name in names))
