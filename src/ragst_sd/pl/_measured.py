"""What was measured at the spots of a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def measured_values(
    sdata: SpatialData,
    table: AnnData,
    header: dict[str, Any],
    truth_key: str,
    layer: str | None,
    unit: str,
    genes: list[str],
    *,
    skip_missing: bool = False,
) -> np.ndarray:
    """(spots, genes) measured values in the unit of the prediction; NaN for spots that were not measured.

    Genes that the measured table lacks are an error, or NaN if `skip_missing`.
    """
    from ragst_sd.reference.genes import take_genes
    from ragst_sd.tl._truth import normalized_truth, shared_genes, shared_spots, truth_table

    measured = truth_table(sdata, truth_key, None)
    matrix, names, counted = normalized_truth(measured, header, layer, unit)
    shared = set(shared_genes(table, names, None)) if skip_missing else set(shared_genes(table, names, genes))
    columns = [j for j, gene in enumerate(genes) if gene in shared]
    ours, theirs = shared_spots(table, measured, counted)
    out = np.full((table.n_obs, len(genes)), np.nan)
    if columns:
        out[np.ix_(ours, columns)] = dense(take_genes(matrix, names, [genes[j] for j in columns])[theirs])
    return out
