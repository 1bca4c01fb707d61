"""Measured responses as episodes: each row is asked for in turn, and rows that would give it away are closed to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.retrieval.responses import Asked

if TYPE_CHECKING:
    from ragst_sd.retrieval.responses import Bank

_MAX_COMPONENTS = 128


def closed_rows(bank: Bank) -> np.ndarray:
    """(m, m) rows that each row may not use: its own perturbation in any context, and combinations that hold it.

    So a row is as new to the rest as a perturbation that nobody has measured. A combination may use its parts.
    """
    genes = [set(one) for one in bank.genes]
    holds = np.array([[mine <= other for other in genes] for mine in genes], dtype=bool)
    return holds | (bank.folds[:, None] == bank.folds[None, :])


def ask_rows(bank: Bank, rows: np.ndarray, closed: np.ndarray) -> Asked:
    """Rows of the bank as queries."""
    return Asked(bank.key[rows], tuple(bank.genes[row] for row in rows), bank.contexts[rows], ~closed[rows])


def shape_halves(bank: Bank) -> tuple[Bank, Bank]:
    """The bank with the responses against either half of the controls, without their mean over genes, in few axes.

    The axes keep inner products of such responses, up to what more than 128 of them would add: correlations over genes
    are cosines among few numbers.
    """
    centred = [half - half.mean(axis=1, keepdims=True) for half in bank.halves]
    _, size, axes = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    kept = max(1, int((size > 1e-9 * max(float(size[0]), 1e-300)).sum()))
    axes = axes[: min(kept, _MAX_COMPONENTS)].T
    values = [half @ axes for half in centred]
    first, second = (replace(bank, values=one, halves=(values[0], values[1])) for one in values)
    return first, second


def familiar(bank: Bank, asked: Asked) -> np.ndarray:
    """(q,) whether a gene of the query is perturbed in a row that it may use."""
    out = np.zeros(len(asked.key), dtype=bool)
    for i, genes in enumerate(asked.genes):
        shares = np.array([not set(genes).isdisjoint(other) for other in bank.genes], dtype=bool)
        out[i] = bool((shares & asked.eligible[i]).any())
    return out
