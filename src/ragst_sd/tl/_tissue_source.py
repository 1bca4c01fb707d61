"""Spots to perturb: a measured or a predicted table in the unit of the screen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import is_predicted, resolve_table, rows_in_order, single_region
from ragst_sd._cell_types import is_scrna
from ragst_sd._elements import element_centers, resolve_shapes, shared_coordinate_system
from ragst_sd._eligibility import allowed_rows
from ragst_sd._fields import holds_responses
from ragst_sd._gene_names import offered_names, read_expression
from ragst_sd._labels import labels
from ragst_sd._resolution import image_mpp_of
from ragst_sd._respond import Task
from ragst_sd._results import MIN_CV_PEARSON, predicted
from ragst_sd._validate import listing, require_known, require_unique
from ragst_sd.reference.current_names import names_in
from ragst_sd.reference.genes import shared_genes, take_genes
from ragst_sd.reference.normalize import MIN_SHARED_GENES
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._perturbation_cells import contexts_of

logger = logging.getLogger(__name__)

# Fewer genes than this, in number or as a share of those of the screen, do not show what the cells are like.
_FEWEST, _LEAST = 20, 0.05


@dataclass(frozen=True)
class TissueSource:
    """Spots as they are."""

    table_key: str
    table: AnnData
    """The chosen spots of the table."""
    xy: np.ndarray
    """(n, 2) centres in the frame of their element."""
    contexts: np.ndarray
    """(n,) context of each spot."""
    values: np.ndarray
    """(n, g) expression in the unit of the screen, float64; NaN where nothing was predicted."""
    var: pd.DataFrame
    """(g, ...) genes that the screen has too.

    Of a prediction how far each can be trusted, and what it was predicted from.
    """
    limits: np.ndarray | None = None
    """(2, n, g) ends of the interval of predicted expression, in the unit of the screen."""
    header: dict[str, Any] = field(default_factory=dict)
    """What the provenance keeps of it: the image, and of a prediction what was predicted how, and the intervals."""

    @property
    def genes(self) -> list[str]:
        """(g,) their names."""
        return list(self.var.index)

    @property
    def of_state(self) -> np.ndarray:
        """(g,) genes that say something of the state of a spot: not those that come from single cells."""
        evidence = self.var.get(_keys.EVIDENCE)
        return np.ones(len(self.var), dtype=bool) if evidence is None else (evidence != _keys.SCRNA).to_numpy()

    def with_genes(self, genes: list[str]) -> TissueSource:
        """The same spots with some of the genes."""
        at = self.var.index.get_indexer(genes)
        limits = None if self.limits is None else self.limits[..., at]
        return replace(self, values=self.values[:, at], var=self.var.iloc[at], limits=limits)


def read_source(
    sdata: SpatialData,
    task: Task,
    *,
    table_key: str | None,
    spots: Mapping[str, Any] | Sequence[Any] | None,
    context_key: str | None,
    layer: str | None,
    unit: str,
) -> TissueSource:
    """The chosen spots of a table; see :func:`ragst_sd.tl.perturb_tissue`.

    Raises
    ------
    KeyError
        If the table, a column, a spot or a layer does not exist.
    ValueError
        If no table or several could be meant, the table holds responses itself, no spot is left, or names or values do
        not fit the screen.
    """
    table_key = resolve_table(sdata, table_key, None)
    if table_key is None:
        raise ValueError(
            f"`sdata` has no measured table. Name a predicted one with `table_key=`; there are {listing(sdata.tables)}."
        )
    table, where = sdata.tables[table_key], f"sdata.tables[{table_key!r}]"
    if holds_responses(table.uns.get(_keys.RETRIEVAL)):
        raise ValueError(f"`{where}` holds predicted responses itself. Perturb the table that it was made from.")
    region = resolve_shapes(sdata, single_region(table))
    require_unique(table.obs_names, f"names of spots of `{where}`", "Make them unique.")
    xy, index = element_centers(sdata, region)
    xy = xy[rows_in_order(table, table_key, region, index)]
    from_image = is_predicted(table)
    if from_image and (layer is not None or unit != "counts"):
        raise ValueError(
            f"`{where}` was predicted by `rg.tl.predict`, which says its unit itself. Leave `layer` and `unit` out."
        )
    how = task.bank.header.normalization
    # Before expression is read: other genes than those of the screen have no size factors either.
    names = names_in(str(how["naming"]), offered_names(table), "The screen", f"`{where}`")
    shared = _shared(task.bank, names, where)
    rows = chosen_spots(table, spots, where)
    if from_image:
        expressed, about = _predicted(table, table_key, rows, names, shared, how)
    else:
        expressed, about = _measured(table, where, rows, shared, how, layer, unit)
    lost = len(rows) - len(expressed)
    if lost == len(rows):
        raise ValueError(f"None of the {lost} spots of `{where}` has expression of the screen's genes.")
    if lost:
        logger.warning("%d of %d spots have no expression of the screen's genes and are left out.", lost, len(rows))
    # A tissue is none of the screen's cell lines unless a column says so.
    contexts = contexts_of(table.obs.iloc[expressed], context_key, where, task.bank.header.contexts)
    about["header"] = about.get("header", {}) | _picture(sdata, table)
    return TissueSource(table_key, table[expressed], xy[expressed], contexts, **about)


def _shared(bank: Bank, names: list[str], where: str) -> list[str]:
    """Genes that the screen has too: enough of them to say what cells are like."""
    of_screen = list(bank.genes)
    needed = min(max(_FEWEST, round(_LEAST * len(of_screen))), len(of_screen))
    why = " to say what its cells are like"
    return shared_genes(of_screen, names, f"The screen and `{where}`", needed=needed, why=why)


def _measured(
    table: AnnData,
    where: str,
    rows: np.ndarray,
    shared: list[str],
    how: Mapping[str, Any],
    layer: str | None,
    unit: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Spots with expression, in the unit of the screen."""
    read = read_expression(table[rows], layer=layer, unit=unit, like=how, where=where, empty=True)
    # A spot without a single count of the genes that size factors rest on has no library size.
    basis = list(how["size_factor_genes"]) or read.genes
    counted = np.asarray(take_genes(read.values, read.genes, basis).sum(axis=1)).ravel() > 0
    values = dense(take_genes(read.values[counted], read.genes, shared)).astype(np.float64)
    return rows[counted], {"values": values, "var": pd.DataFrame(index=pd.Index(shared, name="gene"))}


def chosen_spots(table: AnnData, spots: Mapping[str, Any] | Sequence[Any] | None, where: str) -> np.ndarray:
    """Positions of the spots that are asked for, in the order of the table."""
    if spots is None:
        return np.arange(table.n_obs)
    given = np.asarray([spots] if isinstance(spots, str) else spots)
    if isinstance(spots, Mapping) or given.dtype == bool:
        mask = allowed_rows(table.obs, spots, "spots", where)
    else:
        names = [str(name) for name in given]
        require_known(names, table.obs_names, "spots", f": `{where}` has no", KeyError)
        mask = table.obs_names.isin(names)
    if not mask.any():
        raise ValueError("`spots` leaves no spot. Relax it.")
    return np.flatnonzero(mask)


def _predicted(
    table: AnnData, table_key: str, rows: np.ndarray, names: list[str], shared: list[str], how: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Spots with a prediction, their expression and intervals, and what is known of the genes."""
    header = predicted(table, table_key).header
    values = dense(table.X).astype(np.float64)[rows]
    finite = np.isfinite(values).any(axis=1)
    rows, values = rows[finite], values[finite]
    at = _places(names, shared)
    scrna = is_scrna(table, np.arange(table.n_vars))
    if scrna[at].all():
        raise ValueError(
            f"All {len(at)} genes that `sdata.tables[{table_key!r}]` shares with the screen come from single cells, "
            "which say nothing of the state of a spot. Predict genes that spots measured."
        )
    scale = _scale(values, names, scrna, str(header["unit"]), how, table_key)
    var = pd.DataFrame(index=pd.Index(shared, name="gene"))
    for name in (_keys.CV_PEARSON, _keys.NOISE_CEILING):
        if name in table.var:
            var[name] = table.var[name].to_numpy(float)[at]
    if _keys.EVIDENCE in table.var:
        var[_keys.EVIDENCE] = pd.Categorical(labels(table.var[_keys.EVIDENCE])[at])
    trust = var.get(_keys.CV_PEARSON, pd.Series(np.nan, var.index))
    about: dict[str, Any] = {"values": _rescaled(values[:, at], scale), "var": var, "header": {}}
    about["header"]["prediction"] = {
        "table_key": table_key,
        **{name: str(header[name]) for name in ("method", "unit", "reference_hash", "fit_hash")},
        "interval_unit": str(header.get(_keys.INTERVAL_UNIT, "")),
        "genes_not_assessed": int(trust.isna().sum()),
        "genes_not_to_be_trusted": int((trust < MIN_CV_PEARSON).sum()),
        "genes_from_scrna": int(scrna[at].sum()),
    }
    ends = [table.layers[name] for name in (_keys.LOWER, _keys.UPPER) if name in table.layers]
    if len(ends) == 2:
        about["limits"] = np.array([_rescaled(dense(end).astype(np.float64)[rows][:, at], scale) for end in ends])
        about["header"][_keys.INTERVAL_LEVEL] = float(header[_keys.INTERVAL_LEVEL])
    return rows, about


def _places(names: list[str], shared: list[str]) -> list[int]:
    """Where each shared gene is first in the table, which the screen may name otherwise than its `var_names`."""
    first = {gene: place for place, gene in reversed(list(enumerate(names)))}
    return [first[gene] for gene in shared]


def _scale(
    values: np.ndarray, names: list[str], scrna: np.ndarray, unit: str, normalization: Mapping[str, Any], table_key: str
) -> np.ndarray | None:
    """What the counts of each spot are multiplied by to reach the target of the screen; nothing if it is reached."""
    basis = {str(gene) for gene in normalization["size_factor_genes"]}
    if not basis:
        if unit != str(normalization["unit"]):
            raise ValueError(
                f"The prediction is in {unit}, the screen in {normalization['unit']} of genes that it does not "
                "name. Build the reference of responses from counts."
            )
        return None
    columns = np.array([gene in basis for gene in names]) & ~scrna
    if columns.sum() < MIN_SHARED_GENES:
        raise ValueError(
            f"`sdata.tables[{table_key!r}]` predicts {int(columns.sum())} genes that the size factors of the screen "
            f"rest on; at least {MIN_SHARED_GENES} are needed to bring it to the screen's unit. Predict more genes, "
            "or build the reference of responses with `unit='log1p_cp10k'`."
        )
    sums = np.nansum(np.expm1(np.maximum(values[:, columns], 0)), axis=1)
    return np.divide(float(normalization["target_sum"]), sums, out=np.ones_like(sums), where=sums > 0)


def _rescaled(values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    # Predictions of linear methods can fall below zero, which no count does.
    return values if scale is None else np.log1p(np.expm1(np.maximum(values, 0)) * scale[:, None])


def _picture(sdata: SpatialData, table: AnnData) -> dict[str, Any]:
    """Image that the spots lie on, for drawing; empty where there is none or several could be meant."""
    made = table.uns.get(_keys.RETRIEVAL, {})
    embedded = table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {})
    places = [(str(x.get("image_key", "")), str(x.get("coordinate_system"))) for x in (made, *embedded.values())]
    places = [place for place in places if place[0] in sdata.images]
    if not places:
        for image_key in sdata.images:
            with suppress(ValueError):
                places.append((image_key, shared_coordinate_system(sdata, single_region(table), image_key, None)))
        if len(places) != 1:
            return {"image_key": "", "coordinate_system": "", "image_mpp": float("nan")}
    image_key, system = places[0]
    mpp = image_mpp_of(sdata, image_key)
    return {"image_key": image_key, "coordinate_system": system, "image_mpp": float("nan") if mpp is None else mpp}
