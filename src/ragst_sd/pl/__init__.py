"""Pictures of predictions and of the measured tissue behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.pl._benchmark import benchmark
    from ragst_sd.pl._prediction import prediction
    from ragst_sd.pl._retrieval import retrieval
    from ragst_sd.pl._viewer import viewer

__all__ = ["benchmark", "prediction", "retrieval", "viewer"]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
