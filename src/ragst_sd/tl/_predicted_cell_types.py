"""Cell types of a predicted table: fractions by the weights of the cited rows, and genes that only single cells have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types, cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._labels import as_names
from ragst_sd._validate import hint, listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ragst_sd.tl._retrieve import Retrieved

logger = logging.getLogger(__name__)


class Genes(NamedTuple):
    """Genes asked for."""

    measured: np.ndarray
    """Positions in the reference."""
    scrna: list[str]
    """Genes that no row measured."""
    order: list[str]
    """All of them, as asked for."""


def wanted_genes(reference: AnnData, fit: dict[str, Any], genes: Sequence[str] | None) -> Genes:
    """Genes of the reference, and those that only the signatures of its cell types hold; all of the reference's if `None`.

    Raises
    ------
    ValueError
        If neither has a gene, or the method cites no rows whose fractions could be used.
    """
    from ragst_sd.retrieval.methods import METHODS

    if genes is None:
        return Genes(np.arange(reference.n_vars), [], list(reference.var_names))
    wanted = as_names(genes)
    place = reference.var_names.get_indexer(wanted)
    others = [gene for gene, i in zip(wanted, place, strict=True) if i < 0]
    known = signature_genes(cell_types(reference))
    missing = [gene for gene in others if gene not in known]
    if missing or not wanted:
        close = hint(missing[0], [*reference.var_names, *known]) if missing else ""
        msg = (
            f"`genes`: the reference has no {listing(missing) if missing else 'gene for an empty list'}; "
            f"it has {reference.n_vars} genes: {listing(reference.var_names)}.{close}"
        )
        if missing and not len(known):
            msg += " Genes that no row measured can be given from single cells: `rg.tl.add_cell_types`."
        raise ValueError(msg)
    if others and not METHODS[fit["method"]].cites:
        msg = (
            f"`genes`: no row of the reference measured {listing(others)}. They could be given from cell types, by the fractions "
            f"of cited rows, but method {fit['method']!r} cites nobody. Fit a method that does, or leave them out."
        )
        raise ValueError(msg)
    if others:
        logger.warning(
            "%d of %d genes were measured in no row and are given from the signatures of cell types: %s. "
            "`var[%r]` marks them.",
            len(others), len(wanted), listing(others), _keys.EVIDENCE,
        )  # fmt: skip
    return Genes(place[place >= 0], others, wanted)


def with_cell_types(table: AnnData, reference: AnnData, found: Retrieved, genes: Genes) -> AnnData:
    """The table with fractions, and with genes from single cells in their place; unchanged without cell types.

    Methods that cite nobody leave no weights by which fractions could be averaged.
    """
    about = cell_types(reference)
    if about is None or not (found.rows >= 0).any():
        return table
    outside = (np.asarray(table.obsm[_keys.ROWS]) < 0).all(axis=1)
    fractions = _averaged(np.asarray(reference.obsm[_keys.CELL_TYPE_FRACTION]), found)
    fractions[outside] = np.nan
    if genes.scrna:
        table = _with_genes(table, _from_signatures(fractions, about, genes.scrna), genes)
    table.obsm[_keys.CELL_TYPE_FRACTION] = fractions.astype(np.float32)
    table.uns[_keys.RETRIEVAL][_keys.CELL_TYPES] = {
        "names": np.asarray(type_names(about), dtype=str),
        "method": str(about["method"]),
        "source": dict(about["source"]),
        "hash": cell_types_hash(reference),
    }
    return table


def _averaged(fractions: np.ndarray, found: Retrieved) -> np.ndarray:
    """Fractions of the cited rows by their weights, over the rows that have fractions."""
    from ragst_sd.retrieval.evidence import weighted_average

    known = np.isfinite(fractions).all(axis=1)
    rows = np.where(known[found.rows], found.rows, -1)
    weights = np.where((found.rows >= 0) & (rows >= 0), found.weights, 0.0).astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=weights, where=total > 0)
    return weighted_average(rows, weights, np.where(known[:, None], fractions, 0.0))


def _from_signatures(fractions: np.ndarray, about: dict[str, Any], genes: list[str]) -> np.ndarray:
    """(n, genes) log1p of what a mixture of signatures holds."""
    return np.log1p(fractions.astype(np.float64) @ signatures_of(about, genes)).astype(np.float32)


def _with_genes(table: AnnData, values: np.ndarray, genes: Genes) -> AnnData:
    """The table with further genes, in the order asked for. What rests on measured values is NaN for them."""
    import anndata as ad

    var = pd.DataFrame(np.nan, index=pd.Index(genes.scrna), columns=table.var.columns)
    var[_keys.N_MEASURED] = 0
    var[_keys.EVIDENCE] = pd.Categorical([_keys.SCRNA] * len(var), categories=table.var[_keys.EVIDENCE].cat.categories)
    var = pd.concat([table.var, var]).astype(table.var.dtypes).loc[genes.order]
    place = pd.Index([*table.var_names, *genes.scrna]).get_indexer(genes.order)

    def widen(old: Any, new: np.ndarray) -> np.ndarray:
        return np.concatenate([old, new], axis=1)[:, place]

    unknown = np.full_like(values, np.nan)
    wide = ad.AnnData(
        widen(table.X, values),
        obs=table.obs,
        var=var,
        layers={
            name: widen(layer, values if name == _keys.EVIDENCE else unknown)
            for name, layer in table.layers.items()
            if name is not None
        },
        obsm=dict(table.obsm),
        varm={
            name: np.concatenate([held, np.full((len(genes.scrna), *np.shape(held)[1:]), np.nan)])[place]
            for name, held in table.varm.items()
        },
        uns=table.uns,
    )
    wide.var.index.name = table.var.index.name
    return wide
