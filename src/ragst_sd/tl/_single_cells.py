"""Single cells with labels, checked, for `rg.tl.add_cell_types`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd._gene_names import names_in, stored_expression, why_few_shared
from ragst_sd._labels import is_missing, labels
from ragst_sd._validate import listing, require_key, require_type
from ragst_sd.reference.genes import sum_duplicates
from ragst_sd.reference.normalize import check_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp

logger = logging.getLogger(__name__)


class SingleCells(NamedTuple):
    """Counts by cell and gene, and the type of each cell."""

    counts: sp.csr_matrix
    genes: list[str]
    types: np.ndarray
    """(cells,) position in `names`."""
    names: list[str]


def read_single_cells(
    adata_sc: Any, *, cell_type_key: str | None, layer: str | None, naming: str, min_cells: int
) -> SingleCells:
    """Counts and labels of single cells, genes named as in the reference.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    TypeError
        If it is not an AnnData.
    ValueError
        If values are no counts, or some of them are logged; genes are named differently; or fewer than two types are
        left.
    """
    require_type(adata_sc, AnnData, "adata_sc", "Single cells with their types in `.obs`.")
    if cell_type_key is None:
        msg = f"`cell_type_key` is missing; name the column of `adata_sc.obs` with cell types: {listing(adata_sc.obs)}."
        raise ValueError(msg)
    require_key(cell_type_key, adata_sc.obs, "adata_sc.obs", "`cell_type_key` names the column with cell types.")
    layers = listing(name for name in adata_sc.layers if name)
    counts = stored_expression(adata_sc, layer, "adata_sc", f"Name a layer with counts: {layers}.")
    check_counts(counts, "adata_sc.X" if layer is None else f"adata_sc.layers[{layer!r}]")
    names_of_genes = names_in(naming, adata_sc, "The reference", "`adata_sc`")

    column = adata_sc.obs[cell_type_key]
    found = labels(column).astype(str)
    labelled = ~is_missing(found)
    present, n_cells = np.unique(found[labelled], return_counts=True)
    few = present[n_cells < min_cells]
    keep = labelled & ~np.isin(found, few)
    if len(few):
        logger.warning("Left out: %d cell types with fewer than %d cells: %s.", len(few), min_cells, listing(few))
    if not labelled.all():
        logger.info("%d cells have no type and are left out.", int((~labelled).sum()))
    names = [str(name) for name in present[n_cells >= min_cells]]
    if len(names) < 2:
        msg = (
            f"`adata_sc.obs[{cell_type_key!r}]` leaves {len(names)} cell types with {min_cells} cells or more; at "
            f"least 2 are needed. Found: {listing(f'{name} ({n})' for name, n in zip(present, n_cells, strict=True))}."
        )
        raise ValueError(msg)
    matrix, genes = sum_duplicates(counts[keep], names_of_genes)
    return SingleCells(matrix, genes, pd.Index(names).get_indexer(found[keep]), names)


def shared_with(reference_genes: Sequence[str], cells: SingleCells, needed: int) -> list[str]:
    """Genes that reference and single cells both have, in the order of the reference.

    Raises
    ------
    ValueError
        If there are fewer than `needed`; it says so where the species seem to differ.
    """
    own = set(cells.genes)
    shared = [gene for gene in reference_genes if gene in own]
    if len(shared) >= needed:
        return shared
    msg = (
        f"The reference and `adata_sc` share {len(shared)} genes; at least {needed} are needed to tell "
        f"{len(cells.names)} cell types apart. {why_few_shared(reference_genes, cells.genes, len(shared))}"
    )
    raise ValueError(msg)
