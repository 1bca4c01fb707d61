"""The one writer of predicted tables of both tasks: fields, lines of cited rows, and provenance."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from ragst_sd import __version__, _keys
from ragst_sd._annotation import single_region, table_attrs
from ragst_sd._bank import n_measured
from ragst_sd._cell_types import cell_types_hash, signature_genes, signatures_of, type_names
from ragst_sd._fields import TISSUE, Field, fill, mark
from ragst_sd._query import Query
from ragst_sd._validate import hint, listing, name_list
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.conformal import IntervalRule
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Selected, Values

logger = logging.getLogger(__name__)

# Columns of the reference that a line of `cited` has, and their types.
_CITED: dict[str, dict[str, type]] = {
    "histology": {
        **dict.fromkeys((_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY), str),
        **dict.fromkeys((_keys.X_UM, _keys.Y_UM), np.float64),
    },
    TASK: {
        **dict.fromkeys((_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE), str),
        _keys.N_CELLS: np.int64,
        _keys.RELIABILITY: np.float64,
    },
}


def assembled(
    fields: Sequence[Field],
    bank: Bank,
    values: Mapping[str, Any],
    *,
    obs: pd.DataFrame,
    genes: pd.Index,
    header: Mapping[str, Any],
    outside: np.ndarray | None = None,
) -> AnnData:
    """The table of a prediction of either task: its fields, one line for each cited row, and the provenance.

    Parameters
    ----------
    values
        By name of the field, as :func:`ragst_sd._fields.fill` takes them; pointers are rows of the bank.
    obs
        Columns beside those of the fields.
    header
        What the provenance has beside reference and fit.
    outside
        (n,) spots without an embedding; none if left out.
    """
    task, fit = "histology" if bank.screen is None else TASK, bank.fit
    outside = np.zeros(len(obs), dtype=bool) if outside is None else outside
    rows = np.where(outside[:, None], -1, values[_keys.ROWS])
    cited = np.unique(rows[rows >= 0])
    cited = cited[np.argsort(bank.ids[cited], kind="stable")]
    # The last place is that of -1.
    place = np.full(len(bank) + 1, -1, dtype=np.int32)
    place[cited] = np.arange(len(cited), dtype=np.int32)
    lines = bank.obs.iloc[cited][list(_CITED[task])].astype(_CITED[task])
    lines.insert(0, "reference", bank.ids[cited].astype(object))
    if bank.digests is not None:
        lines[_keys.DIGEST] = [bank.digests[row].hex() for row in cited]
    lines.index = lines.index.astype(str).rename(None)
    places = fill(fields, {**values, _keys.ROWS: place[rows]}, outside)
    table = ad.AnnData(
        places.pop("X")["prediction"],
        obs=obs.assign(**places.pop("obs")),
        var=pd.DataFrame(places.pop("var", {}), index=genes),
        **places,
    )
    table.uns[_keys.RETRIEVAL] = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": task,
        "software": f"ragst-sd {__version__}",
        **{name: getattr(fit, name) for name in ("method", "metric", "reference_hash", "fit_hash", "inner_groups")},
        "sources": bank.header.sources.copy(),
        **header,
        _keys.CITED: lines,
    }
    mark(table)
    return table


def wanted_genes(bank: Bank, genes: str | Sequence[str] | None, *, in_memory: bool = True) -> pd.Series:
    """Positions in the reference by gene, -1 for those that only its cell types' signatures hold; all if `None`.

    Raises
    ------
    ValueError
        If neither has a gene, or one of the latter is to be written block by block, or the method cites no rows whose
        fractions could be used.
    """
    if genes is None:
        return pd.Series(np.arange(len(bank.genes)), index=bank.genes)
    wanted = name_list(genes, "genes")
    place = pd.Series(bank.genes.get_indexer(wanted), index=pd.Index(wanted, name=bank.genes.name))
    others = list(place.index[place < 0])
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
    if others and not in_memory:
        raise ValueError(
            f"`store` is given, and `genes` names {listing(others)}, which only single cells measured: these are given "
            "in memory only. Leave them out, or predict without `store`."
        )
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
    return place


def predicted_table(
    bank: Bank,
    query: Query,
    selected: Selected,
    wanted: pd.Series,
    eligibility: Eligibility,
    rule: IntervalRule | None,
    settings: dict[str, Any],
    values: Values,
) -> AnnData:
    """Assemble and validate the table; see :func:`ragst_sd.tl.predict` for its fields."""
    selection, about, fractions = selected.selection, bank.header.cell_types, _cited_fractions(bank, selected)
    known, quantiles = wanted.to_numpy() >= 0, None if rule is None else rule.quantiles
    if fractions is not None and not known.all():
        mixed = np.log1p(fractions.astype(np.float64) @ signatures_of(about, wanted.index[~known]))
        others = {"prediction": mixed, _keys.EVIDENCE: mixed}
        values = {
            name: array if array.ndim == 1 else _with_genes(array, known, others.get(name, np.nan))
            for name, array in values.items()
        }
        quantiles = None if rule is None else _with_genes(rule.quantiles.T, known, np.nan).T
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
    if fractions is not None:
        limited[_keys.CELL_TYPES] = {
            "names": np.asarray(type_names(about), dtype=str),
            "method": str(about["method"]),
            "source": dict(about["source"]),
            "hash": cell_types_hash(bank.ids, np.asarray(bank.types), about),
        }
    table = assembled(
        TISSUE,
        bank,
        {
            **values,
            **_about_genes(bank, wanted.to_numpy(), eligibility.split),
            **selected.grounding._asdict(),
            _keys.ROWS: selection.rows,
            _keys.WEIGHTS: selection.weights,
            _keys.DISTANCES: selection.distances,
            _keys.LEVEL: selection.pattern if selection.pattern.any() else None,
            _keys.REGRESSION_KEY: selection.features,
            _keys.CELL_TYPE_FRACTION: fractions,
            _keys.INTERVAL_QUANTILES: quantiles,
            _keys.MEASURED: None if eligibility.itself is None else eligibility.itself >= 0,
        },
        obs=carried(query.table, query.donor_key, _keys.SAMPLE),
        genes=wanted.index,
        outside=~query.finite,
        header={
            "center_sections": bank.fit.cites_level,
            "unit": bank.header.unit,
            "naming": bank.header.naming,
            "size_factor_genes": bank.header.size_factor_genes.astype(str),
            _keys.FRAME_HASH: bank.header.frame_hash,
            "encoder": deepcopy(dict(bank.header.encoder)),
            "table_key": query.table_key,
            "use_rep": query.use_rep,
            "image_key": query.header["image_key"],
            "coordinate_system": query.header["coordinate_system"],
            "image_mpp": float(query.header["image_mpp"]),
            "search_recall": float(selected.recall),
            **settings,
            **limited,
        },
    )
    return annotating(table, query.table)


def carried(spots: AnnData, *columns: str) -> pd.DataFrame:
    """What a predicted table keeps of the spots' `.obs`: which shapes they are, and these columns if there."""
    attrs = table_attrs(spots)
    names = [attrs["region_key"], attrs["instance_key"], *(name for name in columns if name in spots.obs)]
    return spots.obs[list(dict.fromkeys(names))].copy()


def annotating(table: AnnData, spots: AnnData) -> AnnData:
    """The table, checked, as one that annotates the shapes of the spots, with their positions."""
    if _keys.SPATIAL in spots.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(spots.obsm[_keys.SPATIAL]).copy()
    keys = {name: spots.uns["spatialdata_attrs"][name] for name in ("region_key", "instance_key")}
    return TableModel.parse(table, region=single_region(spots), **keys, overwrite_metadata=True)


def _about_genes(bank: Bank, place: np.ndarray, split: str) -> dict[str, Any]:
    """How far each gene can be trusted; NaN where it was not assessed, or for another fit."""
    var, fit, of = bank.var, bank.fit, bank.header.gene_trust
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
    names = [_keys.REFERENCE_VARIANCE, _keys.CV_PEARSON, _keys.NOISE_CEILING]
    numbers = var.reindex(columns=names).astype(float).assign(**{_keys.RETRIEVAL_SHARE: np.asarray(share)})
    known = place >= 0
    return {
        **{f"var/{name}": np.where(known, column.to_numpy()[place], np.nan) for name, column in numbers.items()},
        f"var/{_keys.N_MEASURED}": np.where(known, n_measured(bank)[place], 0),
        f"var/{_keys.EVIDENCE}": pd.Categorical(np.where(known, "measured", _keys.SCRNA), ["measured", _keys.SCRNA]),
    }


def _cited_fractions(bank: Bank, selected: Selected) -> np.ndarray | None:
    """(n, types) cell types of the cited rows by weight, over rows that have fractions; `None` without cell types.

    Methods that cite no rows leave no weights by which fractions could be averaged.
    """
    rows, weights = selected.selection.rows, selected.selection.weights
    if bank.header.cell_types is None or not (rows >= 0).any():
        return None
    fractions = np.asarray(bank.types)
    known = np.isfinite(fractions).all(axis=1)
    # As genes are, of which one panel measured all and the other none.
    measured = np.repeat([[False], [True]], fractions.shape[1], axis=1)
    values = np.where(known[:, None], fractions, 0.0)
    return weighted_average(rows, weights, values, panels=known.astype(np.int64), measured=measured)


def _with_genes(values: np.ndarray, known: np.ndarray, others: Any) -> np.ndarray:
    """(n, genes) values of the genes that are `known`, with those of the others in between."""
    out = np.empty((len(values), len(known)), dtype=values.dtype)
    out[:, known], out[:, ~known] = values, others
    return out
