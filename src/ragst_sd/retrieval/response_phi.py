r"""Where `rag` looks for related perturbations: a space that depends on the state of the cells.

.. math:: \phi(e, z) = \big[\, (1 - \rho)\, e,\; \rho\, (B_0 + \sum_l z_l B_l)\, e \,\big]

with e the embedding of a perturbation (unit length, principal components) and z the state of the cells. B is the ridge regression of measured
responses, each relative to the mean of its context and divided by the number of perturbed genes, on e and on z e.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.responses import patterns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragst_sd.retrieval.responses import Asked, Bank

_MAX_STATES = 4
_RIDGE = 0.1


def fit_space(bank: Bank, n_components: int) -> dict[str, np.ndarray]:
    """Axes of embeddings and of the states of the screen's contexts; responses are not looked at."""
    unit = _unit(bank.key)
    mean, axes = fit_pca(unit, n_components)
    scale = float(np.sqrt((((unit - mean) @ axes) ** 2).sum(axis=1).mean())) if axes.shape[1] else 1.0
    # A bank that knows no states has one: nothing.
    states = np.zeros((1, 1)) if bank.state is None else bank.state[np.unique(bank.contexts)]
    centre = states.mean(axis=0)
    _, size, state_axes = np.linalg.svd(states - centre, full_matrices=False)
    kept = min(_MAX_STATES, int((size > 1e-6 * max(1.0, float(size[0]))).sum()))
    state_axes = state_axes[:kept].T
    reach = np.abs((states - centre) @ state_axes).max(axis=0) if kept else np.ones(0)
    return {
        "projection_mean": mean,
        "projection": axes / (scale or 1.0),
        "state_mean": centre,
        "state_axes": state_axes / reach,
    }


def place(parameters: Mapping[str, Any], key: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, p) embeddings of unit length on average and (n, (1 + l) p) the same beside their products with the state.

    The states of the screen lie between -1 and 1 on every axis; farther ones are taken to the rim. Genes without a value
    (NaN) say nothing of the state.
    """
    x = (_unit(key) - parameters["projection_mean"]) @ parameters["projection"]
    z = np.clip(np.nan_to_num(states - parameters["state_mean"]) @ parameters["state_axes"], -1, 1)
    return x, np.concatenate([x, *(z[:, [i]] * x for i in range(z.shape[1]))], axis=1)


def doses(genes: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """(n,) perturbed genes of each, one at least."""
    return np.array([max(1, len(one)) for one in genes], dtype=np.float64)


def learned_places(
    bank: Bank, features: np.ndarray, queries: np.ndarray, rows: np.ndarray, alphas: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each penalty B applied to (q, f) queries and to (m, f) all rows, learned on `rows`, in units of its spread.

    Returned on the axes of what was learned from, of which there are as many as `rows` at most.
    """
    codes = bank.contexts[rows]
    x, y = features[rows].copy(), bank.values[rows] / doses(tuple(bank.genes[row] for row in rows))[:, None]
    for code in np.unique(codes):
        x[codes == code] -= x[codes == code].mean(axis=0)
        y[codes == code] -= y[codes == code].mean(axis=0)
    left, size, axes = np.linalg.svd(x, full_matrices=False)
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
        out.append((queries @ coefficients / scale, learned / scale))
    return out


def explained(bank: Bank, asked: Asked) -> np.ndarray:
    r"""(q,) share of each query's embedding that the rows of its pool span, from 0 to 1.

    .. math:: \frac{k^\top (K + \lambda I)^{-1} k}{\|u - \bar u\|^2}, \qquad k_j = (u - \bar u) \cdot (u_j - \bar u)

    with u embeddings of unit length, K their products, and :math:`\lambda` a tenth of its mean diagonal.
    """
    rows_at, queries_at = _unit(bank.key), _unit(asked.key)
    out = np.zeros(len(queries_at))
    for queries, rows in patterns(asked.pool(bank)):
        centre = rows_at[rows].mean(axis=0)
        x, q = rows_at[rows] - centre, queries_at[queries] - centre
        kernel, own = x @ x.T, x @ q.T
        kernel += (_RIDGE * np.trace(kernel) / len(rows) + 1e-12) * np.eye(len(rows))
        size = (q**2).sum(axis=1)
        found = (own * np.linalg.solve(kernel, own)).sum(axis=0)
        out[queries] = np.divide(found, size, out=np.zeros_like(size), where=size > 0)
    return np.clip(out, 0.0, 1.0)


def _unit(key: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(key, axis=1, keepdims=True)
    return key / np.where(length > 0, length, 1.0)
