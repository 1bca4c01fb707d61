"""Single cells with labels, checked, for `rg.tl.add_cell_types`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_key, require_type
from ragst_sd.reference.current_names import names_by
from ragst_sd.reference.genes import ENSEMBL, sum_duplicates
from ragst_sd.reference.normalize import TARGET_SUM, as_csr, check_counts
from ragst_sd.tl._stored_expression import offered_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp

logger = logging.getLogger(__name__)

# Cells with fewer genes do not tell whether their values were logged.
_TELLING = 20


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
        If values are no counts, or some of them are logged; genes are named differently; or fewer than two types are left.
    """
    import pandas as pd
    from anndata import AnnData

    require_type(adata_sc, AnnData, "adata_sc", "Single cells with their types in `.obs`.")
    if cell_type_key is None:
        msg = f"`cell_type_key` is missing; name the column of `adata_sc.obs` with cell types: {listing(adata_sc.obs)}."
        raise ValueError(msg)
    require_key(cell_type_key, adata_sc.obs, "adata_sc.obs", "`cell_type_key` names the column with cell types.")
    if layer is not None:
        require_key(layer, adata_sc.layers, "adata_sc.layers")
    where = "adata_sc.X" if layer is None else f"adata_sc.layers[{layer!r}]"
    values = adata_sc.X if layer is None else adata_sc.layers[layer]
    if values is None:
        msg = f"{where} is empty; name a layer with counts: {listing(name for name in adata_sc.layers if name)}."
        raise ValueError(msg)
    counts = as_csr(values)
    _refuse_mixed(counts, where)
    check_counts(counts, where)
    named = offered_names(adata_sc)
    names_of_genes = names_by(naming, named)
    if names_of_genes is None:
        msg = (
            f"The reference names genes by {naming}, `adata_sc` offers {listing(named)} only. Add a column with the other "
            f"names to `adata_sc.var` ({'gene_ids' if naming == ENSEMBL else 'gene_symbols'!r})."
        )
        raise ValueError(msg)

    column = adata_sc.obs[cell_type_key]
    found = labels(column).astype(str)
    labelled = ~pd.isna(column).to_numpy() & (found != "")
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
            f"`adata_sc.obs[{cell_type_key!r}]` leaves {len(names)} cell types with {min_cells} cells or more; at least 2 are "
            f"needed. Found: {listing(f'{name} ({n})' for name, n in zip(present, n_cells, strict=True))}."
        )
        raise ValueError(msg)
    matrix, genes = sum_duplicates(counts[keep], names_of_genes)
    place = {name: i for i, name in enumerate(names)}
    return SingleCells(matrix, genes, np.array([place[name] for name in found[keep].tolist()]), names)


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
        f"The reference and `adata_sc` share {len(shared)} genes; at least {needed} are needed to tell {len(cells.names)} cell "
        f"types apart. Reference: {listing(reference_genes[:4])}; single cells: {listing(cells.genes[:4])}."
    )
    lower = {gene.lower() for gene in own}
    if sum(gene.lower() in lower for gene in reference_genes) >= max(needed, 3 * len(shared)):
        msg += " The names differ in case only, as symbols of mouse (`Actb`) and human (`ACTB`) do: the species differ."
    elif (ours := _prefix(reference_genes)) and (theirs := _prefix(cells.genes)) and ours != theirs:
        msg += f" Ids start with {ours!r} and {theirs!r}: the species differ."
    msg += " Give single cells of the reference's species, with genes named alike."
    raise ValueError(msg)


def _prefix(genes: Sequence[str]) -> str:
    """What Ensembl ids start with, which tells the species."""
    first = str(genes[0]) if len(genes) else ""
    return first.rstrip("0123456789") if first.startswith("ENS") else ""


def _refuse_mixed(matrix: sp.csr_matrix, where: str) -> None:
    """Raise a `ValueError` if some cells hold counts and others logged values."""
    n_values = np.diff(matrix.indptr)
    telling = np.flatnonzero(n_values >= _TELLING)
    if not len(telling):
        return
    part = matrix[telling]
    starts = part.indptr[:-1]
    whole = np.add.reduceat((part.data == np.rint(part.data)).astype(np.int64), starts) / n_values[telling]
    largest = np.maximum.reduceat(part.data, starts)
    counted, logged = whole == 1, (whole < 0.5) & (largest <= np.log1p(TARGET_SUM) * 1.01)
    if counted.any() and logged.any():
        msg = (
            f"{where} mixes raw and logged values: {int(counted.sum())} cells hold whole numbers (up to "
            f"{largest[counted].max():g}), {int(logged.sum())} cells hold fractions (up to {largest[logged].max():.3g}). Name a "
            "layer with the counts of all cells with `layer=`, or keep the cells that have counts."
        )
        raise ValueError(msg)
