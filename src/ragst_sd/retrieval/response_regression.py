"""Methods that regress responses on the embedding of the perturbation; they cite nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.responses import cite_nobody, patterns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragst_sd.retrieval.responses import Answer, Asked, Bank

_MAX_FOLDS = 20


def ridge(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    r"""Ridge regression on the embedding e, within contexts.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W, \qquad W = (E^\top E + \alpha I)^{-1} E^\top Y

    with E and Y taken relative to the mean of their context. Solved for each query on the rows that it may use.
    """
    alpha = float(parameters["alpha"])
    return _regress(bank, asked, lambda e, y: _solve(e, y, alpha))


def bilinear(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    r"""Bilinear regression through `rank` principal components G of the genes.

    .. math:: \Delta(p, c) = \bar\Delta_c + (e_p - \bar e_c) W G^\top, \qquad
              W = (E^\top E + \alpha I)^{-1} E^\top Y G (G^\top G + \alpha I)^{-1}
    """
    alpha, rank = float(parameters["alpha"]), int(parameters["rank"])

    def solution(e: np.ndarray, y: np.ndarray) -> np.ndarray:
        _, s, axes = np.linalg.svd(y, full_matrices=False)
        g = axes[:rank].T * s[:rank]
        return _solve(e, y, alpha) @ g @ np.linalg.solve(g.T @ g + alpha * np.eye(g.shape[1]), g.T)

    return _regress(bank, asked, solution)


def choose_alpha(bank: Bank, alphas: Sequence[float]) -> float:
    """Penalty with the least squared error on held-out perturbations.

    Coefficients come from responses against one half of the controls and are scored against the other: the noise of
    shared controls would be predicted as if it were an effect.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    if len(grid) == 1:
        return float(grid[0])
    groups = np.unique(bank.folds)
    fold_of = dict(zip(groups.tolist(), (np.arange(len(groups)) % min(len(groups), _MAX_FOLDS)).tolist(), strict=True))
    folds = np.array([fold_of[group] for group in bank.folds.tolist()])
    error = np.zeros(len(grid))
    for learned, truth in (bank.halves, bank.halves[::-1]):
        for fold in np.unique(folds):
            training, held = folds != fold, folds == fold
            held &= np.isin(bank.contexts, bank.contexts[training])
            if not held.any():
                continue
            e, y, means = _centred(bank.key, learned, bank.contexts, np.flatnonzero(training))
            left, s, axes = np.linalg.svd(e, full_matrices=False)
            at = np.array([means[0][code] for code in bank.contexts[held].tolist()])
            level = np.array([means[1][code] for code in bank.contexts[held].tolist()])
            scores, rotated = (bank.key[held] - at) @ axes.T, left.T @ y
            for i, alpha in enumerate(grid):
                predicted = level + (scores * (s / (s**2 + alpha))) @ rotated
                error[i] += ((predicted - truth[held]) ** 2).sum()
    return float(grid[int(np.argmin(error))])


def _regress(bank: Bank, asked: Asked, solution: Any) -> Answer:
    evidence = np.zeros((len(asked.key), bank.values.shape[1]))
    adjustment = np.zeros_like(evidence)
    for queries, rows in patterns(asked.eligible):
        e, y, (keys, levels) = _centred(bank.key, bank.values, bank.contexts, rows)
        coefficients = solution(e, y)
        everywhere = bank.key[rows].mean(axis=0), bank.values[rows].mean(axis=0)
        for i in queries:
            code = int(asked.contexts[i])
            centre, level = (keys[code], levels[code]) if code in keys else everywhere
            evidence[i], adjustment[i] = level, (asked.key[i] - centre) @ coefficients
    return cite_nobody(evidence, adjustment)


def _centred(
    key: np.ndarray, values: np.ndarray, contexts: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[dict[int, np.ndarray], dict[int, np.ndarray]]]:
    """Embeddings and responses of some rows relative to the means of their contexts, and these means."""
    e, y, codes = key[rows], values[rows], contexts[rows]
    keys = {int(code): e[codes == code].mean(axis=0) for code in np.unique(codes)}
    levels = {int(code): y[codes == code].mean(axis=0) for code in np.unique(codes)}
    return (
        e - np.array([keys[code] for code in codes.tolist()]),
        y - np.array([levels[code] for code in codes.tolist()]),
        (keys, levels),
    )


def _solve(e: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """Ridge coefficients (d, g), in whichever of rows and components there are fewer."""
    if len(e) < e.shape[1]:
        return e.T @ np.linalg.solve(e @ e.T + alpha * np.eye(len(e)), y)
    return np.linalg.solve(e.T @ e + alpha * np.eye(e.shape[1]), e.T @ y)
