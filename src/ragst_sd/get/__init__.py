"""Results as data frames: which measured spots a prediction came from, and what each contributed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.get._explain import explain
    from ragst_sd.get._influence import influence
    from ragst_sd.get._neighbors import neighbors

__all__ = ["explain", "influence", "neighbors"]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
