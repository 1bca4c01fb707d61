"""Spots against their picture: whether they lie in it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)


def check_inside(xy: np.ndarray, width: int, height: int) -> None:
    """Raise a `ValueError` if no spot lies in the picture, and warn if some do not; both name the likely cause."""

    def outside(points: np.ndarray) -> int:
        return int((~((points >= 0) & (points < (width, height))).all(axis=1)).sum())

    n_outside = outside(xy)
    if n_outside == 0:
        return
    reach = xy.max(axis=0)
    extent = f"x from {xy[:, 0].min():.0f} to {reach[0]:.0f}, y from {xy[:, 1].min():.0f} to {reach[1]:.0f}"
    if outside(xy[:, ::-1]) == 0:
        todo = "x and y look swapped: with their columns exchanged all spots lie inside."
    elif (reach > (width, height)).any():
        factor = float((reach / (width, height)).max())
        todo = (
            f"They look like pixels of a picture at least {factor:.1f} times as large (another resolution): read that "
            "picture, or multiply the coordinates by the ratio of the sizes."
        )
    else:
        todo = "Check their origin and unit: pixels count from the top left corner of the picture."
    if n_outside == len(xy):
        msg = f"All {len(xy)} spots lie outside the picture of {width} x {height} px ({extent}). {todo}"
        raise ValueError(msg)
    logger.warning(
        "%d of %d spots lie outside the picture of %d x %d px (%s). %s", n_outside, len(xy), width, height, extent, todo
    )
