"""Expression of a table as it is stored, and the names that the table offers for its genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._validate import require_key
from ragst_sd.reference.genes import available_names
from ragst_sd.reference.normalize import as_csr

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData


def stored_expression(table: AnnData, layer: str | None, where: str, todo: str) -> sp.csr_matrix:
    """X or a layer; a `ValueError` that ends with `todo` if there is no X."""
    if layer is not None:
        require_key(layer, table.layers, f"{where}.layers", "Leave `layer` out to take X.")
    elif table.X is None or table.n_vars == 0:
        msg = f"`{where}` has no expression (X is empty). {todo}"
        raise ValueError(msg)
    return as_csr(table.X if layer is None else table.layers[layer])


def offered_names(table: AnnData) -> dict[str, list[str]]:
    """Names of the genes by naming: `symbol`, `ensembl` or both."""
    return available_names(list(table.var_names), {name: table.var[name].astype(str) for name in table.var})
