"""Results as data frames: which measured spots a prediction came from, what each contributed, how far to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.get._explain import explain
    from ragst_sd.get._gap_closed import gap_closed
    from ragst_sd.get._influence import influence
    from ragst_sd.get._neighbors import neighbors
    from ragst_sd.get._risk_coverage import risk_coverage
    from ragst_sd.get._summary import summary

__all__ = ["explain", "gap_closed", "influence", "neighbors", "risk_coverage", "summary"]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
