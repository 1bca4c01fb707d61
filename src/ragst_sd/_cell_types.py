"""Cell types of a reference: fractions of its rows, signatures, and what depends on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_known
from ragst_sd.reference.hashing import parameters_hash


def cell_types(reference: AnnData) -> dict[str, Any] | None:
    """What `rg.tl.add_cell_types` wrote into the header, or `None`.

    Raises
    ------
    ValueError
        If fractions and header do not go together.
    """
    header = reference.uns[_keys.ATTRS].get(_keys.CELL_TYPES)
    if header is None:
        return None
    fractions = reference.obsm.get(_keys.CELL_TYPE_FRACTION)
    n_types = len(header["names"])
    if fractions is None or np.shape(fractions) != (reference.n_obs, n_types):
        fault = "is missing" if fractions is None else f"has shape {np.shape(fractions)}"
        raise ValueError(
            f"The reference's header names {n_types} cell types, but `obsm[{_keys.CELL_TYPE_FRACTION!r}]` {fault}. Run "
            "`rg.tl.add_cell_types` again."
        )
    return dict(header)


def cell_types_hash(ids: np.ndarray, fractions: np.ndarray, header: Mapping[str, Any]) -> str:
    """Hash of the fractions and signatures of a reference, whatever the order of its rows.

    The content hash of a reference does not depend on them, so that a fit outlives them.
    """
    order = np.argsort(ids, kind="stable")
    fractions = np.asarray(fractions, dtype=np.float32)
    parts = {name: header[name] for name in ("names", "genes", "signatures") if name in header}
    return parameters_hash({**parts, "fractions": fractions[order]})


def type_names(header: Mapping[str, Any]) -> list[str]:
    """Names of the cell types."""
    return [str(name) for name in header["names"]]


def signature_genes(header: Mapping[str, Any] | None) -> pd.Index:
    """Genes that the signatures of cell types hold."""
    genes = [] if header is None else header.get("genes", [])
    return pd.Index([str(gene) for gene in genes], dtype=object)


def signatures_of(header: Mapping[str, Any], genes: Sequence[str]) -> np.ndarray:
    """(types, genes) signatures in counts per 10,000."""
    return np.asarray(header["signatures"])[:, signature_genes(header).get_indexer(list(genes))].astype(np.float64)


def is_scrna(table: AnnData, genes: np.ndarray) -> np.ndarray:
    """Which genes of a predicted table, by position, come from single cells and not from measured spots."""
    if _keys.EVIDENCE not in table.var:
        return np.zeros(len(genes), dtype=bool)
    return (table.var[_keys.EVIDENCE].astype(str) == _keys.SCRNA).to_numpy()[genes]


def measured_columns(of_reference: pd.Index, genes: pd.Index, header: Mapping[str, Any] | None) -> np.ndarray:
    """Positions of genes among those of the reference, whose cell types have this header.

    Raises
    ------
    KeyError
        If the reference does not know a gene.
    ValueError
        If a gene comes from single cells.
    """
    columns = of_reference.get_indexer(genes)
    known = of_reference.union(signature_genes(header), sort=False)
    require_known(genes, known, "genes", ": the reference has no", KeyError)
    if (columns < 0).any():
        raise ValueError(
            f"No row of the reference measured {listing(genes[columns < 0])}: predicted from the signatures of cell "
            "types, so that there are no measured values to go back to. `rg.get.explain` tells the cell types; leave "
            f"these genes out here (`var[{_keys.EVIDENCE!r}]` marks them)."
        )
    return columns
