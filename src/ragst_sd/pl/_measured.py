"""What was measured where a table predicts, for drawing beside the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


def measured_values(
    sdata: SpatialData | AnnData,
    table: AnnData,
    header: dict[str, Any],
    truth_key: str | Literal[False] | None,
    *,
    layer: str | None,
    unit: str,
    genes: Sequence[str] | None,
) -> tuple[np.ndarray, list[str]] | None:
    """(spots, genes) measured values in the unit of the prediction, NaN for spots that were not measured; the genes.

    `None` where there is nothing to compare with: no table was asked for, and none of the same shapes fits.

    Raises
    ------
    KeyError
        If the measured table, the layer or a gene does not exist.
    ValueError
        If the truth is not measured, shares no spots or genes, or is not counts.
    """
    from ragst_sd._truth import if_it_fits, normalized_truth, shared_genes, shared_spots, shown_truth, truth_table
    from ragst_sd.reference.genes import take_genes

    key = shown_truth(sdata, table, truth_key)
    if key is None:
        return None

    def compared() -> tuple[np.ndarray, list[str]]:
        measured = truth_table(sdata, table, key)
        matrix, names, counted = normalized_truth(measured, header, layer, unit)
        shared = shared_genes(table, names, genes)
        ours, theirs = shared_spots(table, measured, counted)
        out = np.full((table.n_obs, len(shared)), np.nan)
        out[ours] = dense(take_genes(matrix, names, shared)[theirs])
        return out, shared

    return if_it_fits(compared, truth_key)
