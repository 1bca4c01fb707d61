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

    # Each cell and gene has a place for the source, for each cited row, for what stands in for them, and the adjustment.
    k = rows.shape[1]
    shape = (len(cells), len(genes), k + 3)
    keep = np.ones(shape, dtype=bool)
    keep[..., 1 : k + 1], keep[..., k + 1] = cites[:, None, :], ~cites.any(axis=1, keepdims=True)
    line = np.empty(shape, dtype=np.int64)
    line[..., 0], line[..., 1 : k + 1], line[..., k + 1 :] = len(bank), rows[:, None, :], len(bank) + np.array([1, 2])
    control = labels(table.obs[_keys.PERTURBATION])[cells] == str(header["control"])
    line[control, :, k + 1] = len(bank) + 3
    weight, value, contribution = (np.full(shape, np.nan) for _ in range(3))
    weight[..., 1 : k + 1] = weights
    value[..., 0], value[..., k + 1] = source, evidence
    if len(bank):
        at = reference.obs_names.get_indexer(bank["reference"])
        measured = dense(reference.X[at][:, reference.var_names.get_indexer(table.var_names[genes])])
        value[..., 1 : k + 1] = measured[np.maximum(rows, 0)].transpose(0, 2, 1)
    contribution[...] = value
    contribution[..., 1 : k + 1] *= weights
    contribution[..., -1] = adjustment

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
