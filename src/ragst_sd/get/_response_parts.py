"""Predicted expression after a perturbation, taken apart: the cell as it was, the cited responses, the adjustment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

_ABOUT = (_keys.PERTURBATION, _keys.CONTEXT)


def nothing_cited(header: Mapping[str, Any]) -> str:
    """What stands in for cited rows where a prediction cites none."""
    return f"nothing cited: {header.get(_keys.STARTS_FROM, 'prediction without retrieval')}"


def response_parts(
    reference: AnnData, header: dict[str, Any], table: AnnData, cells: np.ndarray, genes: np.ndarray
) -> pd.DataFrame:
    """Lines of :func:`ragst_sd.get.explain` for predicted responses."""
    import pandas as pd

    bank = header[_keys.CITED]
    rows, weights = (np.asarray(table.obsm[name])[cells] for name in (_keys.ROWS, _keys.WEIGHTS))
    cites = (rows >= 0) & (weights > 0)
    order = np.lexsort((rows, np.where(cites, -weights, np.inf)), axis=1)
    rows, weights, cites = (np.take_along_axis(part, order, axis=1) for part in (rows, weights, cites))
    weights = weights.astype(np.float64)[:, None, :]
    prediction, response, evidence = (
        dense(matrix[cells][:, genes]).astype(np.float64)
        for matrix in (table.X, table.layers[_keys.RESPONSE], table.layers[_keys.EVIDENCE])
    )
    source, adjustment = prediction - response, response - evidence

    at = reference.obs_names.get_indexer(bank["reference"])
    columns = reference.var_names.get_indexer(table.var_names[genes])
    # The last line is that of nobody, to whom -1 points.
    measured = np.concatenate([dense(reference.X[at][:, columns]), np.full((1, len(genes)), np.nan)])
    measured = measured[rows].transpose(0, 2, 1)

    def slots(source: Any, cited: Any, instead: Any, adjustment: Any) -> np.ndarray:
        """(cells, genes, k + 3): places for the source, each cited row, what stands in for them, and the adjustment."""
        widths = ((source, 1), (cited, rows.shape[1]), (instead, 1), (adjustment, 1))
        shape = (len(cells), len(genes))
        return np.concatenate([np.broadcast_to(part, (*shape, width)) for part, width in widths], axis=2)

    control = labels(table.obs[_keys.PERTURBATION])[cells] == str(header["control"])
    instead = len(bank) + np.where(control, 3, 1)
    uncited = (cites.sum(axis=1) == 0)[:, None, None]
    keep = slots(source=True, cited=cites[:, None, :], instead=uncited, adjustment=True)
    line = slots(len(bank), rows[:, None, :], instead[:, None, None], len(bank) + 2)
    weight = slots(np.nan, weights, np.nan, np.nan)
    source, evidence, adjustment = (part[..., None] for part in (source, evidence, adjustment))
    value = slots(source, measured, evidence, np.nan)
    contribution = slots(source, measured * weights, evidence, adjustment)

    cell, gene, _ = np.nonzero(keep)
    line = line[keep]
    names = {
        "reference": np.array(
            [*bank["reference"], "source", nothing_cited(header), "adjustment", "control: no response"], dtype=object
        ),
        **{name: np.array([*bank[name].astype(str), "", "", "", ""], dtype=object) for name in _ABOUT},
    }
    return pd.DataFrame(
        {
            "query": table.obs_names.to_numpy(dtype=object)[cells][cell],
            "gene": table.var_names.to_numpy(dtype=object)[genes][gene],
            **{name: values[line] for name, values in names.items()},
            "weight": weight[keep],
            "value": value[keep],
            "contribution": contribution[keep],
        }
    )
