"""The table that `predict` writes, with its provenance, and with cell types where the reference has them."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._annotation import single_region, table_attrs
from ragst_sd._cell_types import cell_types, cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._labels import as_names
from ragst_sd._reference import n_measured
from ragst_sd._validate import hint, listing, require_some
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ragst_sd.tl._intervals import Intervals
    from ragst_sd.tl._query import Query
    from ragst_sd.tl._retrieve import Retrieved


def predicted_table(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    query: Query,
    found: Retrieved,
    *,
    gene_index: np.ndarray,
    settings: dict[str, Any],
    intervals: Intervals | None = None,
) -> AnnData:
    """Assemble and validate the table; see :func:`ragst_sd.tl.predict` for its fields."""
    import anndata as ad
    from spatialdata.models import TableModel

    outside = ~query.finite
    rows, weights, distances = found.rows.copy(), found.weights.astype(np.float32), found.distances.astype(np.float32)
    prediction, evidence = found.prediction.astype(np.float32), found.evidence.astype(np.float32)
    rows[outside], weights[outside], distances[outside] = -1, 0, np.nan
    layers = {_keys.EVIDENCE: evidence}
    if found.disagreement is not None:
        layers[_keys.DISAGREEMENT] = found.disagreement
    if intervals is not None:
        layers |= {_keys.LOWER: intervals.lower, _keys.UPPER: intervals.upper}
    for values in (prediction, *layers.values()):
        # What lies on disk was written so.
        if isinstance(values, np.ndarray):
            values[outside] = np.nan
    places = dict.fromkeys((_keys.X_UM, _keys.Y_UM), np.float64)
    pointers, cited = cite_rows(reference, rows, (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY), places)

    attrs = table_attrs(query.table)
    kept = [attrs["region_key"], attrs["instance_key"]]
    kept += [name for name in (settings["donor_key"], _keys.SAMPLE) if name in query.table.obs]
    table = ad.AnnData(
        prediction,
        obs=query.table.obs[list(dict.fromkeys(kept))].copy(),
        var=_gene_annotations(reference, fit, gene_index),
        layers=layers,
        obsm={_keys.ROWS: pointers, _keys.WEIGHTS: weights, _keys.DISTANCES: distances},
    )
    about_intervals = {}
    if intervals is not None:
        rule = intervals.rule
        table.varm[_keys.INTERVAL_QUANTILES] = rule.quantiles
        about_intervals = {
            _keys.INTERVAL_LEVEL: rule.level,
            _keys.INTERVAL_UNIT: rule.unit,
            _keys.INTERVAL_LEVELS: rule.levels,
            _keys.INTERVAL_UNITS: rule.units,
        }
    if _keys.SPATIAL in query.table.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(query.table.obsm[_keys.SPATIAL]).copy()
    if len(found.level_rows) > 1:
        table.obs[_keys.LEVEL] = found.level_of
    # A spot outside the image has no neighbours and is out of reference.
    of_outside = {_keys.OUT_OF_REFERENCE: True, _keys.N_DONORS: 0}
    for name, values in found.obs.items():
        table.obs[name] = np.where(outside, of_outside.get(name, np.nan), values)
    table.uns[_keys.RETRIEVAL] = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": "histology",
        "software": software(),
        "method": fit["method"],
        "metric": fit["metric"],
        "center_sections": "section_shifts" in fit["parameters"],
        **({_keys.LEVEL_ROWS: found.level_rows} if found.level_rows.size else {}),
        "unit": header["normalization"]["unit"],
        "naming": header["normalization"]["naming"],
        "size_factor_genes": np.array(header["normalization"]["size_factor_genes"]),
        "reference_hash": fit["reference_hash"],
        "fit_hash": fit["fit_hash"],
        "inner_groups": fit["inner_groups"],
        "table_key": query.table_key,
        "use_rep": query.use_rep,
        "encoder": deepcopy(dict(header["encoder"])),
        "image_key": query.header["image_key"],
        "coordinate_system": query.header["coordinate_system"],
        "image_mpp": float(query.header["image_mpp"]),
        "search_recall": float(found.recall),
        **settings,
        **about_intervals,
        "sources": header["sources"].copy(),
        _keys.CITED: cited,
    }
    return TableModel.parse(
        table,
        region=single_region(query.table),
        region_key=attrs["region_key"],
        instance_key=attrs["instance_key"],
        overwrite_metadata=True,
    )


def cite_rows(
    reference: AnnData, rows: np.ndarray, names: Sequence[str], numbers: Mapping[str, type]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Pointers into the cited rows, and one line for each of them, ordered by reference id.

    A line holds the columns `names` of the reference as text, and `numbers` in their types.
    """
    cited = np.unique(rows[rows >= 0])
    cited = cited[np.argsort(reference.obs_names[cited].to_numpy(dtype=str), kind="stable")]
    place = np.full(reference.n_obs + 1, -1, dtype=np.int32)
    place[cited] = np.arange(len(cited), dtype=np.int32)
    lines = reference.obs.iloc[cited][list(names)].astype(str)
    lines.insert(0, "reference", reference.obs_names[cited].astype(str))
    for name, kind in numbers.items():
        lines[name] = reference.obs[name].to_numpy(kind)[cited]
    lines.index = lines.index.astype(str)
    lines.index.name = None
    return place[rows], lines


def _gene_annotations(reference: AnnData, fit: dict[str, Any], gene_index: np.ndarray) -> pd.DataFrame:
    var = reference.var.iloc[gene_index]
    # The accuracy of genes is that of the fitted method, and of the very fit where one is named.
    of = reference.uns[_keys.ATTRS].get(_keys.GENE_TRUST)
    assessed = of is None or (of["method"] == fit["method"] and of["fit_hash"] in ("", fit["fit_hash"]))
    if _keys.CV_PEARSON in var and not assessed:
        logger.warning(
            "`var[%r]` of the reference was found for another fit (method %r): the predicted table says nothing about how far "
            "genes can be trusted. Run `rg.tl.calibrate(reference)` and predict again.",
            _keys.CV_PEARSON,
            of["method"],
        )
        var = var.drop(columns=_keys.CV_PEARSON)
    measured_in = n_measured(reference)[gene_index]
    scores = {
        name: var[name].to_numpy(float) if name in var else np.full(len(var), np.nan)
        for name in (_keys.CV_PEARSON, _keys.NOISE_CEILING)
    }
    kinds = pd.Categorical(["measured"] * len(var), categories=["measured", "scRNA-seq"])
    return pd.DataFrame({_keys.N_MEASURED: measured_in, **scores, _keys.EVIDENCE: kinds}, index=var.index)


def software() -> str:
    """Name and version, for headers."""
    from ragst_sd import __version__

    return f"ragst-sd {__version__}"


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
    if genes is None:
        return Genes(np.arange(reference.n_vars), [], list(reference.var_names))
    wanted = as_names(genes)
    require_some(wanted, "genes")
    place = reference.var_names.get_indexer(wanted)
    others = [gene for gene, i in zip(wanted, place, strict=True) if i < 0]
    known = signature_genes(cell_types(reference))
    missing = [gene for gene in others if gene not in known]
    if missing:
        msg = (
            f"`genes`: the reference has no {listing(missing)}; it has {reference.n_vars} genes: "
            f"{listing(reference.var_names)}.{hint(missing[0], [*reference.var_names, *known])}"
        )
        if not len(known):
            msg += " Genes that no row measured can be given from single cells: `rg.tl.add_cell_types`."
        raise ValueError(msg)
    if others and not METHODS[fit["method"]].cites:
        msg = (
            f"`genes`: no row of the reference measured {listing(others)}. They could be given from cell types, by the "
            f"fractions of cited rows, but method {fit['method']!r} cites nobody. Fit a method that does, or leave them out."
        )
        raise ValueError(msg)
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
        mixed = np.log1p(fractions.astype(np.float64) @ signatures_of(about, genes.scrna))
        table = _with_genes(table, mixed.astype(np.float32), genes)
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
    known = np.isfinite(fractions).all(axis=1)
    rows = np.where(known[found.rows], found.rows, -1)
    weights = np.where((found.rows >= 0) & (rows >= 0), found.weights, 0.0).astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=weights, where=total > 0)
    return weighted_average(rows, weights, np.where(known[:, None], fractions, 0.0))


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
