"""From the cells of a screen to rows of a reference: responses, what is left out, and the cells that are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_known
from ragst_sd.reference.responses import CONTROL, cell_prints, halves, mean_responses, split_half_reliability

logger = logging.getLogger(__name__)

# Two controls of a stratum at least: one for each half.
MIN_CONTROLS = 2
UNUSED = -2
"""Code of cells that are no control and of no row."""
_SOURCE_FIELDS = ("technology", "license", "citation")
OF_ROWS = [_keys.CONTEXT, _keys.PERTURBATION, _keys.PERTURBATION_TYPE]


@dataclass
class Screen:
    """Cells of a screen, in the order of their names."""

    values: sp.csr_matrix
    cells: pd.DataFrame
    """Labels by name, whether a cell is `used`: may enter the reference, and why it is `left_out`, if it is."""


class Lines(NamedTuple):
    """Perturbations with enough cells beside enough controls of their context and batch."""

    names: pd.MultiIndex
    row: np.ndarray
    """(cells,) line of each cell; `CONTROL`, or `UNUSED`."""
    stratum: np.ndarray
    """(cells,) code of context and batch."""
    uncontrolled: np.ndarray
    """(cells,) perturbed cells without enough controls."""


def used_cells(
    values: sp.csr_matrix, row: np.ndarray, stratum: np.ndarray, n_lines: int
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray, int]:
    """Cells of lines and controls, as :func:`ragst_sd.reference.responses.mean_responses` takes them."""
    used = row >= CONTROL
    return values[used], row[used], np.unique(stratum[used], return_inverse=True)[1], n_lines


def lines_of(
    cells: pd.DataFrame, keys: list[str], treated: np.ndarray, controls: np.ndarray, *, min_cells: int
) -> Lines:
    """Lines by the labels `keys`, of the cells of two masks."""
    stratum = cells.groupby([_keys.CONTEXT, "batch"]).ngroup().to_numpy()
    enough = np.bincount(stratum[controls], minlength=stratum.max() + 1)[stratum] >= MIN_CONTROLS
    counts = cells[treated & enough].groupby(keys).size()
    names = counts.index[counts >= min_cells]
    row = names.get_indexer(pd.MultiIndex.from_frame(cells[keys]))
    row[(row < 0) | ~treated | ~enough] = UNUSED
    row[controls & enough] = CONTROL
    return Lines(names, row, stratum, treated & ~enough)


def row_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Perturbation, context and type of rows of a reference, which are named by these."""
    several = labels[_keys.PERTURBATION_TYPE].nunique() > 1
    obs = labels[[_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE]].astype("category")
    return obs.set_axis([":".join(names) for names in labels[OF_ROWS if several else OF_ROWS[:2]].to_numpy()])


def measure(
    screen: Screen, genes: list[str], *, min_cells: int, rng: np.random.Generator
) -> tuple[AnnData, np.ndarray]:
    """Responses of all perturbations with enough cells as rows, and the row of each cell.

    `used` of the screen is narrowed to the cells that the rows rest on, and what others are left out for is written.
    """
    cells = screen.cells
    used, control = (cells[name].to_numpy() for name in ("used", "control"))
    lines = lines_of(cells, OF_ROWS, used & ~control, used & control, min_cells=min_cells)
    names, row, lost = lines.names, lines.row, lines.uncontrolled
    if lost.any():
        cells.loc[lost, "left_out"] = f"fewer than {MIN_CONTROLS} controls in the batch"
        logger.warning("%d cells of batches with fewer than %d controls are left out.", int(lost.sum()), MIN_CONTROLS)
    few = used & ~control & ~lost & (row == UNUSED)
    if few.any():
        cells.loc[few, "left_out"] = f"fewer than {min_cells} cells"
        small = sorted(cells[_keys.PERTURBATION][few].unique())
        logger.warning("Left out for fewer than %d cells: %s.", min_cells, listing(small))
    if names.empty:
        raise ValueError(
            f"No perturbation has {min_cells} cells beside controls of its context and batch. Lower `min_cells`, "
            "or leave `batch_key` out."
        )
    cells["used"] = row != UNUSED
    values, of_cell, stratum, _ = used_cells(screen.values, row, lines.stratum, len(names))
    whole = mean_responses(values, of_cell, stratum, len(names))
    # All cells of a row, but one half of the controls each.
    treated, first = of_cell != CONTROL, halves(np.where(of_cell == CONTROL, stratum, stratum.max() + 1), rng)
    layers = {_keys.STANDARD_ERROR: whole.error.astype(np.float32)}
    for name, half in zip(_keys.RESPONSE_HALVES, (first, ~first), strict=True):
        part = treated | half
        response = mean_responses(values[part], of_cell[part], stratum[part], len(names)).mean
        layers[name] = response.astype(np.float32)
    obs = row_labels(names.to_frame(index=False))
    obs[_keys.N_CELLS] = whole.n_cells
    controls = cells[_keys.CONTEXT][control & cells["used"]].value_counts()
    obs[_keys.N_CONTROLS] = controls[names.get_level_values(_keys.CONTEXT)].to_numpy()
    obs[_keys.RELIABILITY] = split_half_reliability(values, of_cell, stratum, len(names), rng=rng)
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    return ad.AnnData(whole.mean.astype(np.float32), obs=obs, var=var, layers=layers), row


def cell_parts(
    screen: Screen, reference: AnnData, row: np.ndarray, max_controls: int, max_cells: int, seed: int
) -> dict[str, Any]:
    """What the header keeps of the cells: states of contexts, samples, and what controls are recognised by."""
    cells, names = screen.cells, reference.obs_names.to_numpy(str)
    is_control, contexts = (cells["used"] & cells["control"]).to_numpy(), cells[_keys.CONTEXT].to_numpy(str)
    by_context = {name: np.flatnonzero(is_control & (contexts == name)) for name in np.unique(contexts[is_control])}
    controls = _sampled(by_context.values(), max_controls, seed)
    treated = _sampled((np.flatnonzero(row == i) for i in np.argsort(names)), max_cells, seed)
    means = [np.asarray(screen.values[at].mean(axis=0)).ravel() for at in by_context.values()]
    of_cells = cells.index.to_numpy(str)
    return {
        "contexts": {
            "context": np.asarray(list(by_context), dtype=str),
            "mean": np.asarray(means, dtype=np.float32),
            "n_controls": np.asarray([len(at) for at in by_context.values()], dtype=np.int64),
        },
        "controls": {
            "cell": of_cells[controls],
            "context": contexts[controls],
            "batch": cells["batch"].to_numpy(str)[controls],
            "values": screen.values[controls],
        },
        "treated": {"cell": of_cells[treated], "row": names[row[treated]], "values": screen.values[treated]},
        _keys.CONTROL_CELLS: of_cells[is_control],
        _keys.CONTROL_PRINTS: cell_prints(screen.values[is_control], list(reference.var_names)),
    }


def _sampled(groups: Iterable[np.ndarray], most: int, seed: int) -> np.ndarray:
    """Cells drawn from each group: all of a small one."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.sort(rng.choice(cells, min(most, len(cells)), replace=False)) for cells in groups])


def dropped_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """What was left out and why, one line for each reason, perturbation and context."""
    lost = cells[cells["left_out"] != ""].rename(columns={"left_out": "reason"})
    counts = lost.groupby(["reason", _keys.PERTURBATION, _keys.CONTEXT])[_keys.N_CELLS].sum().reset_index()
    counts.index = counts.index.astype(str)
    return counts[[_keys.PERTURBATION, _keys.CONTEXT, _keys.N_CELLS, "reason"]]


def sources_frame(sources: Mapping[str, Mapping[str, str]] | None, contexts: list[str]) -> pd.DataFrame:
    """Technology, licence and citation of each context."""
    given = dict(sources or {})
    require_known(given, contexts, "sources", " names contexts")
    for context, fields in given.items():
        require_known(fields, _SOURCE_FIELDS, f"sources[{context!r}]", " has unknown fields")
    rows = [[str(given.get(c, {}).get(field) or _keys.UNKNOWN) for field in _SOURCE_FIELDS] for c in contexts]
    return pd.DataFrame(rows, columns=list(_SOURCE_FIELDS), index=pd.Index(contexts, name=_keys.CONTEXT))
