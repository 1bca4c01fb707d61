"""Labels of the cells of a perturbation screen: what was done to them, in which context, and which are controls."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import is_missing, labels, warn_of_alike
from ragst_sd._validate import hint, listing, require_key
from ragst_sd.reference.responses import SEPARATOR, canonical

logger = logging.getLogger(__name__)

# Cells with fewer values than this may be alike by chance.
_FEWEST = 8
NAME_THEM = "Name the controls with `control=`."


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
    given = column(adata.obs, perturbation_key, "adata", named=controls, nothing=SEPARATOR)
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
        frame[name] = _keys.ALL_CONTEXTS if key is None else column(adata.obs, key, "adata")
    frame[_keys.PERTURBATION_TYPE] = perturbation_type if isinstance(perturbation_type, str) else _keys.UNKNOWN
    if type_key is not None or _keys.PERTURBATION_TYPE in adata.obs:
        # Controls have no type.
        treated = ~frame["control"].to_numpy()
        types = column(adata.obs[treated], type_key or _keys.PERTURBATION_TYPE, "adata")
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


def contexts_of(
    obs: pd.DataFrame, context_key: str | None, where: str, known: Sequence[str], unknown: str = _keys.UNKNOWN
) -> np.ndarray:
    """Context of each row, `unknown` without a column; contexts that the reference does not know are new ones."""
    if context_key is None:
        return np.full(len(obs), unknown, dtype=object)
    contexts = column(obs, context_key, where)
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
    obs: pd.DataFrame, key: str, where: str, *, named: Collection[str] = (), nothing: str | None = None
) -> np.ndarray:
    """Labels of a column without missing ones; nor such as hold blanks and `nothing` else."""
    require_key(key, list(obs.columns), f"{where}.obs")
    names = labels(obs[key])
    missing = obs[key].isna().to_numpy() | is_missing(names, named)
    if nothing is not None:
        missing |= np.array([not name.replace(nothing, "").strip() for name in names], dtype=bool)
    if missing.any():
        empty = listing(sorted(set(names[missing])))
        raise ValueError(
            f"{int(missing.sum())} cells have no label in `{where}.obs[{key!r}]` (it says {empty}). Remove them, or "
            "name what they are."
        )
    return names
