r"""Evidence: the weighted average of measured profiles.

.. math:: e_{ig} = \frac{\sum_j w_{ij} m_{jg} y_{jg}}{\sum_j w_{ij} m_{jg}}

with :math:`m_{jg}` one where row j measured gene g. Where no cited row did, the evidence is NaN.

Sections are compared within themselves: :math:`y_j - \delta_{s(j)}` stands for :math:`y_j`, with the mean of the
section of row j minus that of the reference, :math:`\delta_s = \bar y_s - \bar y`. Depth, staining and handling move
whole sections; without the correction a prediction would move with the sections that its neighbours come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragst_sd.retrieval.bank import Answer, Selection
from ragst_sd.retrieval.blocks import known_sum, product_in_blocks
from ragst_sd.retrieval.cited_sums import cited_sums
from ragst_sd.retrieval.gate import normalised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragst_sd.retrieval.bank import Bank, Query

    Adjustment = Callable[[Mapping[str, Any], Bank, Selection], np.ndarray]

# Values of rows of a tensor that are gathered at once.
_GATHERED_VALUES = 2**28


def weighted_average(
    rows: np.ndarray,
    weights: np.ndarray,
    values: Any,
    *,
    panels: np.ndarray | None = None,
    measured: np.ndarray | None = None,
) -> np.ndarray:
    """Average the cited rows of each query over the genes that they measured.

    Parameters
    ----------
    rows
        (n, k) rows of the bank, -1 for none.
    weights
        (n, k) weights; those of absent rows count as zero.
    values
        (m, g) measured profiles: a numpy array, a scipy CSR matrix, or a tensor on any device.
    panels
        (m,) panel of each row.
    measured
        (panels, g) mask of the genes that each panel measured; all of them if left out.

    Returns
    -------
    float32 (n, g).
    """
    weights = np.where(rows >= 0, weights, 0.0).astype(np.float32)
    sums = _sums_on_device if isinstance(values, torch.Tensor) else cited_sums
    return _mean_of_measured(sums(rows, weights, values), rows, weights, panels, measured)


def _mean_of_measured(
    total: np.ndarray, rows: np.ndarray, weights: np.ndarray, panels: np.ndarray | None, measured: np.ndarray | None
) -> np.ndarray:
    """(n, g) weighted sums over the weights of the rows that measured each gene; NaN where none did."""
    if measured is not None and panels is not None and not measured.all():
        panel = np.where(rows >= 0, panels[np.maximum(rows, 0)], 0)
        of_panel = np.stack([np.where(panel == p, weights, 0).sum(axis=1) for p in range(len(measured))], axis=1)
        votes = of_panel @ measured.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            total = np.where(votes > 0, total / votes, np.nan)
    total[weights.sum(axis=1) == 0] = np.nan
    return total


def disagreement(
    bank: Bank,
    rows: np.ndarray,
    weights: np.ndarray,
    shifts: np.ndarray | None = None,
    average: np.ndarray | None = None,
    shift: np.ndarray | None = None,
) -> np.ndarray:
    r"""How much the cited rows differ among themselves: the weighted standard deviation of what each brings.

    .. math:: s_{ig}^2 = \sum_j w_{ijg} (z_{jg} - \bar z_{ig})^2, \qquad z_{jg} = y_{jg} - \delta_{s(j)g}

    with weights renormalised over the rows that measured gene g, their average :math:`\bar z`, and the shifts
    :math:`\delta` of the sections, zero if left out.

    Parameters
    ----------
    rows, weights
        As in :func:`weighted_average`.
    shifts
        (sections, g).
    average, shift
        (n, g) results of :func:`weighted_average` and :func:`weighted_shift` for the same rows, where they are known
        already.

    Returns
    -------
    float32 (n, g); NaN where no cited row measured the gene.
    """
    of_panels = {"panels": bank.panels, "measured": bank.measured}
    if average is None:
        average = weighted_average(rows, weights, bank.values, **of_panels)
    # The mean of z^2 less the square of the mean of z, with z^2 = y (y - 2 delta) + delta^2.
    mean, weights = average.astype(np.float64), np.where(rows >= 0, weights, 0.0)
    single = weights.astype(np.float32)
    without = np.zeros((bank.sections.max() + 1, average.shape[1]))
    squares = cited_sums(rows, single, bank.values, (bank.sections, without if shifts is None else shifts))
    mean_square = _mean_of_measured(squares, rows, single, **of_panels)
    if shifts is not None:
        mean -= weighted_shift(rows, weights, bank.sections, shifts, **of_panels) if shift is None else shift
        mean_square += weighted_shift(rows, weights, bank.sections, shifts**2, **of_panels)
    # In place: these are the largest arrays of a prediction.
    np.square(mean, out=mean)
    variance = np.subtract(mean_square, mean, out=mean_square)
    np.maximum(variance, 0.0, out=variance)
    return np.sqrt(variance, out=variance).astype(np.float32)


def weighted_shift(
    rows: np.ndarray,
    weights: np.ndarray,
    row_sections: np.ndarray,
    shifts: np.ndarray,
    *,
    panels: np.ndarray,
    measured: np.ndarray,
) -> np.ndarray:
    """(n, g) weighted average of the shifts of the cited rows that measured each gene; NaN where none did.

    Parameters
    ----------
    rows, weights
        (n, k) rows of the bank, -1 for none, and their weights.
    row_sections, panels
        (m,) section and panel of each row of the bank.
    shifts
        (sections, g).
    measured
        (panels, g) mask.
    """
    groups, index = np.unique(np.stack([row_sections, panels]), axis=1, return_inverse=True)
    index = index.ravel()
    share = np.zeros((len(rows), groups.shape[1]))
    queries = np.repeat(np.arange(len(rows)), rows.shape[1])
    cited = np.where(rows >= 0, weights, 0.0).ravel()
    np.add.at(share, (queries, index[np.maximum(rows, 0)].ravel()), cited)
    # In blocks of one shape, so that the sum of a row does not depend on the rows beside it.
    if measured.all():
        total = share.sum(axis=1, keepdims=True)
        share = np.divide(share, total, out=np.full(share.shape, np.nan), where=total > 0)
        return product_in_blocks(share, shifts[groups[0]])
    votes = measured[groups[1]].astype(np.float64)
    total = product_in_blocks(share, votes)
    out = product_in_blocks(share, votes * shifts[groups[0]])
    return np.divide(out, total, out=np.full(total.shape, np.nan), where=total > 0)


def _sums_on_device(rows: np.ndarray, weights: np.ndarray, values: torch.Tensor) -> np.ndarray:
    """The same sums as :func:`cited_sums`, of rows of a tensor on the device where it lies."""
    index, weight = (torch.from_numpy(a).to(values.device) for a in (np.maximum(rows, 0), weights))
    step = max(1, _GATHERED_VALUES // max(1, rows.shape[1] * values.shape[1]))
    parts = [
        torch.bmm(of_part[:, None], values[at].float())[:, 0]
        for at, of_part in zip(index.split(step), weight.split(step), strict=True)
    ]
    return torch.cat(parts).cpu().numpy()


def cite(query: Query, weights: np.ndarray) -> Selection:
    """The `n_neighbors` candidates with the largest of (n, K) weights, nearer first among equals; weights sum to one.

    A candidate without weight is not cited: its row is -1.
    """
    order = np.argsort(-weights, axis=1, kind="stable")[:, : query.n_neighbors]
    columns = (query.candidates.rows, weights, query.candidates.distances)
    rows, weights, distances = (np.take_along_axis(column, order, axis=1) for column in columns)
    weights = normalised(weights)
    return Selection(query.key, np.where(weights > 0, rows, -1), weights, np.where(weights > 0, distances, np.nan))


def cited_mean(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """The mean of the cited rows, relative to their sections if `parameters` has `section_shifts`.

    The mean of the rows that may be used, on which it is put back, is in `level`.
    """
    of_panels = {"panels": bank.panels, "measured": bank.measured}
    average = evidence = weighted_average(selection.rows, selection.weights, bank.values, **of_panels)
    shift = None
    if "section_shifts" in parameters:
        shifts, level = parameters["section_shifts"], parameters["level"]
        shift = weighted_shift(selection.rows, selection.weights, bank.sections, shifts, **of_panels)
        moved = average - shift
        moved += level[0] if len(level) == 1 else level[selection.pattern]
        evidence = moved.astype(np.float32)
    return Answer(evidence, np.zeros_like(evidence), average, shift)


def mean_of_reference(
    parameters: Mapping[str, Any], bank: Bank, selection: Selection, *, adjustment: Adjustment | None = None
) -> Answer:
    """The per-gene mean of the reference, and what a regression adds to it."""
    mean = np.asarray(parameters["reference_mean"]).astype(np.float32)
    evidence = np.broadcast_to(mean, (len(selection.rows), len(mean))).copy()
    added = np.zeros_like(evidence) if adjustment is None else adjustment(parameters, bank, selection)
    return Answer(evidence, added.astype(np.float32))


def effective_n(weights: np.ndarray) -> np.ndarray:
    r"""Effective number of neighbours, :math:`1 / \sum_j w_j^2`; NaN where nothing is cited."""
    squared = (np.asarray(weights, dtype=np.float64) ** 2).sum(axis=1)
    return np.divide(1.0, squared, out=np.full(len(squared), np.nan), where=squared > 0)


def evidence_share(evidence: np.ndarray, adjustment: np.ndarray, reference_mean: np.ndarray) -> np.ndarray:
    r"""Share of the prediction that measured neighbours explain.

    .. math:: \frac{|e - m|^2}{|e - m|^2 + |a|^2}

    with evidence e, adjustment a and the per-gene reference mean m. NaN where both are zero, as for the mean itself.
    """
    explained = known_sum((evidence - reference_mean) ** 2, axis=1)
    total = explained + known_sum(adjustment**2, axis=1)
    return np.divide(explained, total, out=np.full(len(total), np.nan), where=total > 0)
