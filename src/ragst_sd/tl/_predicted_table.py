"""The table that `predict` writes, with its provenance."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import single_region, table_attrs

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
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
    rows, weights, distances = found.rows.copy(), found.weights.copy(), found.distances.copy()
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
        table.varm[_keys.INTERVAL_QUANTILES] = intervals.rule.quantiles
        about_intervals = {
            _keys.INTERVAL_LEVEL: intervals.rule.level,
            _keys.INTERVAL_UNIT: intervals.rule.unit,
            _keys.INTERVAL_LEVELS: intervals.rule.levels,
            _keys.INTERVAL_UNITS: intervals.rule.units,
        }
    if _keys.SPATIAL in query.table.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(query.table.obsm[_keys.SPATIAL]).copy()
    if len(found.level_rows) > 1:
        table.obs[_keys.LEVEL] = found.level_of
    for name, values in found.obs.items():
        table.obs[name] = _masked(values, outside, name)
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
    cited = np.asarray(sorted(cited, key=lambda row: str(reference.obs_names[row])), dtype=np.int64)
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
    import pandas as pd

    var = reference.var.iloc[gene_index]
    if _keys.CV_PEARSON in var and not _assessed(reference, fit):
        logger.warning(
            "`var[%r]` of the reference was found for another fit (method %r): the predicted table says nothing about how far "
            "genes can be trusted. Run `rg.tl.calibrate(reference)` and predict again.",
            _keys.CV_PEARSON, reference.uns[_keys.ATTRS][_keys.GENE_TRUST]["method"],
        )  # fmt: skip
        var = var.drop(columns=_keys.CV_PEARSON)
    n_measured = np.asarray(reference.varm[_keys.MEASURED])[gene_index] @ _rows_per_panel(reference)
    scores = {
        name: var[name].to_numpy(float) if name in var else np.full(len(var), np.nan)
        for name in (_keys.CV_PEARSON, _keys.NOISE_CEILING)
    }
    kinds = pd.Categorical(["measured"] * len(var), categories=["measured", "scRNA-seq"])
    return pd.DataFrame({_keys.N_MEASURED: n_measured, **scores, _keys.EVIDENCE: kinds}, index=var.index)


def _assessed(reference: AnnData, fit: dict[str, Any]) -> bool:
    """Whether the accuracy of genes is that of the fitted method, and of the very fit where one is named."""
    of = reference.uns[_keys.ATTRS].get(_keys.GENE_TRUST)
    return of is None or (of["method"] == fit["method"] and of["fit_hash"] in ("", fit["fit_hash"]))


def _rows_per_panel(reference: AnnData) -> np.ndarray:
    panels = reference.uns[_keys.ATTRS]["panels"]
    return reference.obs[_keys.PANEL].astype(str).value_counts().reindex(panels.astype(str), fill_value=0).to_numpy()


def _masked(values: np.ndarray, outside: np.ndarray, name: str) -> np.ndarray:
    """A spot outside the image has no neighbours and is out of reference."""
    values = values.copy()
    if name == _keys.OUT_OF_REFERENCE:
        values[outside] = True
    elif name == _keys.N_DONORS:
        values[outside] = 0
    else:
        values[outside] = np.nan
    return values


def software() -> str:
    """Name and version, for headers."""
    from ragst_sd import __version__

    return f"ragst-sd {__version__}"
