"""Tissue to try the package on, and public data sets."""

from __future__ import annotations

from ragst_sd._lazy import lazy_functions

__all__, __getattr__, __dir__ = lazy_functions(__name__)
