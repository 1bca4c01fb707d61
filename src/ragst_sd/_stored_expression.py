"""Expression of a table as it is stored, and the names that the table offers for its genes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_key
from ragst_sd.reference.genes import available_names
from ragst_sd.reference.normalize import as_csr, refuse_masked

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

logger = logging.getLogger(__name__)

_FEATURE_TYPES, _RNA = "feature_types", "Gene Expression"
# Control probes and codewords of Xenium, CosMx and MERSCOPE, and spike-ins: no gene is named so.
_CONTROLS = (
    r"neg(?:ative)?[-_ ]?(?:control|prb|probe|\d)|blank[-_]?\d|systemcontrol|falsecode|(?:unassigned|deprecated)codeword|"
    r"antisense_|intergenic_region|ercc-\d"
)


def of_rna(table: AnnData) -> np.ndarray:
    """(features,) which of them are genes: antibodies, guides and control probes are counted beside RNA, and are none.

    `var["feature_types"]` says so; without it, controls are known by their names.

    Raises
    ------
    ValueError
        If `var["feature_types"]` says so of none.
    """
    if _FEATURE_TYPES not in table.var:
        controls = table.var_names.astype(str).str.match(_CONTROLS, case=False)
        if controls.any():
            logger.info("%d control probes are left out: %s.", controls.sum(), listing(table.var_names[controls]))
        return ~controls
    kinds = labels(table.var[_FEATURE_TYPES])
    rna = np.array([kind.casefold() == _RNA.casefold() for kind in kinds], dtype=bool)
    others = [f"{kind} ({n})" for kind, n in zip(*np.unique(kinds[~rna], return_counts=True), strict=True)]
    if len(kinds) and not rna.any():
        msg = (
            f"No feature has {_RNA!r} in `var[{_FEATURE_TYPES!r}]`; found {listing(others)}. Write {_RNA!r} for "
            "features that are RNA, or drop the column if all of them are."
        )
        raise ValueError(msg)
    if others:
        logger.info("Features that are not of type %r are left out: %s.", _RNA, listing(others))
    return rna


def stored_expression(
    table: AnnData, layer: str | None, where: str, todo: str, *, counted: bool = True
) -> sp.csr_matrix:
    """Expression of the genes in X or a layer; a `ValueError` that ends with `todo` if there is no X.

    Spots of which nothing is known (NaN in every gene) are returned like those without counts, unless values are not
    `counted`: there zero says something.
    """
    if layer is not None:
        require_key(layer, table.layers, f"{where}.layers", "Leave `layer` out to take X.")
    elif table.X is None or table.n_vars == 0:
        msg = f"`{where}` has no expression (X is empty). {todo}"
        raise ValueError(msg)
    rna = of_rna(table)
    # A view has lost the mask of a masked array, which is refused.
    whole: Any = table._adata_ref if table.is_view else table
    refuse_masked(whole.X if layer is None else whole.layers[layer])
    matrix = as_csr(table.X if layer is None else table.layers[layer])
    matrix = matrix if rna.all() else matrix[:, rna]
    missing = np.isnan(matrix.data)
    if counted and missing.any():
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        unmeasured = np.bincount(row[missing], minlength=matrix.shape[0]) == matrix.shape[1]
        matrix.data[unmeasured[row]] = 0
        matrix.eliminate_zeros()
    return matrix


def offered_names(table: AnnData) -> dict[str, list[str]]:
    """Names of the genes by naming: `symbol`, `ensembl` or both."""
    var = table.var[of_rna(table)]
    return available_names(list(var.index), {name: var[name].astype(str) for name in var})
