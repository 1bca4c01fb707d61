"""The one writer of `rg.tl.predict`: values, pointers and provenance as a table that annotates the query's shapes."""

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

from ragst_sd import _keys
from ragst_sd._annotation import single_region, table_attrs
from ragst_sd._bank import n_measured
from ragst_sd._fields import TISSUE, fill
from ragst_sd._query import Query
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.conformal import IntervalRule
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Selected, Values

logger = logging.getLogger(__name__)

_CITED = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY)
_CITED_NUMBERS = dict.fromkeys((_keys.X_UM, _keys.Y_UM), np.float64)


def predicted_table(
    bank: Bank,
    query: Query,
    selected: Selected,
    values: Values,
    *,
    genes: np.ndarray,
    settings: dict[str, Any],
    rule: IntervalRule | None,
    fractions: np.ndarray | None,
    own: np.ndarray | None,
    split: str,
) -> AnnData:
    """Assemble and validate the table; see :func:`ragst_sd.tl.predict` for its fields."""
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
            _keys.CELL_TYPE_FRACTION: fractions,
            _keys.MEASURED: None if own is None else own >= 0,
            _keys.INTERVAL_QUANTILES: None if rule is None else rule.quantiles,
            **{f"var/{name}": column for name, column in _about_genes(bank, genes, split).items()},
        },
        outside,
    )
    attrs = table_attrs(query.table)
    kept = [attrs["region_key"], attrs["instance_key"]]
    kept += [name for name in (settings["donor_key"], _keys.SAMPLE) if name in query.table.obs]
    table = ad.AnnData(
        places["X"]["prediction"],
        obs=query.table.obs[list(dict.fromkeys(kept))].assign(**places["obs"]),
        var=pd.DataFrame(places["var"], index=bank.var.index[genes]),
        **{place: places[place] for place in ("layers", "obsm", "varm") if place in places},
    )
    if _keys.SPATIAL in query.table.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(query.table.obsm[_keys.SPATIAL]).copy()
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
    return TableModel.parse(
        table,
        region=single_region(query.table),
        region_key=attrs["region_key"],
        instance_key=attrs["instance_key"],
        overwrite_metadata=True,
    )


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
