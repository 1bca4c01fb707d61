"""Predicted tables: finding them and reading their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import plain_table
from ragst_sd._bank import open_bank
from ragst_sd._fields import (
    COMMON_FIELDS,
    TASK_FIELDS,
    check_values,
    holds_responses,
    require_rows,
    require_tissue,
)
from ragst_sd._reference import is_perturbation, read_header, reference_hash, row_hashes
from ragst_sd._validate import names_among, require_key, require_type
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.training import dense

# Columns that say how well grounded a spot is, and how well a gene is predicted.
OBS_COLUMNS = (
    _keys.EFFECTIVE_N,
    _keys.N_DONORS,
    _keys.DISTANCE_PERCENTILE,
    _keys.APPEARANCE_DISTANCE,
    _keys.OUT_OF_REFERENCE,
    _keys.EVIDENCE_SHARE,
)
VAR_COLUMNS = (_keys.N_MEASURED, _keys.CV_PEARSON, _keys.NOISE_CEILING, _keys.EVIDENCE)

# Genes that figures of accuracy are about: those that vary most over the reference.
N_GENES = 250
# Below this correlation on held-out donors a gene is not to be trusted, whatever its map looks like.
MIN_CV_PEARSON = 0.1
# Below this ceiling a gene is noise, and a share of it says nothing.
MIN_CEILING = 0.1
# Columns of `.obs` that say how well grounded a spot is, of which more is better; of all others less is.
MORE_IS_BETTER = (_keys.EFFECTIVE_N, _keys.N_DONORS, _keys.EVIDENCE_SHARE)


@dataclass(frozen=True)
class Intervals:
    """Prediction intervals of some genes."""

    lower: np.ndarray
    """(spots, genes)"""
    upper: np.ndarray
    """(spots, genes)"""
    level: float
    unit: str
    """What the intervals were calibrated over."""

    @property
    def width(self) -> np.ndarray:
        return self.upper - self.lower

    @property
    def name(self) -> str:
        return f"{100 * self.level:.0f} % interval"

    @property
    def caveat(self) -> str:
        """What must be said of them; nothing if they hold for new donors."""
        return "" if self.unit == _keys.DONOR else f"calibrated over {self.unit}s, not donors"

    @property
    def hatch(self) -> str | None:
        """Of pictures, where there is a caveat."""
        return "////" if self.caveat else None


@dataclass(frozen=True)
class Prediction:
    """A predicted table, its provenance, and where it was found."""

    data: SpatialData | AnnData
    """The object, or the bare table as it was given."""
    key: str
    """Name of the table in the object."""
    table: AnnData
    header: dict[str, Any]

    @property
    def of_responses(self) -> bool:
        """Whether responses to perturbations were predicted; tissue otherwise."""
        return holds_responses(self.header)

    @property
    def cited(self) -> pd.DataFrame:
        """Rows of the reference that some spot cites, to which the numbers in the table point."""
        rows: pd.DataFrame = self.header[_keys.CITED]
        return rows

    def citations(self, spots: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """(spots, k) lines of `cited`, -1 for none, and their weights, 0 for none."""
        rows, weights = (np.asarray(self.table.obsm[name])[spots] for name in (_keys.ROWS, _keys.WEIGHTS))
        used = (rows >= 0) & (weights > 0)
        return np.where(used, rows, -1), np.where(used, weights, 0)

    @property
    def patterns(self) -> np.ndarray:
        """(spots,) number of the set of rows that each spot may use."""
        if _keys.LEVEL not in self.table.obs:
            return np.zeros(self.table.n_obs, dtype=np.int64)
        return self.table.obs[_keys.LEVEL].to_numpy(int)

    def spots(self, obs_names: str | Sequence[str] | None) -> np.ndarray:
        """Positions of spots (or cells) by name; all if `None`."""
        if obs_names is None:
            return np.arange(self.table.n_obs)
        what = "cell" if self.of_responses else "spot"
        return _positions(self.table.obs_names, obs_names, "obs_names", what)

    def genes(self, genes: str | Sequence[str] | None) -> np.ndarray:
        """Positions of genes by name; all if `None`."""
        if genes is None:
            return np.arange(self.table.n_vars)
        return _positions(self.table.var_names, genes, "genes", "gene")

    def values(
        self, genes: np.ndarray, spots: np.ndarray | slice = slice(None), *, layer: str | None = None
    ) -> np.ndarray:
        """(spots, genes) of `.X`, or of a layer, in float64."""
        matrix = self.table.X if layer is None else self.table.layers[layer]
        return dense(matrix[spots][:, genes])

    def intervals(self, genes: np.ndarray) -> Intervals | None:
        """Intervals of some genes; `None` if the prediction was made without."""
        if _keys.LOWER not in self.table.layers or _keys.UPPER not in self.table.layers:
            return None
        lower, upper = (self.values(genes, layer=name) for name in (_keys.LOWER, _keys.UPPER))
        return Intervals(lower, upper, float(self.header[_keys.INTERVAL_LEVEL]), str(self.header[_keys.INTERVAL_UNIT]))


def predicted(
    data: SpatialData | AnnData, prediction_key: str, *, any_task: bool = False, exact: bool = False
) -> Prediction:
    """A predicted table with its provenance, from a SpatialData or from the bare table.

    Predictions of tissue only, unless `any_task`. Values that were changed since are warned of, and refused if `exact`.

    Raises
    ------
    KeyError
        If the table does not exist.
    ValueError
        If the table carries no provenance or lacks part of it, is of another task, or has rows of other predictions.
    """
    require_type(data, (SpatialData, AnnData), "sdata")
    if isinstance(data, AnnData):
        table = plain_table(data)
    else:
        require_key(prediction_key, data.tables, "sdata.tables", "Run `rg.tl.predict` first.")
        table = plain_table(data.tables[prediction_key])
    header = table.uns.get(_keys.RETRIEVAL)
    if not any_task:
        require_tissue(header)
    lacking = _lacking(table, header)
    if lacking:
        raise ValueError(
            f"The table has no complete provenance: it lacks {', '.join(lacking)}. It was not made by `rg.tl.predict` "
            "or `rg.tl.perturb`, or lost it on the way (`anndata.concat` drops `.uns`): predict again, or use the "
            "table as it was written."
        )
    if int(header.get("schema_version", 0)) != _keys.SCHEMA_VERSION:
        raise ValueError(
            f"The table's provenance has schema version {header.get('schema_version')}; this installation reads "
            f"{_keys.SCHEMA_VERSION}. Use a release of ragst_sd that writes that version, or predict again."
        )
    require_rows(table, header)
    check_values(table, header, refuse=exact)
    return Prediction(data, prediction_key, table, header)


def _lacking(table: AnnData, header: Any) -> list[str]:
    """Places of the provenance that are not there."""
    uns = f"uns[{_keys.RETRIEVAL!r}]"
    lacking = [f"obsm[{name!r}]" for name in (_keys.ROWS, _keys.WEIGHTS, _keys.DISTANCES) if name not in table.obsm]
    if not isinstance(header, dict) or not any(name in header for name in COMMON_FIELDS):
        return [uns, *lacking]
    fields = [*COMMON_FIELDS, *TASK_FIELDS.get(str(header.get("task")), ())]
    fields += ["where_mask"] if str(header.get("where")) == "mask" else []
    fields += [_keys.LEVEL_ROWS] if header.get("center_sections") else []
    lacking = [f"{uns}[{name!r}]" for name in fields if name not in header] + lacking
    if len(header.get(_keys.LEVEL_ROWS, ())) > 1 and _keys.LEVEL not in table.obs:
        lacking.append(f"obs[{_keys.LEVEL!r}]")
    if not lacking and np.max(table.obsm[_keys.ROWS], initial=-1) >= len(header[_keys.CITED]):
        lacking.append(f"lines of {uns}[{_keys.CITED!r}] that obsm[{_keys.ROWS!r}] points to")
    return lacking


def most_variable(table: AnnData, genes: Sequence[str], n_genes: int) -> np.ndarray:
    """Positions among `genes` of those that vary most over the reference and that all of its panels measured.

    All where there are no more than `n_genes`.

    Raises
    ------
    ValueError
        If the table does not know how much genes vary.
    """
    if len(genes) <= n_genes:
        return np.arange(len(genes))
    variance = table.var.reindex(columns=[_keys.REFERENCE_VARIANCE]).loc[genes].to_numpy(float).ravel()
    known = np.flatnonzero(np.isfinite(variance))
    if not len(known):
        raise ValueError(
            f"Which {n_genes} of the {len(genes)} genes vary most in the reference is not known "
            f"(`var[{_keys.REFERENCE_VARIANCE!r}]`): it was fitted by an earlier release, or its panels share no gene. "
            "Run `rg.tl.fit` and `rg.tl.predict` again, or compare all genes: `rg.tl.evaluate(..., n_genes=None)`."
        )
    return np.sort(known[np.lexsort((known, -variance[known]))[:n_genes]])


def require_columns(table: AnnData, names: Sequence[str]) -> None:
    """Raise a `KeyError` for the first of the columns, of `.obs` or of `.var`, that a predicted table has lost."""
    for name in names:
        where, columns = ("table.var", table.var) if name in VAR_COLUMNS else ("table.obs", table.obs)
        require_key(name, columns, where, "`rg.tl.predict` writes it; predict again.")


def matching_bank(prediction: Prediction, reference: AnnData | None, cited: pd.DataFrame | None = None) -> Bank:
    """The opened reference of tissue, if it is the one that the prediction was made from; else raise a `ValueError`.

    Only the content of cited rows is looked at, where the prediction kept their digests.

    Parameters
    ----------
    cited
        Lines of `prediction.cited` that are of interest; all of them if left out.
    """
    header = prediction.header
    reference, cited = _given(reference, header), prediction.cited if cited is None else cited
    bank = open_bank(reference, fitted=False, whole=False)
    if _keys.DIGEST in cited:
        at = bank.obs.index.get_indexer(cited["reference"])
        known = bank.header.frame_hash == str(header.get(_keys.FRAME_HASH)) and (at >= 0).all()
        if known and [digest.hex() for digest in row_hashes(reference, at)] == list(cited[_keys.DIGEST].astype(str)):
            return bank
    _require_hash(header, open_bank(reference, fitted=False).header.content_hash)
    return bank


def require_matching(prediction: Prediction, reference: AnnData | None) -> AnnData:
    """The reference, of either task, if it is the one that the prediction was made from; else raise a `ValueError`."""
    reference = _given(reference, prediction.header)
    if is_perturbation(reference):
        read_header(reference)
        _require_hash(prediction.header, reference_hash(reference))
    else:
        matching_bank(prediction, reference)
    return reference


def _given(reference: AnnData | None, header: dict[str, Any]) -> AnnData:
    if reference is None:
        raise ValueError(
            "The reference is needed: a predicted table points to measured rows and does not hold their values. Give "
            f"the one with hash {str(header['reference_hash'])[:12]} (`rg.io.read_reference`). `rg.get.neighbors` and "
            "`rg.get.influence(..., rows=...)` do without."
        )
    return reference


def _require_hash(header: dict[str, Any], current: str) -> None:
    """Raise a `ValueError` if a prediction was made from a reference with another hash."""
    if current != str(header["reference_hash"]):
        raise ValueError(
            f"The prediction was made from a reference with hash {str(header['reference_hash'])[:12]}; this one has "
            f"{current[:12]}. What a value was made from needs the very reference (`rg.io.write_reference` keeps it)."
        )


def _positions(names: pd.Index, wanted: str | Sequence[str], argument: str, what: str) -> np.ndarray:
    return names.get_indexer(names_among(wanted, names, argument, f": the table has no {what}", KeyError))


def remembered(header: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Perturbations and contexts whose left-out response a network was trained on: no test of the method."""
    known = header.get(_keys.LEARNED_FROM)
    if known is None or str(known["what"]) != "responses":
        return set()
    names, contexts = (np.atleast_1d(known[name]).astype(str).tolist() for name in (_keys.PERTURBATION, _keys.CONTEXT))
    return set(zip(names, contexts, strict=True))
