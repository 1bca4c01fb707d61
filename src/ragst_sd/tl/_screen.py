"""From the cells of a screen to rows of a reference: responses, what is left out, and the controls that are kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing, require_known
from ragst_sd.reference.responses import CONTROL, halves, mean_responses, split_half_reliability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    import scipy.sparse as sp

logger = logging.getLogger(__name__)

# Two controls of a stratum at least: one for each half.
_MIN_CONTROLS = 2
_SOURCE_FIELDS = ("technology", "license", "citation")
_DROPPED = ("perturbation", "context", "n_cells", "reason")
Dropped = list[tuple[str, str, int, str]]


@dataclass
class Screen:
    """Cells of a screen, in the order of their names."""

    values: sp.csr_matrix
    cells: np.ndarray
    perturbation: np.ndarray
    context: np.ndarray
    batch: np.ndarray
    kind: np.ndarray
    control: np.ndarray
    used: np.ndarray
    """(n,) cells that may enter the reference."""


@dataclass
class Rows:
    """Rows of the reference."""

    obs: pd.DataFrame
    mean: np.ndarray
    error: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    """Responses against one half of the controls each."""
    cells: np.ndarray
    """(n,) row that each cell of the screen belongs to, -1 for none."""


def measure(screen: Screen, *, min_cells: int, rng: np.random.Generator) -> tuple[Rows, Dropped]:
    """Responses of all perturbations with enough cells, and what is left out.

    `screen.used` is narrowed to the cells that the rows rest on.
    """
    import pandas as pd

    dropped: Dropped = []
    stratum = _codes(screen.context, screen.batch)
    controls = np.bincount(stratum[screen.control & screen.used], minlength=stratum.max() + 1)
    enough = controls[stratum] >= _MIN_CONTROLS
    lost = screen.used & ~screen.control & ~enough
    if lost.any():
        dropped += _count(screen, lost, f"fewer than {_MIN_CONTROLS} controls in the batch")
        logger.warning("%d cells of batches with fewer than %d controls are left out.", int(lost.sum()), _MIN_CONTROLS)
    screen.used = screen.used & enough

    treated = screen.used & ~screen.control
    names = np.array(
        ["\x1f".join(parts) for parts in zip(screen.context, screen.perturbation, screen.kind, strict=True)],
        dtype=object,
    )
    present, counts = np.unique(names[treated].astype(str), return_counts=True)
    small = set(present[counts < min_cells])
    if small:
        few = treated & np.isin(names.astype(str), list(small))
        dropped += _count(screen, few, f"fewer than {min_cells} cells")
        logger.warning(
            "Left out for fewer than %d cells: %s.", min_cells, listing(sorted(set(screen.perturbation[few])))
        )
        screen.used = screen.used & ~few
        treated = screen.used & ~screen.control
    kept = [str(name) for name, n in zip(present, counts, strict=True) if n >= min_cells]
    if not kept:
        msg = f"No perturbation has {min_cells} cells beside controls of its context and batch. Lower `min_cells`, or leave `batch_key` out."
        raise ValueError(msg)
    place = {name: i for i, name in enumerate(kept)}
    row = np.array([place.get(str(name), CONTROL) for name in names])
    row[~treated] = CONTROL
    of_cell = row

    used = np.flatnonzero(screen.used)
    values, row, stratum = screen.values[used], row[used], np.unique(stratum[used], return_inverse=True)[1]
    found = mean_responses(values, row, stratum, len(kept))
    # All cells of a row, but one half of the controls each.
    first = halves(np.where(row == CONTROL, stratum, stratum.max() + 1), rng)
    one, other = (
        mean_responses(values[part], row[part], stratum[part], len(kept)).mean
        for part in ((row != CONTROL) | first, (row != CONTROL) | ~first)
    )
    reliability = split_half_reliability(values, row, stratum, len(kept), rng=rng)
    context, perturbation, kind = (list(parts) for parts in zip(*(name.split("\x1f") for name in kept), strict=True))
    of_context = pd.Series(screen.context[screen.control & screen.used]).value_counts()
    obs = pd.DataFrame(
        {
            _keys.PERTURBATION: pd.Categorical(perturbation),
            _keys.CONTEXT: pd.Categorical(context),
            _keys.PERTURBATION_TYPE: pd.Categorical(kind),
            _keys.N_CELLS: found.n_cells,
            _keys.N_CONTROLS: [int(of_context[one]) for one in context],
            _keys.RELIABILITY: reliability,
        }
    )
    several = len(set(kind)) > 1
    obs.index = [
        ":".join((c, p, k) if several else (c, p)) for c, p, k in zip(context, perturbation, kind, strict=True)
    ]
    return Rows(obs, found.mean, found.error, (one, other), of_cell), dropped


def sample_controls(
    screen: Screen, max_controls: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and number of the controls of each context, and a sample of their cells."""
    control = screen.control & screen.used
    contexts = sorted(set(screen.context[control]))
    means, numbers, chosen = [], [], []
    for context in contexts:
        cells = np.flatnonzero(control & (screen.context == context))
        means.append(np.asarray(screen.values[cells].mean(axis=0)).ravel())
        numbers.append(len(cells))
        chosen.append(np.sort(rng.choice(cells, min(max_controls, len(cells)), replace=False)))
    at = np.concatenate(chosen)
    state = {
        "context": np.asarray(contexts, dtype=str),
        "mean": np.asarray(means, dtype=np.float32),
        "n_controls": np.asarray(numbers, dtype=np.int64),
    }
    drawn = {
        "cell": screen.cells[at],
        "context": screen.context[at].astype(str),
        "batch": screen.batch[at].astype(str),
        "values": screen.values[at],
    }
    return state, drawn


def sample_treated(screen: Screen, rows: Rows, max_cells: int, rng: np.random.Generator) -> dict[str, Any]:
    """A sample of the perturbed cells of every row."""
    chosen = [np.zeros(0, dtype=np.int64)]
    for row in np.argsort(rows.obs.index.to_numpy(str)):
        own = np.flatnonzero(rows.cells == row)
        chosen.append(np.sort(rng.choice(own, min(max_cells, len(own)), replace=False)))
    at = np.concatenate(chosen)
    return {
        "cell": screen.cells[at].astype(str),
        "row": rows.obs.index.to_numpy(str)[rows.cells[at]],
        "values": screen.values[at],
    }


def dropped_frame(dropped: Sequence[tuple[str, str, int, str]]) -> pd.DataFrame:
    """What was left out and why, one line each."""
    import pandas as pd

    frame = pd.DataFrame(list(dropped), columns=list(_DROPPED), index=[str(i) for i in range(len(dropped))])
    return frame.astype({"perturbation": str, "context": str, "n_cells": np.int64, "reason": str})


def sources_frame(sources: Mapping[str, Mapping[str, str]] | None, contexts: list[str]) -> pd.DataFrame:
    """Technology, licence and citation of each context."""
    import pandas as pd

    given = dict(sources or {})
    require_known(given, contexts, "sources", " names contexts")
    for context, fields in given.items():
        require_known(fields, _SOURCE_FIELDS, f"sources[{context!r}]", " has unknown fields")
    rows = [[str(given.get(c, {}).get(field) or _keys.UNKNOWN) for field in _SOURCE_FIELDS] for c in contexts]
    return pd.DataFrame(rows, columns=list(_SOURCE_FIELDS), index=pd.Index(contexts, name=_keys.CONTEXT))


def _codes(*columns: np.ndarray) -> np.ndarray:
    joined = np.array(["\x1f".join(parts) for parts in zip(*columns, strict=True)])
    return np.unique(joined, return_inverse=True)[1]


def _count(screen: Screen, cells: np.ndarray, reason: str) -> Dropped:
    pairs, counts = np.unique(
        np.array([[p, c] for p, c in zip(screen.perturbation[cells], screen.context[cells], strict=True)], dtype=str),
        axis=0,
        return_counts=True,
    )
    return [(str(p), str(c), int(n), reason) for (p, c), n in zip(pairs, counts, strict=True)]
