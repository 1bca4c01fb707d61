"""Tissue to try the package on, and public data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.datasets._catalog import catalog
    from ragst_sd.datasets._load import load
    from ragst_sd.datasets._load_census import load_census
    from ragst_sd.datasets._load_screen import load_screen
    from ragst_sd.datasets._synthetic import synthetic

__all__ = ["catalog", "load", "load_census", "load_screen", "synthetic"]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
