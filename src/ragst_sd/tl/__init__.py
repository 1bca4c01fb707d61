"""Tools: build a reference, pair it with single cells, fit, calibrate, predict, evaluate, cross-validate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.tl._add_cell_types import add_cell_types
    from ragst_sd.tl._build_reference import build_reference
    from ragst_sd.tl._calibrate import calibrate
    from ragst_sd.tl._cross_validate import cross_validate
    from ragst_sd.tl._evaluate import evaluate
    from ragst_sd.tl._fit import fit
    from ragst_sd.tl._predict import predict
    from ragst_sd.tl._report import report

__all__ = ["add_cell_types", "build_reference", "calibrate", "cross_validate", "evaluate", "fit", "predict", "report"]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
