"""Genes asked for, and those among them that only single cells measured: given from cell types of the cited rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._labels import as_names
from ragst_sd._validate import hint, listing, require_some
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Selected

logger = logging.getLogger(__name__)


class Genes(NamedTuple):
    """Genes asked for."""

    measured: np.ndarray
    """Positions in the reference."""
    scrna: list[str]
    """Genes that no row measured."""
    order: list[str]
    """All of them, as asked for."""


def wanted_genes(bank: Bank, genes: Sequence[str] | None) -> Genes:
    """Genes of the reference, and those that only its cell types' signatures hold; all of the reference's if `None`.

    Raises
    ------
    ValueError
        If neither has a gene, or the method cites no rows whose fractions could be used.
    """
    if genes is None:
        return Genes(np.arange(len(bank.genes)), [], list(bank.genes))
    wanted = as_names(genes)
    require_some(wanted, "genes")
    place = bank.genes.get_indexer(wanted)
    others = [gene for gene, i in zip(wanted, place, strict=True) if i < 0]
    known = signature_genes(bank.header.cell_types)
    missing = [gene for gene in others if gene not in known]
    if missing:
        msg = (
            f"`genes`: the reference has no {listing(missing)}; it has {len(bank.genes)} genes: "
            f"{listing(bank.genes)}.{hint(missing[0], [*bank.genes, *known])}"
        )
        if not len(known):
            msg += " Genes that no row measured can be given from single cells: `rg.tl.add_cell_types`."
        raise ValueError(msg)
    cites = METHODS[bank.fit.method].cites and np.any(bank.fit.parameters.get(_keys.RETRIEVAL_SHARE, 1))
    if others and not cites:
        raise ValueError(
            f"`genes`: no row of the reference measured {listing(others)}. They could be given from cell types, by the "
            f"fractions of cited rows, but this fit of {bank.fit.method!r} cites no rows. Fit a method that does, for "
            "instance 'knn', or leave them out."
        )
    if others:
        logger.warning(
            "%d of %d genes were measured in no row and are given from the signatures of cell types: %s. "
            "`var[%r]` marks them.",
            len(others),
            len(wanted),
            listing(others),
            _keys.EVIDENCE,
        )
    return Genes(place[place >= 0], others, wanted)


def cited_fractions(bank: Bank, selected: Selected) -> np.ndarray | None:
    """(n, types) cell types of the cited rows by weight, over rows that have fractions; `None` without cell types.

    Methods that cite no rows leave no weights by which fractions could be averaged.
    """
    rows, weights = selected.selection.rows, selected.selection.weights
    if bank.header.cell_types is None or not (rows >= 0).any():
        return None
    fractions = np.asarray(bank.types)
    known = np.isfinite(fractions).all(axis=1)
    held = np.where((rows >= 0) & known[rows], weights, 0.0)
    total = held.sum(axis=1, keepdims=True)
    held = np.divide(held, total, out=held, where=total > 0)
    return weighted_average(np.where(known[rows], rows, -1), held, np.where(known[:, None], fractions, 0.0))


def with_cell_types(table: AnnData, bank: Bank, genes: Genes) -> AnnData:
    """The table with genes from single cells in their place, and what its cell types are.

    Unchanged without cell types.
    """
    if _keys.CELL_TYPE_FRACTION not in table.obsm:
        return table
    about = bank.header.cell_types
    if genes.scrna:
        fractions = np.asarray(table.obsm[_keys.CELL_TYPE_FRACTION], dtype=np.float64)
        mixed = np.log1p(fractions @ signatures_of(about, genes.scrna))
        table = _with_genes(table, mixed.astype(np.float32), genes)
    table.uns[_keys.RETRIEVAL][_keys.CELL_TYPES] = {
        "names": np.asarray(type_names(about), dtype=str),
        "method": str(about["method"]),
        "source": dict(about["source"]),
        "hash": cell_types_hash(bank.ids, np.asarray(bank.types), about),
    }
    return table


def _with_genes(table: AnnData, values: np.ndarray, genes: Genes) -> AnnData:
    """The table with further genes, in the order asked for. What rests on measured values is NaN for them."""
    var = pd.DataFrame(np.nan, index=pd.Index(genes.scrna), columns=table.var.columns)
    var[_keys.N_MEASURED] = 0
    var[_keys.EVIDENCE] = pd.Categorical([_keys.SCRNA] * len(var), categories=table.var[_keys.EVIDENCE].cat.categories)
    layers = {name: np.full_like(values, np.nan) for name in table.layers if name is not None}
    layers |= {_keys.EVIDENCE: values}
    varm = {name: np.full((len(var), *held.shape[1:]), np.nan) for name, held in table.varm.items()}
    extra = ad.AnnData(values, obs=table.obs, var=var, layers=layers, varm=varm)
    wide = ad.concat([table, extra], axis="var", merge="first", uns_merge="first")[:, genes.order].copy()
    wide.var = pd.concat([table.var, var]).astype(table.var.dtypes).loc[genes.order]
    wide.var.index.name = table.var.index.name
    return wide
