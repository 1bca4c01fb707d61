"""Predicted values of genes from single cells, taken apart into cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._validate import require_key
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

    from ragst_sd.retrieval.bank import Bank


def cell_type_lines(
    bank: Bank, header: dict[str, Any], table: AnnData, spots: np.ndarray, genes: np.ndarray
) -> pd.DataFrame:
    """Lines of :func:`ragst_sd.get.explain` for genes from single cells, types by falling fraction.

    Raises
    ------
    KeyError
        If the table lost its fractions.
    ValueError
        If the reference's cell types are not those that the prediction was made from.
    """
    import pandas as pd

    about = _same_cell_types(bank, header)
    require_key(_keys.CELL_TYPE_FRACTION, table.obsm, "table.obsm", "`rg.tl.predict` writes it; predict again.")
    names, gene_names = np.asarray(type_names(about), dtype=object), table.var_names[genes]
    fractions = np.asarray(table.obsm[_keys.CELL_TYPE_FRACTION], dtype=np.float64)[spots]
    profiles = signatures_of(about, gene_names)
    prediction = dense(table.X[spots][:, genes]).astype(np.float64)
    evidence = dense(table.layers[_keys.EVIDENCE][spots][:, genes]).astype(np.float64)
    parts = []
    for i, spot in enumerate(table.obs_names[spots]):
        for j, gene in enumerate(gene_names):
            known = np.isfinite(fractions[i]).all()
            order = np.lexsort((np.arange(len(names)), -fractions[i]))
            order = order[fractions[i, order] > 0] if known else order[:0]
            share, amounts = fractions[i, order], fractions[i, order] * profiles[order, j]
            contribution = evidence[i, j] * (amounts / amounts.sum() if amounts.sum() > 0 else np.zeros(len(order)))
            value = np.log1p(profiles[order, j])
            unknown = [] if known else [np.nan]
            lines = {
                "reference": np.array([*(names[order] if known else ["not measured"]), "adjustment"], dtype=object),
                _keys.DONOR: "",
                _keys.SAMPLE: "",
                "weight": [*unknown, *share, np.nan],
                "value": [*unknown, *value, np.nan],
                "correction": [*unknown, *(contribution / share - value), np.nan],
                "contribution": [*unknown, *contribution, prediction[i, j] - evidence[i, j]],
            }
            parts.append(pd.DataFrame({"query": spot, "gene": gene, **lines}))
    return pd.concat(parts, ignore_index=True)


def _same_cell_types(bank: Bank, header: dict[str, Any]) -> Mapping[str, Any]:
    about, made_from = bank.header.cell_types, header.get(_keys.CELL_TYPES) or {}
    current = "" if about is None else cell_types_hash(bank.ids, np.asarray(bank.types), about)
    if about is None or not len(signature_genes(about)) or current != made_from.get("hash"):
        msg = (
            f"The prediction was made from cell types with hash {str(made_from.get('hash'))[:12]}; the reference has "
            f"{current[:12] or 'none'}. Explaining a gene from single cells needs the very signatures: run "
            "`rg.tl.add_cell_types` as it was, or predict again."
        )
        raise ValueError(msg)
    return about
