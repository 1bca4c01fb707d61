"""The measured side of a comparison: its table, brought to the unit, genes and spots of a prediction."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._annotation import is_predicted
from ragst_sd._labels import as_names
from ragst_sd._results import gene_index
from ragst_sd._validate import hint, listing, require_choice, require_key, require_type
from ragst_sd.reference.current_names import names_by
from ragst_sd.reference.genes import available_names, duplicates, sum_duplicates
from ragst_sd.reference.normalize import (
    MIN_SHARED_GENES,
    UNITS,
    as_csr,
    check_counts,
    check_log_normalized,
    log_normalize,
    size_factors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_WHERE = "The measured table"


def truth_table(sdata: SpatialData | AnnData, truth_key: str, truth: AnnData | None) -> AnnData:
    """The measured table: given, or by its name; never a predicted one."""
    from anndata import AnnData

    if truth is not None:
        require_type(truth, AnnData, "truth")
        return truth
    if isinstance(sdata, AnnData):
        msg = "A bare predicted table needs the measured one: pass it with `truth=`."
        raise ValueError(msg)
    require_key(truth_key, sdata.tables, "sdata.tables", "Name the measured table with `truth_key=`.")
    if is_predicted(sdata.tables[truth_key]):
        msg = f"`sdata.tables[{truth_key!r}]` was predicted by `rg.tl.predict`; the truth must be measured."
        raise ValueError(msg)
    return sdata.tables[truth_key]


def normalized_truth(
    measured: AnnData, header: dict[str, Any], layer: str | None, unit: str
) -> tuple[sp.csr_matrix, list[str], np.ndarray]:
    """Measured expression in the unit of a prediction, the names of its columns in the prediction's naming, its rows.

    The rows are those with counts: a spot without any was not measured.
    """
    require_choice(unit, UNITS, "unit")
    if unit == "counts":
        counts, names = truth_counts(measured, header, layer)
        factors = size_factors(counts, names, size_factor_genes(header))
        return log_normalize(counts, factors), names, factors > 0
    matrix, names = _named_values(measured, header, layer)
    check_log_normalized(matrix, _WHERE)
    if duplicates(names):
        msg = f"{_WHERE} has duplicated gene names ({listing(duplicates(names))}); on a log scale they cannot be added."
        raise ValueError(msg)
    return matrix, names, np.asarray(matrix.sum(axis=1)).ravel() > 0


def truth_counts(measured: AnnData, header: dict[str, Any], layer: str | None) -> tuple[sp.csr_matrix, list[str]]:
    """Measured counts and the names of their columns in the prediction's naming, without duplicates.

    Raises
    ------
    ValueError
        If they are not counts, or hold too few of the genes that size factors rest on.
    """
    matrix, names = _named_values(measured, header, layer)
    check_counts(matrix, _WHERE)
    matrix, names = sum_duplicates(matrix, names)
    wanted = size_factor_genes(header)
    present = len(set(wanted) & set(names))
    if present < MIN_SHARED_GENES:
        msg = (
            f"{_WHERE} holds {present} of the {len(wanted)} genes that size factors rest on; at least {MIN_SHARED_GENES} "
            "are needed to bring it to the prediction's unit."
        )
        raise ValueError(msg)
    return matrix, names


def size_factor_genes(header: dict[str, Any]) -> list[str]:
    """The genes that the size factors of a prediction rest on."""
    return [str(gene) for gene in header["size_factor_genes"]]


def _named_values(measured: AnnData, header: dict[str, Any], layer: str | None) -> tuple[sp.csr_matrix, list[str]]:
    """What was measured, as it is stored, and the names of its columns in the prediction's naming."""
    if layer is not None:
        require_key(layer, measured.layers, "truth.layers")
    elif measured.X is None or measured.n_vars == 0:
        msg = "The measured table has no expression (X is empty). Name another table with `truth_key=`."
        raise ValueError(msg)
    matrix = as_csr(measured.X if layer is None else measured.layers[layer])
    offered = available_names(list(measured.var_names), {name: measured.var[name].astype(str) for name in measured.var})
    naming = str(header["naming"])
    names = names_by(naming, offered)
    if names is None:
        msg = (
            f"The prediction names genes by {naming}, the measured table offers {listing(offered)} only. "
            "Add the missing names as a column of its `var`."
        )
        raise ValueError(msg)
    return matrix, names


def shared_genes(table: AnnData, names: list[str], genes: Sequence[str] | None) -> list[str]:
    """The genes asked for, or all that both tables have."""
    available = set(names)
    if genes is None:
        shared = [gene for gene in table.var_names if gene in available]
        if not shared:
            msg = (
                f"The predicted and the measured table share no genes: {listing(table.var_names[:5])} against "
                f"{listing(names[:5])}."
            )
            raise ValueError(msg)
        return shared
    wanted = as_names(genes)
    gene_index(table, wanted)
    missing = [gene for gene in wanted if gene not in available]
    if missing:
        msg = f"`genes`: the measured table has no {listing(missing)}.{hint(missing[0], names)}"
        raise KeyError(msg)
    return wanted


def shared_spots(table: AnnData, measured: AnnData, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both tables that are the same spot with counts, by instance id of one element, else by name."""
    predicted_ids, measured_ids = _spot_ids(table, measured), _spot_ids(measured, table)
    place = measured_ids.get_indexer(predicted_ids)
    place[place >= 0] = np.where(counted[place[place >= 0]], place[place >= 0], -1)
    ours = np.flatnonzero(place >= 0)
    if not len(ours):
        msg = (
            f"The predicted and the measured table share no spots: {listing(table.obs_names[:3])} against "
            f"{listing(measured.obs_names[:3])}."
        )
        raise ValueError(msg)
    if len(ours) < table.n_obs:
        logger.info("%d of %d predicted spots were measured.", len(ours), table.n_obs)
    return ours, place[ours]


def _spot_ids(table: AnnData, other: AnnData) -> pd.Index:
    """What identifies the spots of a table in comparison with another one.

    Raises
    ------
    ValueError
        If both annotate elements and those are not the same: equal names would then be different places.
    """
    import pandas as pd

    attrs, others = (one.uns.get("spatialdata_attrs") for one in (table, other))
    if not attrs or not others:
        return table.obs_names
    regions, other_regions = ({str(name) for name in np.atleast_1d(one["region"])} for one in (attrs, others))
    if not regions & other_regions:
        msg = (
            f"The predicted and the measured table annotate different elements: {listing(sorted(regions))} against "
            f"{listing(sorted(other_regions))}. Compare tables of the same spots."
        )
        raise ValueError(msg)
    places = table.obs[[attrs["region_key"], attrs["instance_key"]]].astype(str)
    ids = pd.Index(places.agg("\x1f".join, axis=1))
    if ids.has_duplicates:
        msg = f"Spots occur twice in a table: {listing(ids[ids.duplicated()].unique())}."
        raise ValueError(msg)
    return ids
