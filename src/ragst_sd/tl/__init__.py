"""Tools: build a reference, pair it with single cells, fit, calibrate, predict, evaluate, cross-validate."""

from __future__ import annotations

from ragst_sd._lazy import lazy_functions

__all__, __getattr__, __dir__ = lazy_functions(__name__)
