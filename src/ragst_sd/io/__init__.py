"""Reading sections; building, reading, writing and sharing references; writing tables into a store."""

from __future__ import annotations

from ragst_sd._lazy import lazy_functions

__all__, __getattr__, __dir__ = lazy_functions(__name__)
