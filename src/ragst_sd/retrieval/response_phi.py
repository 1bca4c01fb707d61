r"""Where `rag` looks for related perturbations: a space that depends on the state of the cells, and candidates there.

.. math:: \phi(e, z) = \big[\, (1 - \rho)\, e,\; \rho\, (B_0 + \sum_l z_l B_l)\, e \,\big]

with e the embedding of a perturbation (unit length, principal components) and z the state of the cells. B is the ridge
regression of measured responses, each relative to the mean of its context and divided by the number of perturbed
genes, on e and on z e.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.responses import candidates, means_at, patterns, relative
from ragst_sd.retrieval.search import unit_rows

_MAX_STATES = 4
_RIDGE = 0.1
_LEAST_SHARE = 1e-12


def fit_space(bank: Bank, n_components: int) -> dict[str, np.ndarray]:
    """Axes of embeddings and of the states of the screen's contexts; responses are not looked at."""
    key = unit_rows(bank.key)
    mean, axes = fit_pca(key, n_components) if key.shape[1] else (np.zeros(0), np.zeros((0, 0)))
    scale = float(np.sqrt((((key - mean) @ axes) ** 2).sum(axis=1).mean())) if axes.shape[1] else 1.0
    states = bank.screen.states[np.unique(bank.sections)]
    centre = states.mean(axis=0)
    _, size, state_axes = np.linalg.svd(states - centre, full_matrices=False)
    n_axes = min(_MAX_STATES, int((size > 1e-6 * max(1.0, float(size[0]))).sum()))
    state_axes = state_axes[:n_axes].T
    reach = np.abs((states - centre) @ state_axes).max(axis=0)
    return {
        "projection_mean": mean,
        "projection": axes / (scale or 1.0),
        "state_mean": centre,
        "state_axes": state_axes / reach,
    }


def place(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """(n, p) embeddings of unit length on average."""
    return (unit_rows(key) - parameters["projection_mean"]) @ parameters["projection"]


def place_states(parameters: Mapping[str, Any], states: np.ndarray) -> np.ndarray:
    """(n, l) states along their axes.

    Those of the screen lie between -1 and 1 on every axis; farther ones are taken to the rim. Genes without a value
    (NaN) say nothing of the state.
    """
    return clip_states(np.nan_to_num(states - parameters["state_mean"]) @ parameters["state_axes"])


def clip_states(along: np.ndarray) -> np.ndarray:
    """States along their axes, taken to the rim of what the screen has shown."""
    return np.clip(along, -1, 1)


class Bend(NamedTuple):
    r"""How squared distances of q queries to their K candidates depend on the state z of the query.

    .. math:: \|a_0 + \sum_l z_l a_l - b_j\|^2 = \|a_0 - b_j\|^2 + 2 \sum_l z_l a_l \cdot (a_0 - b_j)
              + \sum_{lm} z_l z_m a_l \cdot a_m
    """

    constant: np.ndarray
    """(q, K)."""
    slope: np.ndarray
    """(q, l, K)."""
    curve: np.ndarray
    """(q, l, l)."""

    def at(self, line: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, K) squared distances of queries `line` in states (n, l)."""
        out = self.constant[line]
        # Term by term, so that candidates at one place stay equally far.
        for i in range(z.shape[1]):
            bent = (self.curve[line, i] * z).sum(axis=1)
            out += z[:, [i]] * (self.slope[line, i] + bent[:, None])
        return np.maximum(out, 0)


def no_bend(q: int, k: int, n_axes: int) -> Bend:
    """All candidates at the place of the query."""
    return Bend(np.zeros((q, k)), np.zeros((q, n_axes, k)), np.zeros((q, n_axes, n_axes)))


def bend(blocks: np.ndarray, candidates: np.ndarray) -> Bend:
    """Of (q, 1 + l, r) places of queries, without a state and by each axis of it, and (q, K, r) of candidates."""
    gap, axes = blocks[:, 0, None] - candidates, blocks[:, 1:]
    slope = np.zeros((len(blocks), axes.shape[1], candidates.shape[1]))
    for i in range(axes.shape[1]):
        slope[:, i] = 2 * (axes[:, i, None] * gap).sum(axis=2)
    return Bend((gap**2).sum(axis=2), slope, axes @ axes.transpose(0, 2, 1))


def doses(genes: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """(n,) perturbed genes of each, one at least."""
    return np.array([max(1, len(perturbed)) for perturbed in genes], dtype=np.float64)


def learned_places(
    bank: Bank, x: np.ndarray, z: np.ndarray, queries: np.ndarray, rows: np.ndarray, alphas: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each penalty B, learned on `rows`, applied to (q, p) queries and to all rows (m, p) in states (m, l).

    Returned in units of its spread, on the axes of what was learned from, of which there are r, as many as `rows` at
    most: (q, 1 + l, r) of queries by what their state is multiplied with, and (m, r).
    """
    codes, features = bank.sections[rows], np.concatenate([x, *(z[:, [i]] * x for i in range(z.shape[1]))], axis=1)
    dose = doses(bank.screen.perturbed)[rows, None]
    e, y = relative(features[rows], codes), relative(bank.values[rows] / dose, codes)
    left, size, axes = np.linalg.svd(e, full_matrices=False)
    rotated = left.T @ y
    # Distances are all that matters, so the responses are written in the rows' own axes.
    _, spread, genes = np.linalg.svd(rotated, full_matrices=False)
    rotated = rotated @ genes[: max(1, int((spread > 1e-9 * max(float(spread[0]), 1e-300)).sum()))].T
    out = []
    for alpha in alphas:
        coefficients = (axes.T * (size / (size**2 + alpha))) @ rotated
        learned = features @ coefficients
        scale = float(np.sqrt(((learned[rows] - learned[rows].mean(axis=0)) ** 2).sum(axis=1).mean()))
        scale = scale if scale > 0 else 1.0
        blocks = coefficients.reshape(1 + z.shape[1], x.shape[1], coefficients.shape[1])
        out.append(((queries @ blocks).transpose(1, 0, 2) / scale, learned / scale))
    return out


def explained(bank: Bank, query: Query) -> np.ndarray:
    """(q,) share of each query's embedding that the rows of its pool span, see :func:`spanned`."""
    rows_at, queries_at = unit_rows(bank.key), unit_rows(query.key)
    out = np.zeros(len(queries_at))
    for queries, rows in patterns(query.pool(bank)):
        out[queries] = spanned(rows_at[rows], queries_at[queries])
    return out


def spanned(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    r"""(q,) share of each query (q, d) that rows (n, d) span, from 0 to 1.

    .. math:: \frac{k^\top (K + \lambda I)^{-1} k}{\|u - \bar u\|^2}, \qquad k_j = (u - \bar u) \cdot (u_j - \bar u)

    with u embeddings of unit length, K their products, and :math:`\lambda` a tenth of its mean diagonal. A single row
    is its own mean, from which nothing departs: its share is one.
    """
    if len(x) == 1:
        return np.ones(len(q))
    centre = x.mean(axis=0)
    x, q = x - centre, q - centre
    kernel, of_queries = x @ x.T, x @ q.T
    kernel += (_RIDGE * np.trace(kernel) / len(x) + 1e-12) * np.eye(len(x))
    size = (q**2).sum(axis=1)
    along = (of_queries * np.linalg.solve(kernel, of_queries)).sum(axis=0)
    out = np.divide(along, size, out=np.zeros_like(size), where=size > 0)
    # What rounding leaves is nothing: nobody is to be cited for it.
    return np.where(out < _LEAST_SHARE, 0.0, np.minimum(out, 1.0))


@dataclass(frozen=True)
class Neighbors:
    """Candidates of each query, and what the weights are made from and applied to, for any state of its cells."""

    rows: np.ndarray
    """(q, K), -1 for none."""
    distance: np.ndarray
    """(q, K) squared distances of embeddings."""
    learned: dict[float, Bend]
    """Squared distances of what B makes of them, by penalty."""
    explained: np.ndarray
    """(q, 1) share of each query's embedding that the rows it may use span: how far all but their mean is trusted."""


def find_neighbors(
    parameters: Mapping[str, Any],
    bank: Bank,
    query: Query,
    n_candidates: int,
    penalties: tuple[float, ...],
    teach: np.ndarray | None = None,
) -> Neighbors:
    """Stage 1, and the distances that stage 2 weighs.

    Parameters
    ----------
    penalties
        Penalties of B to try.
    teach
        (q, m) rows that B is learned from for each query; those it may use if left out.
    """
    x, places = place(parameters, bank.key), place(parameters, query.key)
    z = place_states(parameters, bank.screen.states[bank.sections])
    found = candidates(bank, query, query.pool(bank), min(n_candidates, len(bank.key)))
    rows = np.maximum(found.rows, 0)
    learned = {penalty: no_bend(rows.shape[0], rows.shape[1], z.shape[1]) for penalty in penalties}
    for queries, taught in patterns(query.eligible if teach is None else teach):
        learned_at = learned_places(bank, x, z, places[queries], taught, penalties) if penalties else []
        for penalty, (mine, theirs) in zip(penalties, learned_at, strict=True):
            for whole, part in zip(learned[penalty], bend(mine, theirs[rows[queries]]), strict=True):
                whole[queries] = part
    return Neighbors(
        rows=found.rows,
        distance=((places[:, None, :] - x[rows]) ** 2).sum(axis=2),
        learned=learned,
        explained=explained(bank, query)[:, None],
    )


def relative_responses(bank: Bank, query: Query, rows: np.ndarray) -> np.ndarray:
    """(q, K, g) responses of rows on the dose of the query, relative to the means of their contexts.

    Means are taken over the rows that the query may use.
    """
    rows, at = np.maximum(rows, 0), np.arange(bank.sections.max() + 1)
    centres = np.empty((*rows.shape, bank.values.shape[1]))
    for queries, allowed in patterns(query.eligible):
        means = means_at(bank.values[allowed], bank.sections[allowed], at)
        centres[queries] = means[bank.sections[rows[queries]]]
    # Perturbed genes of the query over those of the row: two genes are expected to do twice what one does.
    dose = doses(query.perturbed)[:, None] / doses(bank.screen.perturbed)[rows]
    return bank.values[rows] * dose[..., None] - centres
