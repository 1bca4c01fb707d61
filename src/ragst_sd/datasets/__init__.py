"""Tissue to try the package on, and public data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.datasets._build_recipe import build_recipe
    from ragst_sd.datasets._catalog import catalog
    from ragst_sd.datasets._download_reference import download_reference
    from ragst_sd.datasets._load import load
    from ragst_sd.datasets._load_census import load_census
    from ragst_sd.datasets._load_screen import load_screen
    from ragst_sd.datasets._synthetic import synthetic
    from ragst_sd.datasets._upload_reference import upload_reference

__all__ = [
    "build_recipe",
    "catalog",
    "download_reference",
    "load",
    "load_census",
    "load_screen",
    "synthetic",
    "upload_reference",
]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
