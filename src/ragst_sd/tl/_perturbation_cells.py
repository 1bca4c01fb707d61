"""Cells of a perturbation screen as arrays: expression in the reference's unit, and their labels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._gene_names import check_unit, names_in, normalization, offered_names, stored_expression
from ragst_sd._labels import is_missing, labels, warn_of_alike
from ragst_sd._validate import hint, listing, require_choice, require_key, require_type, require_unique
from ragst_sd.reference.genes import SYMBOL, changed_capitals, sum_duplicates, take_genes
from ragst_sd.reference.normalize import MIN_SHARED_GENES, TARGET_SUM, UNITS, log_normalize
from ragst_sd.reference.responses import SEPARATOR, canonical

logger = logging.getLogger(__name__)

# Cells with fewer values than this may be alike by chance.
_FEWEST = 8
NAME_THEM = "Name the controls with `control=`."


@dataclass
class Expression:
    """Expression of cells on a log scale."""

    values: sp.csr_matrix
    genes: list[str]
    normalization: dict[str, Any]
    """Header: unit, target sum, what was given, naming, and the genes that size factors rest on (none if unknown)."""
    errors: sp.csr_matrix | None = None
    """Standard errors of responses, where they were given."""


def read_expression(
    adata: AnnData,
    *,
    layer: str | None,
    unit: str,
    target_sum: float | None = None,
    like: Mapping[str, Any] | None = None,
    where: str = "adata",
) -> Expression:
    """Cells brought to log1p of counts per `target_sum`.

    Parameters
    ----------
    target_sum
        Sum that counts are scaled to; the median over the cells if left out.
    like
        Normalisation of a reference to follow: its target sum, its size-factor genes and its naming.
    """
    require_type(adata, AnnData, where)
    require_choice(unit, UNITS, "unit")
    if not adata.n_obs:
        raise ValueError(f"`{where}` has no cells.")
    # Controls that were used once are known by their names.
    todo = f"`{where}.obs_names_make_unique()` makes them unique."
    require_unique(adata.obs_names, f"names of cells of `{where}`", todo)
    matrix = stored_expression(adata, layer, where, "Name the layer with `layer=`.")
    place = f"`{where}.X`" if layer is None else f"`{where}.layers[{layer!r}]`"
    offered = offered_names(adata)
    naming = str(like["naming"]) if like else SYMBOL if SYMBOL in offered else next(iter(offered))
    names = names_in(naming, adata, "The reference", f"`{where}`")
    check_unit(matrix, unit, place, names)
    if unit != "counts":
        return Expression(matrix, names, normalization(unit, naming))
    matrix, names = sum_duplicates(matrix, names)
    wanted = [str(gene) for gene in like["size_factor_genes"]] if like else []
    # A reference that was given logs does not say what they were scaled by: then all genes of the cells, as is usual.
    shared = [gene for gene in names if gene in set(wanted)] if wanted else names
    if len(shared) < MIN_SHARED_GENES:
        raise ValueError(
            f"{place} holds {len(shared)} genes that size factors can rest on; at least {MIN_SHARED_GENES} are "
            "needed. Give all genes that were measured, or values that are log1p of normalised counts with "
            f"`unit='log1p_cp10k'`.{changed_capitals(wanted, names)}"
        )
    sums = np.asarray(take_genes(matrix, names, shared).sum(axis=1)).ravel().astype(np.float64)
    if not (sums > 0).all():
        raise ValueError(f"{int((sums <= 0).sum())} cells of {place} have no counts. Remove them first.")
    target = float(like["target_sum"]) if like else float(np.median(sums) if target_sum is None else target_sum)
    scale = _keys.UNIT if target == TARGET_SUM else f"log1p(counts per {target:,.6g})"
    about = normalization(unit, naming, unit=scale, target=target, genes=shared)
    return Expression(log_normalize(matrix, sums / target), names, about)


def read_labels(
    adata: AnnData,
    perturbation_key: str,
    control: str | Sequence[str],
    context_key: str | None,
    batch_key: str | None,
    *,
    type_key: str | None = None,
    perturbation_type: str | Sequence[str] | None = None,
    todo: str,
    responses: bool = False,
) -> pd.DataFrame:
    """What was done to each cell, and where: one row per cell; of responses, which need no controls, one per response.

    Columns are `perturbation` (one spelling each; the first control's name for controls), `context`, `batch`,
    `perturbation_type`, and
    `control`, whether a cell is a control.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a label is missing or no cell is a control.
    """
    controls = control_labels(control)
    given = column(adata, perturbation_key, "adata", named=controls, nothing=SEPARATOR)
    names = {name: canonical(name, controls) for name in set(given)}
    frame = pd.DataFrame({_keys.PERTURBATION: [names[name] for name in given]}, index=adata.obs_names)
    frame["control"] = frame[_keys.PERTURBATION] == controls[0]
    if not responses and not frame["control"].any():
        raise ValueError(
            f"No cell has {listing(controls)} in `adata.obs[{perturbation_key!r}]`; responses are measured against "
            f"controls. There are {listing(sorted(names))}.{hint(controls[0], names)} {todo}"
        )
    said = {part.strip() for name in names for part in name.split(SEPARATOR)}
    absent = [name for name in controls if name not in said]
    if absent and not responses:
        logger.warning("No cell is a control named %s; there are %s.", listing(absent), listing(sorted(names)))
    for name, key in ((_keys.CONTEXT, context_key), ("batch", batch_key)):
        frame[name] = _keys.ALL_CONTEXTS if key is None else column(adata, key, "adata")
    frame[_keys.PERTURBATION_TYPE] = perturbation_type if isinstance(perturbation_type, str) else _keys.UNKNOWN
    if type_key is not None or _keys.PERTURBATION_TYPE in adata.obs:
        # Controls have no type.
        treated = ~frame["control"].to_numpy()
        types = column(adata[treated], type_key or _keys.PERTURBATION_TYPE, "adata")
        frame.loc[treated, _keys.PERTURBATION_TYPE] = types
    return frame


def repeated_controls(cells: pd.DataFrame, values: sp.csr_matrix) -> np.ndarray:
    """(cells,) controls that are there before, under another name, in their context and batch.

    They are known by having the very same values. Counted twice, they would make noise look small.
    """
    repeated, seen = np.zeros(len(cells), dtype=bool), set()
    strata = list(zip(cells[_keys.CONTEXT], cells["batch"], strict=True))
    # By name, so that what is left out does not depend on the order of the cells.
    by_name = np.argsort(np.asarray(cells.index, dtype=str), kind="stable")
    for i in by_name[cells["control"].to_numpy()[by_name]]:
        part = slice(values.indptr[i], values.indptr[i + 1])
        if part.stop - part.start < _FEWEST:
            continue
        known = (strata[i], values.indices[part].tobytes(), values.data[part].tobytes())
        repeated[i] = known in seen
        seen.add(known)
    if repeated.any():
        names = listing(cells.index[repeated][:3])
        logger.warning("%d controls are there twice under other names (%s), and are left out.", repeated.sum(), names)
    return repeated


def contexts_of(table: AnnData, context_key: str | None, where: str, known: Sequence[str]) -> np.ndarray:
    """Context of each row, unknown without a column; contexts that the reference does not know are new ones."""
    if context_key is None:
        return np.full(table.n_obs, _keys.UNKNOWN, dtype=object)
    contexts = column(table, context_key, where)
    new = sorted(set(contexts) - set(known))
    if new:
        logger.info("New contexts: %s. The reference has %s.", listing(new), listing(known))
        warn_of_alike(new, known, "context", "responses of its own are cited")
    return contexts


def control_labels(control: str | Sequence[str]) -> list[str]:
    """Names of the controls, as labels."""
    several = np.iterable(control) and not isinstance(control, str | Mapping | set)
    given = control if several else [control] if np.isscalar(control) else []
    controls = [name for name in dict.fromkeys(labels(given)) if name.strip(SEPARATOR)]
    if not controls:
        raise TypeError(f"`control` is {control!r}; give the name of the controls, or a list of names.")
    return controls


def column(
    adata: AnnData, key: str, where: str, *, named: Collection[str] = (), nothing: str | None = None
) -> np.ndarray:
    """Labels of a column without missing ones; nor such as hold blanks and `nothing` else."""
    require_key(key, list(adata.obs.columns), f"{where}.obs")
    names = labels(adata.obs[key])
    missing = adata.obs[key].isna().to_numpy() | is_missing(names, named)
    if nothing is not None:
        missing |= np.array([not name.replace(nothing, "").strip() for name in names], dtype=bool)
    if missing.any():
        empty = listing(sorted(set(names[missing])))
        raise ValueError(
            f"{int(missing.sum())} cells have no label in `{where}.obs[{key!r}]` (it says {empty}). Remove them, or "
            "name what they are."
        )
    return names
