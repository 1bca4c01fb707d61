"""`rg.tl.add_cell_types`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._gene_names import stored_expression
from ragst_sd._labels import is_missing, labels
from ragst_sd._reference import read_header
from ragst_sd._validate import listing, names_among, require_key, require_known, require_positive, require_type
from ragst_sd.reference.current_names import names_in
from ragst_sd.reference.genes import shared_genes, sum_duplicates
from ragst_sd.reference.normalize import TARGET_SUM, as_csr, check_counts

logger = logging.getLogger(__name__)

SOURCE = ("name", "license", "citation")
FEWEST_GENES = 50
# With less of the genes that add up to 10,000 the unit of the signatures is a guess.
_MOST = 0.9


def add_cell_types(
    reference: AnnData,
    adata_sc: AnnData | None = None,
    *,
    cell_type_key: str | None = None,
    fractions: pd.DataFrame | None = None,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    min_cells: int = 10,
    platform_effects: bool = True,
    source: Mapping[str, str] | None = None,
) -> None:
    r"""Estimate the share of each cell type in every row of a reference, from single cells.

    .. math:: \hat f_i = \arg\min_{f \ge 0} \sum_g w_g \Big(y_{ig} - r_g \sum_t f_t S_{tg}\Big)^2

    with the row :math:`y_i` in counts per 10,000, the signatures :math:`S_t` (pooled counts of the cells of a type),
    weights :math:`w_g` of one over the signatures' mean, and platform effects :math:`r_g` estimated from all rows that
    one panel measured. Fractions are scaled to add up to one. They are shares of the RNA, not of the cells. Later
    predictions include fractions, averaged with the weights of the cited rows, and can be made for genes that no row
    measured.

    Parameters
    ----------
    reference
        Built by :func:`ragst_sd.tl.build_reference`, fitted or not; a fit stays valid.
    adata_sc
        Single cells of the same species, one row per cell, with counts. May be left out if `fractions` are given; with
        both, signatures come from the cells and fractions are those given.
    cell_type_key
        Column of `adata_sc.obs` with the type of each cell.
    fractions
        Fractions or abundances computed elsewhere (cell2location, RCTD, stereoscope), a row per reference row by name
        (`<sample>:<spot>`), a column per cell type. They are scaled to add up to one. Rows that are missing have none.
    layer
        Layer of `adata_sc` with counts; `.X` if left out.
    genes
        Genes that decide on fractions; all that the rows and the cells share if left out.
    min_cells
        Types with fewer cells are left out.
    platform_effects
        Estimate one factor per gene between single cells and each panel.
    source
        Where the cells or fractions are from: `name`, `license`, `citation`. What is not given is taken from
        `adata_sc.uns["ragst"]["source"]`, else `"unknown"`.

    Returns
    -------
    `None`. The reference gets

    `.obsm["cell_type_fraction"]`
        float32 (n, types), rows add up to one; NaN for rows without any expression in the genes used.
    `.obs["cell_type_fit"]`
        Pearson correlation over genes of measured and fitted values, both as log1p; NaN for given fractions.
    `.uns["ragst"]["cell_types"]`
        `names` of the types, `method` (`"nnls"` or `"given"`), `source`, and with single cells `n_cells` (types,),
        `genes`, `signatures` (types, genes; counts per 10,000, float32), `genes_used` and `platform_effects` (genes
        used, panels; NaN where a panel did not measure the gene).

    The content hash does not change. A prediction records a hash of fractions and signatures of its own.

    Raises
    ------
    KeyError
        If a column or layer is missing.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If neither cells nor fractions are given; counts are not counts, or mixed with logged values; genes are named
        differently, or fewer than 50 (or than types) are shared, as between species; fractions are negative or
        infinite, or name no row of the reference.

    References
    ----------
    Cable DM et al. (2022), Robust decomposition of cell type mixtures in spatial transcriptomics, Nature Biotechnology
    40, 517, doi:10.1038/s41587-021-00830-w, for platform effects; non-negative least squares of
    :func:`scipy.optimize.nnls`.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rng = np.random.default_rng(0)
    >>> types = pd.DataFrame({"type": np.repeat(["A", "B"], 30)}, index=[f"cell{i}" for i in range(60)])
    >>> rates = rng.gamma(1, size=(2, reference.n_vars))[types["type"].eq("B").astype(int)]
    >>> cells = ad.AnnData(rng.poisson(rates).astype("float32"), obs=types, var=pd.DataFrame(index=reference.var_names))
    >>> rg.tl.add_cell_types(reference, cells, cell_type_key="type")
    >>> reference.obsm["cell_type_fraction"].shape == (reference.n_obs, 2)
    True
    """
    header = read_header(reference, "histology")
    if adata_sc is None and fractions is None:
        raise ValueError(
            "Neither single cells nor fractions are given: pass `adata_sc` with `cell_type_key=`, or `fractions=`."
        )
    require_positive(min_cells, "min_cells", whole=True)
    about: dict[str, Any] = {"schema_version": _keys.SCHEMA_VERSION, "source": _source(adata_sc, source)}
    cells = None
    if adata_sc is not None:
        cells = read_single_cells(
            adata_sc,
            cell_type_key=cell_type_key,
            layer=layer,
            naming=str(header["normalization"]["naming"]),
            min_cells=int(min_cells),
        )
        needed = max(FEWEST_GENES, len(cells.names))
        why = f" to tell {len(cells.names)} cell types apart"
        shared = shared_genes(
            list(reference.var_names), cells.genes, "The reference and `adata_sc`", needed=needed, why=why
        )
        about |= _signatures(reference, header, cells)
    if fractions is not None:
        names, shares = _given(reference, fractions, cells)
        if cells is not None:
            order = [cells.names.index(name) for name in names]
            about |= {"signatures": about["signatures"][order], "n_cells": about["n_cells"][order]}
        about |= {"method": "given", "names": np.asarray(names, dtype=str)}
        fit = np.full(reference.n_obs, np.nan)
    else:
        used = (
            shared if genes is None else names_among(genes, shared, "genes", ": reference and cells do not both have")
        )
        if len(used) < needed:
            raise ValueError(f"`genes` names {len(used)} genes; at least {needed} are needed.")
        about |= {"method": "nnls", "genes_used": np.asarray(used, dtype=str)}
        shares, fit, effects = _deconvolve(reference, header, about, platform=platform_effects)
        about["platform_effects"] = effects
    reference.obsm[_keys.CELL_TYPE_FRACTION] = shares.astype(np.float32)
    reference.obs[_keys.CELL_TYPE_FIT] = fit
    reference.uns[_keys.ATTRS] = {**reference.uns[_keys.ATTRS], _keys.CELL_TYPES: about}
    n_known = int(np.isfinite(shares).all(axis=1).sum())
    logger.info(
        "Adding `obsm[%r]`: %d cell types; %d of %d rows have fractions.",
        _keys.CELL_TYPE_FRACTION,
        shares.shape[1],
        n_known,
        reference.n_obs,
    )


def _source(adata_sc: AnnData | None, given: Mapping[str, str] | None) -> dict[str, str]:
    require_known(given or {}, SOURCE, "source", " has unknown fields")
    stated = {} if adata_sc is None else adata_sc.uns.get(_keys.ATTRS, {}).get(_keys.SOURCE, {})
    return {name: str((given or {}).get(name) or stated.get(name) or _keys.UNKNOWN) for name in SOURCE}


def _signatures(reference: AnnData, header: dict[str, Any], cells: SingleCells) -> dict[str, Any]:
    """Signatures on the scale of the reference's rows."""
    from ragst_sd.reference.deconvolution import signatures

    genes = np.asarray(cells.genes, dtype=str)
    summed = {str(gene) for gene in header["normalization"]["size_factor_genes"]}
    basis = np.isin(genes, list(summed))
    present = genes[basis]
    profiles = signatures(cells.counts, cells.types, len(cells.names), basis)
    if len(present) < _MOST * len(summed):
        message = "The cells have %d of the %d genes that add up to 10,000 in the reference."
        logger.warning(message, len(present), len(summed))
    columns = reference.var_names.get_indexer(present)
    if len(present) < len(summed) and (columns >= 0).all():
        # The rows' 10,000 counts are spread over genes that the cells do not have.
        linear = as_csr(reference.X)[:, columns].expm1()
        profiles *= linear.sum(axis=1).mean() / TARGET_SUM
    return {
        "names": np.asarray(cells.names, dtype=str),
        "genes": genes,
        "signatures": profiles.astype(np.float32),
        "n_cells": np.bincount(cells.types, minlength=len(cells.names)),
    }


def _deconvolve(
    reference: AnnData, header: dict[str, Any], about: dict[str, Any], *, platform: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions and fit of all rows, and (genes, panels) platform effects; each panel by the genes that it measured."""
    from ragst_sd.reference.deconvolution import deconvolve

    used = about["genes_used"]
    profiles = about["signatures"][:, pd.Index(about["genes"]).get_indexer(used)].astype(np.float64)
    columns = reference.var_names.get_indexer(used)
    measured = np.asarray(reference.varm[_keys.MEASURED])[columns]
    values = as_csr(reference.X)[:, columns]
    needed = max(FEWEST_GENES, len(profiles))
    shares = np.full((reference.n_obs, len(profiles)), np.nan)
    fit = np.full(reference.n_obs, np.nan)
    effects = np.full(measured.shape, np.nan)
    for panel, name in enumerate(header["panels"]):
        of_panel = measured[:, panel]
        rows = np.flatnonzero(reference.obs[_keys.PANEL].astype(str) == str(name))
        if not len(rows):
            continue
        if of_panel.sum() < needed:
            raise ValueError(
                f"Panel {str(name)!r} measured {int(of_panel.sum())} of the {len(used)} genes; {needed} are needed. "
                "Name other `genes`, or take the rows of this panel out of the reference."
            )
        result = deconvolve(values[rows][:, of_panel], profiles[:, of_panel], platform=platform)
        shares[rows], fit[rows] = result.fractions, result.fit
        effects[of_panel, panel] = result.platform
    return shares, fit, effects


def _given(reference: AnnData, fractions: pd.DataFrame, cells: SingleCells | None) -> tuple[list[str], np.ndarray]:
    """Names of the types, and given fractions in the order of the reference's rows."""
    require_type(fractions, pd.DataFrame, "fractions", "Rows are reference rows by name, columns are cell types.")
    names = [str(name) for name in fractions.columns]
    fractions = fractions.set_axis(fractions.index.astype(str))
    known = reference.obs_names.isin(fractions.index)
    if not known.any():
        raise ValueError(
            f"`fractions` names no row of the reference: {listing(fractions.index[:3])} against "
            f"{listing(reference.obs_names[:3])} (`<sample>:<spot>`)."
        )
    if fractions.index.has_duplicates or len(set(names)) < len(names):
        raise ValueError("`fractions` has duplicated rows or columns. Name every row and every cell type once.")
    of_one = set() if cells is None else set(names) ^ set(cells.names)
    if of_one:
        raise ValueError(
            f"`fractions` and `adata_sc` have different cell types; only one of them has {listing(sorted(of_one))}."
        )
    values = fractions.reindex(reference.obs_names).to_numpy(np.float64)
    complete = values[np.isfinite(values).all(axis=1)]
    if np.isinf(values).any() or (complete < 0).any() or not len(complete):
        raise ValueError(
            "`fractions` holds negative or infinite values, or no row without NaN; give fractions or abundances."
        )
    if not known.all():
        logger.warning("`fractions` lack %d of %d rows of the reference.", int((~known).sum()), reference.n_obs)
    total = values.sum(axis=1, keepdims=True)
    return names, np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)


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
        raise ValueError(
            f"`cell_type_key` is missing; name the column of `adata_sc.obs` with cell types: {listing(adata_sc.obs)}."
        )
    require_key(cell_type_key, adata_sc.obs, "adata_sc.obs", "`cell_type_key` names the column with cell types.")
    layers = listing(name for name in adata_sc.layers if name)
    counts, offered = stored_expression(adata_sc, layer, "adata_sc", f"Name a layer with counts: {layers}.")
    check_counts(counts, "adata_sc.X" if layer is None else f"adata_sc.layers[{layer!r}]")
    names_of_genes = names_in(naming, offered, "The reference", "`adata_sc`")

    column = adata_sc.obs[cell_type_key]
    types = labels(column).astype(str)
    labelled = ~is_missing(types)
    present, n_cells = np.unique(types[labelled], return_counts=True)
    few = present[n_cells < min_cells]
    keep = labelled & ~np.isin(types, few)
    if len(few):
        logger.warning("Left out: %d cell types with fewer than %d cells: %s.", len(few), min_cells, listing(few))
    if not labelled.all():
        logger.info("%d cells have no type and are left out.", int((~labelled).sum()))
    names = [str(name) for name in present[n_cells >= min_cells]]
    if len(names) < 2:
        raise ValueError(
            f"`adata_sc.obs[{cell_type_key!r}]` leaves {len(names)} cell types with {min_cells} cells or more; at "
            f"least 2 are needed. Found: {listing(f'{name} ({n})' for name, n in zip(present, n_cells, strict=True))}."
        )
    matrix, genes = sum_duplicates(counts[keep], names_of_genes)
    return SingleCells(matrix, genes, pd.Index(names).get_indexer(types[keep]), names)
