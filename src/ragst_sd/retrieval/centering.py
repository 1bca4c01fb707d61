r"""Sections compared within themselves: measured values relative to the mean of their section.

.. math:: e_i = \sum_j w_{ij} \bigl(y_j - \delta_{s(j)}\bigr), \qquad \delta_s = \bar y_s - \bar y

with :math:`\bar y_s` the mean of section s and :math:`\bar y` the mean over the reference. Depth, staining
and handling move whole sections; without the correction a spot's prediction would move with the sections that
its neighbours come from.
"""

from __future__ import annotations

import numpy as np

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.blocks import product_in_blocks
from ragst_sd.retrieval.training import reference_mean


def section_shifts(training: Bank) -> np.ndarray:
    """(sections, g) mean of each section minus the mean of the reference.

    Zero where a section did not measure a gene.
    """
    mean = reference_mean(training)
    shifts = np.zeros((int(training.sections.max()) + 1, training.values.shape[1]))
    for section in np.unique(training.sections):
        own = reference_mean(training, np.flatnonzero(training.sections == section))
        shifts[section] = np.nan_to_num(own - mean)
    return shifts


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
    held = np.where(rows >= 0, weights, 0.0)
    np.add.at(share, (np.repeat(np.arange(len(rows)), rows.shape[1]), index[np.maximum(rows, 0)].ravel()), held.ravel())
    # In blocks of one shape, so that the sum of a row does not depend on the rows beside it.
    if measured.all():
        total = share.sum(axis=1, keepdims=True)
        share = np.divide(share, total, out=np.full(share.shape, np.nan), where=total > 0)
        return product_in_blocks(share, shifts[groups[0]])
    votes = measured[groups[1]].astype(np.float64)
    total = product_in_blocks(share, votes)
    out = product_in_blocks(share, votes * shifts[groups[0]])
    return np.divide(out, total, out=np.full(total.shape, np.nan), where=total > 0)
