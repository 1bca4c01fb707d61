"""Methods that the tables compare and that are no part of the package."""

from __future__ import annotations

import ragst_sd as rg
from methods import bleep, ridge_residual

METHODS = {"ridge_residual": ridge_residual.METHOD, "bleep": bleep.METHOD}


def register() -> None:
    """Make them known to `rg.tl.fit`."""
    for name, method in METHODS.items():
        rg.tl.register_method(name, method)
