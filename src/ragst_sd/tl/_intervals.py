"""Intervals: from held-out scores to quantiles of each gene, and from these to limits around a prediction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ragst_sd._labels import labels
from ragst_sd._validate import listing
from ragst_sd.reference.header import Fit, check_calibration
from ragst_sd.retrieval import conformal
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.run import Values
from ragst_sd.retrieval.threads import on_threads

logger = logging.getLogger(__name__)

# Smallest spread that is believed, in standard deviations of the gene within sections.
FLOOR = 0.5
_BLOCK_VALUES = 2**18
_FAR_PERCENTILE = 95


def far_distance(fit: Fit) -> float:
    """Distance beyond which intervals widen: 95 % of held-out rows of the reference lie nearer.

    NaN if none was measured.
    """
    quantiles = np.asarray(fit.distance_quantiles, dtype=np.float64)
    return float(np.percentile(quantiles, _FAR_PERCENTILE)) if np.isfinite(quantiles).all() else float("nan")


def gene_floor(bank: Bank) -> np.ndarray:
    """(genes,) float32 smallest spread that is believed, from that within sections over rows that measured a gene."""
    codes, groups = bank.section_panels
    values = sp.csr_matrix(bank.values)
    member = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    total, squares = (np.asarray((member @ part).todense()) for part in (values, values.multiply(values).tocsr()))
    size = np.bincount(codes)[:, None]
    measured = bank.measured[groups[:, 1]]
    within = np.where(measured, squares - total**2 / size, 0.0).sum(axis=0)
    rows = (measured * size).sum(axis=0)
    variance = np.divide(within, rows, out=np.zeros(len(within)), where=rows > 0)
    # Below the rounding of float32 sums nothing varies.
    variance[variance < 1e-10] = 0.0
    return (FLOOR * np.sqrt(variance)).astype(np.float32)


def held_out_scores(
    truth: np.ndarray, predicted: Values, distance: np.ndarray, floor: np.ndarray, far: float
) -> np.ndarray:
    """(n, genes) float32 errors in units of their scale; NaN where nothing was predicted or a gene never varies."""
    scale = conformal.interval_scale(predicted["disagreement"], floor, distance, far)
    error = np.abs(truth - predicted["prediction"]).astype(np.float32)
    return np.divide(error, scale, out=np.full(scale.shape, np.nan, dtype=np.float32), where=scale > 0)


def quantiles_by_level(
    scores: np.ndarray, levels: np.ndarray, groups: dict[str, np.ndarray]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Quantiles of held-out scores, the unit of exchange of each level, and the share of the scores below them.

    Parameters
    ----------
    scores
        (rows, genes), NaN where a row has none.
    levels
        (L,)
    groups
        Codes (rows,) of the units in which whole groups were held out, the largest first.

    Returns
    -------
    (genes, L) float32, the unit of each level, and (L,) means over genes.
    """
    scored = np.isfinite(scores).any(axis=1)
    units = [_unit({name: codes[scored] for name, codes in groups.items()}, level) for level in levels]
    out = np.full((scores.shape[1], len(levels)), np.nan, dtype=np.float32)
    step = max(1, _BLOCK_VALUES // max(1, len(scores)))
    inside = np.full(out.shape, np.nan)

    def some(start: int) -> None:
        block = slice(start, start + step)
        # Columns are sorted, again and again.
        part = np.asfortranarray(scores[:, block])
        count = np.isfinite(part).sum(axis=0)
        for i, (level, unit) in enumerate(zip(levels, units, strict=True)):
            pooled = unit == conformal.UNITS[-1]
            out[block, i] = (
                conformal.spot_threshold(part, level)
                if pooled
                else conformal.group_threshold(part, groups[unit], level)
            )
            known = np.isfinite(out[block, i])
            inside[block, i][known] = (part <= out[block, i]).sum(axis=0)[known] / count[known]

    on_threads(some, range(0, len(out), step))
    return out, units, pd.DataFrame(inside).mean().to_numpy()


def _unit(groups: dict[str, np.ndarray], level: float) -> str:
    """The largest unit of which there are enough."""
    for name, codes in groups.items():
        if conformal.attainable(len(np.unique(codes)), level):
            return name
    return conformal.UNITS[-1]


def check_level(bank: Bank, level: float) -> int:
    """Place of a level in the calibration.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If the reference has no calibration of its fit, or not of this level.
    """
    if isinstance(level, bool) or not isinstance(level, int | float | np.floating):
        raise TypeError(f"`intervals` is a {type(level).__name__}; it must be the wanted coverage, for instance 0.9.")
    calibration = check_calibration(bank.header.calibration, bank.fit.fit_hash)
    levels = np.asarray(calibration["levels"], dtype=np.float64)
    place = np.flatnonzero(np.isclose(levels, level))
    if not len(place):
        raise ValueError(
            f"`intervals` is {level!r}; calibrated are {listing(levels.tolist())}. Choose one of them, or run "
            f"`rg.tl.calibrate(reference, levels=[{level!r}])`."
        )
    return int(place[0])


def interval_rule(
    calibration: Mapping[str, Any],
    place: int,
    gene_index: np.ndarray,
    *,
    as_calibrated: bool,
    split: str = "donor",
    calibrated_on: Sequence[str] = (),
) -> conformal.IntervalRule:
    """The rule of a calibrated level, with warnings about what it rests on.

    Parameters
    ----------
    as_calibrated
        Whether all rows and as many neighbours were used as in the calibration.
    split
        What is to be held out for the task at hand; a `ValueError` if the calibration held out the other.
    calibrated_on
        Donors of the query whose own measurements took part in it.
    """
    calibrated = calibration.get("split", "donor")
    if calibrated != split:
        what = {
            "block": "rows of the query's own donor are used (`exclude`)",
            "donor": "the reference has no rows of the query's donor, or they are not used",
        }
        raise ValueError(
            f"`intervals`: they were calibrated on held-out {calibrated}s, and here {what[split]}. "
            f"Run `rg.tl.calibrate(reference, split={split!r})` first."
        )
    levels = np.asarray(calibration["levels"], dtype=np.float64)
    # Strings come back from a store in another type of array.
    units = labels(np.atleast_1d(calibration["units"])).astype(str)
    unit = str(units[place])
    quantiles = np.asarray(calibration["quantiles"], dtype=np.float32)[gene_index]
    if unit == conformal.UNITS[-1] and split == "block":
        logger.warning(
            "Intervals at %g rest on single spots (too few blocks were held out for that level): their coverage in "
            "other parts of a section is not assured.",
            levels[place],
        )
    elif unit not in (conformal.UNITS[0], "block"):
        logger.warning(
            "Intervals at %g rest on %s, since the reference has too few donors for that level (%d): their coverage on "
            "new donors is not assured.",
            levels[place],
            "sections" if unit == conformal.UNITS[1] else "single spots",
            int(calibration["n_donors"]),
        )
    if not as_calibrated:
        logger.warning(
            "Intervals were calibrated with all rows and neighbours; here fewer are used: coverage may differ."
        )
    if calibrated_on and split == "donor":
        logger.warning(
            "The intervals were calibrated on what was measured in %s too, among others: how many values of these "
            "donors lie inside is no evidence of coverage.",
            listing(list(calibrated_on)),
        )
    floor = np.asarray(calibration["floor"], dtype=np.float32)[gene_index]
    far = float(calibration["far_distance"])
    return conformal.IntervalRule(float(levels[place]), unit, levels, units, quantiles, quantiles[:, place], floor, far)
