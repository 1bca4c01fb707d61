"""Spots to perturb: a measured or a predicted table in the unit of the screen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import is_predicted, resolve_table, rows_in_order, single_region
from ragst_sd._cell_types import is_scrna
from ragst_sd._elements import element_centers, resolve_shapes
from ragst_sd._labels import labels
from ragst_sd._results import MIN_CV_PEARSON, holds_responses, predicted
from ragst_sd._validate import listing, require_key, require_known
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.normalize import MIN_SHARED_GENES, as_csr
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._eligibility import rows_with
from ragst_sd.tl._gene_names import names_in, shared_genes
from ragst_sd.tl._perturbation_cells import read_expression

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_OF_GENES = (_keys.CV_PEARSON, _keys.NOISE_CEILING)


@dataclass(frozen=True)
class Limits:
    """Interval of predicted expression, in the unit of the screen."""

    lower: np.ndarray
    upper: np.ndarray
    level: float


@dataclass(frozen=True)
class TissueSource:
    """Spots as they are."""

    table_key: str
    table: AnnData
    """The chosen spots of the table."""
    region: str
    xy: np.ndarray
    """(n, 2) centres in the frame of their element."""
    values: np.ndarray
    """(n, g) expression in the unit of the screen, float64; NaN where nothing was predicted."""
    genes: list[str]
    """(g,) genes that the screen has too."""
    limits: Limits | None
    prediction: dict[str, Any]
    """What was predicted how, if this is no measurement; empty otherwise."""
    evidence: np.ndarray | None = None
    """(g,) what each gene was predicted from; `None` where that is not said."""
    trust: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(g,) columns that say how far a predicted gene can be trusted, by name."""

    @property
    def told(self) -> np.ndarray:
        """(g,) genes that say something of the state of a spot: not those that come from single cells."""
        every = np.ones(len(self.genes), dtype=bool)
        return every if self.evidence is None else self.evidence != _keys.SCRNA


def read_source(
    sdata: SpatialData,
    header: dict[str, Any],
    of_screen: list[str],
    *,
    table_key: str | None,
    spots: Mapping[str, Any] | Sequence[Any] | None,
    layer: str | None,
    unit: str,
) -> TissueSource:
    """The chosen spots of a table; see :func:`ragst_sd.tl.perturb`.

    Raises
    ------
    KeyError
        If the table, a column, a spot or a layer does not exist.
    ValueError
        If no table or several could be meant, the table holds responses itself, no spot is left, or names or values do not
        fit the screen.
    """
    table_key = resolve_table(sdata, table_key, None)
    if table_key is None:
        msg = (
            f"`sdata` has no measured table. Name a predicted one with `table_key=`; there are {listing(sdata.tables)}."
        )
        raise ValueError(msg)
    table, where = sdata.tables[table_key], f"sdata.tables[{table_key!r}]"
    if holds_responses(table.uns.get(_keys.RETRIEVAL)):
        msg = f"`{where}` holds predicted responses itself. Perturb the table that it was made from."
        raise ValueError(msg)
    region = resolve_shapes(sdata, single_region(table))
    names = table.obs_names
    if names.has_duplicates:
        msg = f"`{where}` has names of spots more than once: {listing(names[names.duplicated()].unique())}."
        raise ValueError(msg)
    xy = element_centers(sdata[region])[rows_in_order(table, table_key, region, sdata[region].index)]
    from_image = is_predicted(table)
    if from_image and (layer is not None or unit != "counts"):
        msg = f"`{where}` was predicted by `rg.tl.predict`, which says its unit itself. Leave `layer` and `unit` out."
        raise ValueError(msg)
    naming = str(header["normalization"]["naming"])
    own = names_in(naming, table, "The screen", f"`{where}`")
    shared = shared_genes(of_screen, own, f"`{where}`")
    rows = chosen_spots(table, spots, where)
    how = header["normalization"]
    limits: Limits | None = None
    prediction: dict[str, Any] = {}
    if from_image:
        kept, values, limits, prediction = _predicted(table, table_key, rows, own, shared, how)
    else:
        kept, values = _measured(table, where, rows, own, shared, how, layer, unit)
    lost = len(rows) - len(kept)
    if not len(kept):
        msg = f"None of the {len(rows)} spots of `{where}` has expression of the screen's genes."
        raise ValueError(msg)
    if lost:
        logger.warning("%d of %d spots have no expression of the screen's genes and are left out.", lost, len(rows))
    evidence, trust = None, {}
    if from_image:
        at = _places(own, shared)
        if _keys.EVIDENCE in table.var:
            evidence = labels(table.var[_keys.EVIDENCE])[at]
        trust = {name: table.var[name].to_numpy(float)[at] for name in _OF_GENES if name in table.var}
    return TissueSource(table_key, table[kept], region, xy[kept], values, shared, limits, prediction, evidence, trust)


def chosen_spots(table: AnnData, spots: Mapping[str, Any] | Sequence[Any] | None, where: str) -> np.ndarray:
    """Positions of the spots that are asked for, in the order of the table."""
    if spots is None:
        return np.arange(table.n_obs)
    if isinstance(spots, Mapping):
        mask = rows_with(table, spots, where, "`spots`: no spot has")
    else:
        given = np.asarray([spots] if isinstance(spots, str) else spots)
        if given.dtype != bool:
            names = [str(name) for name in given]
            require_known(names, table.obs_names, "spots", f": `{where}` has no", KeyError)
            given = table.obs_names.isin(names)
        elif given.shape != (table.n_obs,):
            msg = f"`spots` is a mask of shape {given.shape}; `{where}` has {table.n_obs} spots."
            raise ValueError(msg)
        mask = given
    if not mask.any():
        msg = "`spots` leaves no spot. Relax it."
        raise ValueError(msg)
    return np.flatnonzero(mask)


def _measured(
    table: AnnData,
    where: str,
    rows: np.ndarray,
    own: list[str],
    shared: list[str],
    normalization: Mapping[str, Any],
    layer: str | None,
    unit: str,
) -> tuple[np.ndarray, np.ndarray]:
    if layer is not None:
        require_key(layer, table.layers, f"{where}.layers")
    part = table[rows]
    # A spot without a single count of the genes that size factors rest on has no library size.
    basis = {str(gene) for gene in normalization["size_factor_genes"]} or set(own)
    columns = np.array([gene in basis for gene in own])
    depth = np.asarray(as_csr(part.X if layer is None else part.layers[layer])[:, columns].sum(axis=1)).ravel()
    kept = rows[depth > 0]
    if not len(kept):
        return kept, np.zeros((0, len(shared)))
    found = read_expression(table[kept], layer=layer, unit=unit, like=normalization, where=where)
    return kept, dense(take_genes(found.values, found.genes, shared)).astype(np.float64)


def _predicted(
    table: AnnData,
    table_key: str,
    rows: np.ndarray,
    own: list[str],
    shared: list[str],
    normalization: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, Limits | None, dict[str, Any]]:
    _, header = predicted(table, table_key)
    values = dense(table.X).astype(np.float64)[rows]
    kept = np.isfinite(values).any(axis=1)
    rows, values = rows[kept], values[kept]
    at = _places(own, shared)
    scrna = is_scrna(table, np.arange(table.n_vars))
    if scrna[at].all():
        msg = (
            f"All {len(at)} genes that `sdata.tables[{table_key!r}]` shares with the screen come from single cells, which say "
            "nothing of the state of a spot. Predict genes that spots measured."
        )
        raise ValueError(msg)
    scale = _scale(values, own, scrna, str(header["unit"]), normalization, table_key)
    limits = None
    if _keys.LOWER in table.layers and _keys.UPPER in table.layers:
        lower, upper = (dense(table.layers[name]).astype(np.float64)[rows] for name in (_keys.LOWER, _keys.UPPER))
        limits = Limits(
            _rescaled(lower[:, at], scale), _rescaled(upper[:, at], scale), float(header[_keys.INTERVAL_LEVEL])
        )
    trust = (
        table.var[_keys.CV_PEARSON].to_numpy(float)[at] if _keys.CV_PEARSON in table.var else np.full(len(at), np.nan)
    )
    about = {
        "table_key": table_key,
        "method": str(header["method"]),
        "unit": str(header["unit"]),
        "reference_hash": str(header["reference_hash"]),
        "fit_hash": str(header["fit_hash"]),
        "interval_unit": str(header.get(_keys.INTERVAL_UNIT, "")),
        "genes_not_assessed": int(np.isnan(trust).sum()),
        "genes_not_to_be_trusted": int((trust < MIN_CV_PEARSON).sum()),
        "genes_from_scrna": int(scrna[at].sum()),
    }
    return rows, _rescaled(values[:, at], scale), limits, about


def _places(own: list[str], shared: list[str]) -> list[int]:
    """Where each shared gene is first in the table, which the screen may name otherwise than its `var_names`."""
    first = {gene: place for place, gene in reversed(list(enumerate(own)))}
    return [first[gene] for gene in shared]


def _scale(
    values: np.ndarray, own: list[str], scrna: np.ndarray, unit: str, normalization: Mapping[str, Any], table_key: str
) -> np.ndarray | None:
    """What the counts of each spot are multiplied by to reach the target of the screen; nothing if it is reached."""
    basis = {str(gene) for gene in normalization["size_factor_genes"]}
    if not basis:
        if unit != str(normalization["unit"]):
            msg = f"The prediction is in {unit}, the screen in {normalization['unit']} of genes that it does not name. Build the reference of responses from counts."
            raise ValueError(msg)
        return None
    columns = np.array([gene in basis for gene in own]) & ~scrna
    if columns.sum() < MIN_SHARED_GENES:
        msg = (
            f"`sdata.tables[{table_key!r}]` predicts {int(columns.sum())} genes that the size factors of the screen rest on; at "
            f"least {MIN_SHARED_GENES} are needed to bring it to the screen's unit. Predict more genes, or build the reference "
            "of responses with `unit='log1p_cp10k'`."
        )
        raise ValueError(msg)
    sums = np.nansum(np.expm1(np.maximum(values[:, columns], 0)), axis=1)
    return np.divide(float(normalization["target_sum"]), sums, out=np.ones_like(sums), where=sums > 0)


def _rescaled(values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    # Predictions of linear methods can fall below zero, which no count does.
    return values if scale is None else np.log1p(np.expm1(np.maximum(values, 0)) * scale[:, None])
