"""The one writer of `rg.tl.predict`: values, pointers and provenance as a table that annotates the query's shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from ragst_sd import _keys
from ragst_sd._annotation import table_attrs
from ragst_sd._bank import n_measured
from ragst_sd._cell_types import cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._fields import TISSUE, fill, mark
from ragst_sd._labels import as_names
from ragst_sd._query import Query
from ragst_sd._validate import hint, listing, require_some
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.conformal import IntervalRule
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Selected, Values

logger = logging.getLogger(__name__)

_CITED = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY)
_CITED_NUMBERS = dict.fromkeys((_keys.X_UM, _keys.Y_UM), np.float64)


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


def predicted_table(
    bank: Bank,
    query: Query,
    selected: Selected,
    wanted: Genes,
    eligibility: Eligibility,
    rule: IntervalRule | None,
    settings: dict[str, Any],
    values: Values,
) -> AnnData:
    """Assemble and validate the table; see :func:`ragst_sd.tl.predict` for its fields."""
    genes, row_of = wanted.measured, eligibility.itself
    selection, grounding, outside = selected.selection, selected.grounding, ~query.finite
    rows = np.where(outside[:, None], -1, selection.rows)
    pointers, cited = cite_rows(bank.ids, bank.obs, rows, _CITED, _CITED_NUMBERS, bank.digests)
    places = fill(
        TISSUE,
        {
            **values,
            **grounding._asdict(),
            _keys.ROWS: pointers,
            _keys.WEIGHTS: selection.weights,
            _keys.DISTANCES: selection.distances,
            _keys.LEVEL: selection.level if selection.level.any() else None,
            _keys.REGRESSION_KEY: selection.features,
            _keys.CELL_TYPE_FRACTION: _cited_fractions(bank, selected),
            _keys.MEASURED: None if row_of is None else row_of >= 0,
            _keys.INTERVAL_QUANTILES: None if rule is None else rule.quantiles,
            **{f"var/{name}": column for name, column in _about_genes(bank, genes, eligibility.split).items()},
        },
        outside,
    )
    table = ad.AnnData(
        places["X"]["prediction"],
        obs=carried(query.table, query.donor_key, _keys.SAMPLE).assign(**places["obs"]),
        var=pd.DataFrame(places["var"], index=bank.var.index[genes]),
        **{place: places[place] for place in ("layers", "obsm", "varm") if place in places},
    )
    limited: dict[str, Any] = {}
    if selected.level_rows.size:
        limited[_keys.LEVEL_ROWS] = selected.level_rows
    if selected.eligible is not None:
        # By bits, in the order of ids: rows may lie in another order when they are asked for.
        by_id = selected.eligible[:, np.argsort(bank.ids, kind="stable")]
        limited[_keys.REGRESSION_ROWS] = np.packbits(by_id, axis=1)
    if rule is not None:
        limited |= {_keys.INTERVAL_LEVEL: rule.level, _keys.INTERVAL_UNIT: rule.unit}
        limited |= {_keys.INTERVAL_LEVELS: rule.levels, _keys.INTERVAL_UNITS: rule.units}
    table.uns[_keys.RETRIEVAL] = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": "histology",
        **_made_with(bank),
        "table_key": query.table_key,
        "use_rep": query.use_rep,
        "image_key": query.header["image_key"],
        "coordinate_system": query.header["coordinate_system"],
        "image_mpp": float(query.header["image_mpp"]),
        "search_recall": float(selected.recall),
        **settings,
        **limited,
        _keys.CITED: cited,
    }
    table = _with_cell_types(annotating(table, query.table, query.region), bank, wanted)
    mark(table)
    return table


def carried(spots: AnnData, *columns: str) -> pd.DataFrame:
    """What a predicted table keeps of the spots' `.obs`: which shapes they are, and these columns where they are there."""
    attrs = table_attrs(spots)
    names = [attrs["region_key"], attrs["instance_key"], *(name for name in columns if name in spots.obs)]
    return spots.obs[list(dict.fromkeys(names))].copy()


def annotating(table: AnnData, spots: AnnData, region: str) -> AnnData:
    """The table, checked, as one that annotates the shapes of the spots, with their positions."""
    if _keys.SPATIAL in spots.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(spots.obsm[_keys.SPATIAL]).copy()
    keys = {name: spots.uns["spatialdata_attrs"][name] for name in ("region_key", "instance_key")}
    return TableModel.parse(table, region=region, **keys, overwrite_metadata=True)


def _made_with(bank: Bank) -> dict[str, Any]:
    """What reference and fit say of a prediction."""
    header, fit = bank.header, bank.fit
    return {
        "software": software(),
        "method": fit.method,
        "metric": fit.metric,
        "center_sections": fit.cites_level,
        "unit": header.unit,
        "naming": header.naming,
        "size_factor_genes": header.size_factor_genes.astype(str),
        "reference_hash": fit.reference_hash,
        _keys.FRAME_HASH: bank.header.frame_hash,
        "fit_hash": fit.fit_hash,
        "inner_groups": fit.inner_groups,
        "encoder": deepcopy(dict(header.encoder)),
        "sources": header.sources.copy(),
    }


def cite_rows(
    ids: np.ndarray,
    obs: pd.DataFrame,
    rows: np.ndarray,
    names: Sequence[str],
    numbers: Mapping[str, type],
    digests: Sequence[bytes] | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Pointers into the cited rows, and one line for each of them, ordered by reference id.

    A line holds the columns `names` of the reference as text, `numbers` in their types, and the digest of the row's
    content where it is known.
    """
    cited = np.unique(rows[rows >= 0])
    cited = cited[np.argsort(ids[cited], kind="stable")]
    place = np.full(len(ids) + 1, -1, dtype=np.int32)
    place[cited] = np.arange(len(cited), dtype=np.int32)
    lines = obs.iloc[cited][list(names)].astype(str)
    lines.insert(0, "reference", ids[cited].astype(object))
    for name, kind in numbers.items():
        lines[name] = obs[name].to_numpy(kind)[cited]
    if digests is not None:
        lines[_keys.DIGEST] = [digests[row].hex() for row in cited]
    lines.index = lines.index.astype(str)
    lines.index.name = None
    return place[rows], lines


def _about_genes(bank: Bank, genes: np.ndarray, split: str) -> dict[str, Any]:
    """How far each gene can be trusted; NaN where it was not assessed, or for another fit."""
    var, fit, of = bank.var.iloc[genes], bank.fit, bank.header.gene_trust
    of_fit = of is None or (of["method"] == fit.method and of["fit_hash"] in ("", fit.fit_hash))
    of_split = of is None or of.get("split", "donor") == split
    if _keys.CV_PEARSON in var and not (of_fit and of_split):
        logger.warning(
            "`var[%r]` of the reference was found for %s: the predicted table says nothing about how far genes can be "
            "trusted. Run `rg.tl.calibrate(reference%s)` and predict again.",
            _keys.CV_PEARSON,
            f"held-out {of.get('split', 'donor')}s" if of_fit else f"another fit (method {of['method']!r})",
            "" if split == "donor" else f", split={split!r}",
        )
        var = var.drop(columns=_keys.CV_PEARSON)
    share = fit.parameters.get(_keys.RETRIEVAL_SHARE, np.full(len(bank.genes), float(METHODS[fit.method].cites)))
    known = (_keys.REFERENCE_VARIANCE, _keys.CV_PEARSON, _keys.NOISE_CEILING)
    return {
        _keys.RETRIEVAL_SHARE: np.asarray(share)[genes],
        _keys.N_MEASURED: n_measured(bank)[genes],
        **{name: var[name].to_numpy(float) if name in var else np.full(len(var), np.nan) for name in known},
        _keys.EVIDENCE: pd.Categorical(["measured"] * len(var), categories=["measured", _keys.SCRNA]),
    }


def software() -> str:
    """Name and version, for headers."""
    from ragst_sd import __version__

    return f"ragst-sd {__version__}"


def _cited_fractions(bank: Bank, selected: Selected) -> np.ndarray | None:
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


def _with_cell_types(table: AnnData, bank: Bank, genes: Genes) -> AnnData:
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
