r"""The adjustment T: what the evidence misses, as far as it follows from where the evidence lies.

.. math:: T(u) = u L C, \qquad u = \phi(x) - \sum_j w_j \phi(x_j)

The rows of a reference retrieve from other groups and donors, and the residuals of their evidence are regressed on u by
ridge regression. L keeps the leading directions (reduced rank), found on the most variable genes; C is then the ridge
solution for every gene. The penalty is the one with which held-out groups are predicted best; where no penalty does
better than no adjustment at all, T is zero.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.bank import Query
from ragst_sd.retrieval.centering import weighted_shift
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.search import Eligibility, find_candidates
from ragst_sd.retrieval.targets import held_out_splits
from ragst_sd.retrieval.training import dense, mean_over_groups, variable_genes, within_section_pearson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragst_sd.retrieval.bank import Bank, Run, Selection

logger = logging.getLogger(__name__)

_ALPHAS = np.logspace(-2, 3, 11)
_SCORED_GENES = 250
_BLOCK_VALUES = 2**24
# A held-out gain below this is noise between penalties, not a reason to depart from what was measured.
_WORTH_IT = 1e-3


def fit_adjustment(
    training: Bank,
    phi: np.ndarray,
    key: np.ndarray,
    select: Callable[[Bank, Query], Selection],
    shifts: np.ndarray,
    *,
    run: Run,
    rank: int,
    candidates: str,
) -> dict[str, Any]:
    """Fit T on the episodes of a trained gate; `phi` are the rows as queries, `key` as rows that are retrieved.

    Returns
    -------
    `adjustment_in` (q, r), `adjustment_out` (r, g), `adjustment_alpha` (infinite where T is zero), and
    `adjustment_scores`: held-out score of no adjustment, then of each penalty.
    """
    eligibility = Eligibility(training.groups, training.groups, np.ones(len(phi), dtype=bool))
    found = find_candidates(phi, key, run.n_candidates, eligibility=eligibility, how=candidates)
    selection = select(replace(training, key=key), Query(phi, found, training.states, run.n_neighbors))
    rows, weights = selection.rows, selection.weights
    offset = evidence_offset(selection, key)
    served = weights.sum(axis=1) > 0

    # Blocks of genes are taken many times over.
    by_gene = training.values.tocsc() if hasattr(training.values, "tocsc") else training.values

    def truth_and_missed(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part, moved, measured = by_gene[:, genes], shifts[:, genes], training.measured[:, genes]
        part = part.tocsr() if hasattr(part, "tocsr") else part
        of_panels = {"panels": training.panels, "measured": measured}
        evidence = weighted_average(rows, weights, part, **of_panels)
        evidence = evidence - weighted_shift(rows, weights, training.sections, moved, **of_panels)
        truth = dense(part) - moved[training.sections]
        return truth, np.where(measured[training.panels], truth - evidence, np.nan)

    everywhere = np.flatnonzero(training.measured.all(axis=0))
    genes = variable_genes(training.values, np.arange(len(phi)), everywhere, _SCORED_GENES)
    none = {
        "adjustment_in": np.zeros((phi.shape[1], 1)),
        "adjustment_out": np.zeros((1, training.values.shape[1])),
        "adjustment_alpha": np.float64(np.inf),
        "adjustment_scores": np.full(1 + len(_ALPHAS), np.nan),
    }
    if not rank or not len(genes) or not served.any():
        return none
    truth, missed = truth_and_missed(genes)
    usable = served & np.isfinite(missed).all(axis=1)
    scores = _score(training, offset, missed, truth, usable)
    none["adjustment_scores"] = scores
    best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
    if best == 0 or scores[best] < scores[0] + _WORTH_IT:
        logger.info("No adjustment predicts held-out groups better than the evidence alone: T is zero.")
        return none
    alpha = float(_ALPHAS[best - 1])
    directions = _directions(offset[usable], missed[usable], alpha, rank)
    out = np.zeros((directions.shape[1], training.values.shape[1]))
    step = max(1, _BLOCK_VALUES // len(phi))
    for _, genes in training.gene_patterns():
        for start in range(0, len(genes), step):
            block = genes[start : start + step]
            _, missed = truth_and_missed(block)
            # Genes that the same panels measured lack a residual in the same rows.
            known = served & np.isfinite(missed).all(axis=1)
            if known.any():
                out[:, block] = _ridge(offset[known] @ directions, missed[known], alpha)
    return {
        "adjustment_in": directions,
        "adjustment_out": out,
        "adjustment_alpha": np.float64(alpha),
        "adjustment_scores": scores,
    }


def evidence_offset(selection: Selection, key: np.ndarray) -> np.ndarray:
    """What the cited rows lack, u = phi(x) - sum_j w_j phi(x_j), (n, q); zero where nothing is cited."""
    rows, phi = selection.rows, selection.key
    held = np.where(rows >= 0, selection.weights, 0.0)
    centre = np.empty_like(phi)
    step = max(1, _BLOCK_VALUES // max(1, held.shape[1] * phi.shape[1]))
    for start in range(0, len(phi), step):
        part = slice(start, start + step)
        centre[part] = np.einsum("nk,nkq->nq", held[part], key[np.maximum(rows[part], 0)])
    return np.where(held.sum(axis=1, keepdims=True) > 0, phi - centre, 0.0)


def apply_adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    """T(u), (n, g)."""
    offset = evidence_offset(selection, bank.key)
    return offset @ np.asarray(parameters["adjustment_in"]) @ parameters["adjustment_out"]


def _ridge(u: np.ndarray, residual: np.ndarray, alpha: float) -> np.ndarray:
    return _solve(u.T @ u, u.T @ residual, alpha)


def _solve(gram: np.ndarray, moment: np.ndarray, alpha: float) -> np.ndarray:
    scale = np.trace(gram) / len(gram)
    return np.linalg.solve(gram + alpha * (scale + 1e-300) * np.eye(len(gram)), moment)


def _directions(u: np.ndarray, residual: np.ndarray, alpha: float, rank: int) -> np.ndarray:
    """(q, r) leading directions of the ridge solution, as regards the values that it fits."""
    solution = _ridge(u, residual, alpha)
    _, values, axes = np.linalg.svd(u @ solution, full_matrices=False)
    keep = min(rank, int((values > 1e-10 * max(values[0], 1e-300)).sum()) or 1)
    return solution @ axes[:keep].T


def _score(training: Bank, u: np.ndarray, missed: np.ndarray, truth: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Held-out score without adjustment and with each penalty, averaged over inner groups."""
    evidence = truth - missed
    scores = []
    for inner, held in held_out_splits(training.folds, None, usable):
        line = [within_section_pearson(evidence[held], truth[held], training.sections[held])]
        of_inner, of_held = u[inner], u[held]
        gram, moment = of_inner.T @ of_inner, of_inner.T @ missed[inner]
        for alpha in _ALPHAS:
            added = of_held @ _solve(gram, moment, float(alpha))
            line.append(within_section_pearson(evidence[held] + added, truth[held], training.sections[held]))
        scores.append(line)
    return mean_over_groups(scores, 1 + len(_ALPHAS))
