"""Results as data frames: which measured spots a prediction came from, what each contributed, how far to trust it."""

from __future__ import annotations

from ragst_sd._lazy import lazy_functions

__all__, __getattr__, __dir__ = lazy_functions(__name__)
