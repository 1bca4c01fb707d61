"""Pictures of predictions and of the measured tissue behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.pl._benchmark import benchmark
    from ragst_sd.pl._composite import composite
    from ragst_sd.pl._explain import explain
    from ragst_sd.pl._perturbation import perturbation
    from ragst_sd.pl._prediction import prediction
    from ragst_sd.pl._reliability import reliability
    from ragst_sd.pl._retrieval import retrieval
    from ragst_sd.pl._sources import sources
    from ragst_sd.pl._viewer import viewer

__all__ = [
    "benchmark",
    "composite",
    "explain",
    "perturbation",
    "prediction",
    "reliability",
    "retrieval",
    "sources",
    "viewer",
]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
