r"""Learned retrieval of responses, trusted as far as held-out perturbations allow.

.. math:: \Delta(p, c) = f + \sum_j u_j (\kappa_j \Delta_j - \bar\Delta_{c(j)}), \qquad u_j = r_p \sum_g \pi_g t_g w_{gj}, \qquad
          f = \bar\Delta_c + r_p b\,(\text{bilinear}(p, c) - \bar\Delta_c)

with weights w of the 1.5-entmax of :math:`-s_g \|\phi_g(p) - \phi_g(j)\|^2` over the candidates and a null slot, of several gates g with
shares pi and trust t, :math:`r_p` the share of the embedding of p that the rows it may use span
(:func:`ragst_sd.retrieval.response_phi.explained`), :math:`\kappa_j` the number of genes perturbed in p over that in j, and :math:`\bar\Delta` the mean of a context. f is the
prediction without retrieval; cited are the rows with u above zero, with the weights u over their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ragst_sd.retrieval.gate import entmax
from ragst_sd.retrieval.response_episodes import familiar
from ragst_sd.retrieval.response_phi import doses, explained, learned_places, place
from ragst_sd.retrieval.response_regression import bilinear
from ragst_sd.retrieval.responses import Answer, candidates, distances_to, patterns, pool_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragst_sd.retrieval.responses import Asked, Bank

_NOBODY = -1e9


class Gate(NamedTuple):
    """How candidates are weighed."""

    penalty: float
    """Of the regression B in phi."""
    learned: float
    """Share rho of B in phi."""
    sharpness: float
    reach: float
    """Squared distance at which the null slot stands; infinite for none."""


@dataclass(frozen=True)
class Hood:
    """Candidates of each query, and what the weights are made from and applied to."""

    rows: np.ndarray
    """(q, K), -1 for none."""
    distance: np.ndarray
    """(q, K) squared distances of embeddings."""
    learned: dict[float, np.ndarray]
    """(q, K) squared distances of what B makes of them, by penalty."""
    level: np.ndarray
    """(q, g) mean response of the query's pool."""
    relative: np.ndarray
    """(q, K, g) responses of the candidates on the dose of the query, relative to the means of their contexts."""
    explained: np.ndarray
    """(q, 1) share of each query's embedding that the rows it may use span: how far anything but their mean is trusted."""


def find_hood(
    parameters: Mapping[str, Any],
    bank: Bank,
    asked: Asked,
    n_candidates: int,
    penalties: tuple[float, ...],
    teach: np.ndarray | None = None,
) -> Hood:
    """Stage 1, and the distances that stage 2 weighs.

    Parameters
    ----------
    penalties
        Penalties of B to try.
    teach
        (q, m) rows that B is learned from for each query; those it may use if left out.
    """
    states = _states(bank, asked)
    x, features = place(parameters, bank.key, _states_of_rows(bank))
    query, query_features = place(parameters, asked.key, states)
    found = candidates(bank, asked, asked.pool(bank), min(n_candidates, len(bank.key)))
    rows = np.maximum(found.rows, 0)
    learned = {penalty: np.zeros(rows.shape) for penalty in penalties}
    for queries, taught in patterns(asked.eligible if teach is None else teach):
        places = learned_places(bank, features, query_features[queries], taught, penalties) if penalties else []
        for penalty, (mine, theirs) in zip(penalties, places, strict=True):
            learned[penalty][queries] = ((mine[:, None, :] - theirs[rows[queries]]) ** 2).sum(axis=2)
    level = pool_mean(bank, asked)
    # Perturbed genes of the query over those of the row: two genes are expected to do twice what one does.
    dose = doses(asked.genes)[:, None] / doses(bank.genes)[rows]
    return Hood(
        rows=found.rows,
        distance=((query[:, None, :] - x[rows]) ** 2).sum(axis=2),
        learned=learned,
        level=level,
        relative=bank.values[rows] * dose[..., None] - _centres(bank, asked, rows, level),
        explained=explained(bank, asked)[:, None],
    )


def weigh(hood: Hood, gate: Gate, n_neighbors: int) -> np.ndarray:
    """(q, K) weights of the candidates; what they lack to one is what the null slot took."""
    squared = (1 - gate.learned) ** 2 * hood.distance
    if gate.learned > 0:
        squared = squared + gate.learned**2 * hood.learned[gate.penalty]
    logits = np.where(hood.rows >= 0, -gate.sharpness * squared, -np.inf)
    if n_neighbors < logits.shape[1]:
        last = -np.sort(-logits, axis=1)[:, [n_neighbors - 1]]
        # Ties at the last place: the rows nearer in the embedding, which come first.
        kept = logits > last
        ties = (logits == last) & (np.cumsum(logits == last, axis=1) + kept.sum(axis=1, keepdims=True) <= n_neighbors)
        logits = np.where(kept | ties, logits, -np.inf)
    null = -gate.sharpness * gate.reach if np.isfinite(gate.reach) else _NOBODY
    with_null = np.concatenate([logits, np.full((len(logits), 1), null)], axis=1)
    return entmax(torch.as_tensor(with_null))[:, :-1].numpy()


def retrieved(hood: Hood, weights: np.ndarray) -> np.ndarray:
    """(q, g) what retrieval says beside the mean."""
    return (weights[:, None, :] @ hood.relative)[:, 0]


def respond_rag(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """Answer with the gates chosen for perturbations with and without measured relatives."""
    kind = familiar(bank, asked).astype(int)
    n, width = len(asked.key), min(int(parameters["n_candidates"]), len(bank.key))
    rows, weights = np.full((n, width), -1), np.zeros((n, width))
    evidence, response = (np.zeros((n, bank.values.shape[1])) for _ in range(2))
    for code in np.unique(kind):
        at = np.flatnonzero(kind == code)
        part, gates = _part(asked, at), _gates(parameters, code)
        penalties = tuple(sorted({gate.penalty for gate, *_ in gates if gate.learned > 0}))
        hood = find_hood(parameters, bank, part, width, penalties)
        base, trust_line = hood.level, sum(share * line_share for _, line_share, _, share in gates)
        if trust_line:
            line = bilinear(parameters, bank, part, k)
            base = base + trust_line * hood.explained * (line.evidence + line.adjustment - base)
        trusted = np.zeros(hood.rows.shape)
        for gate, _, trust, share in gates:
            if trust:
                trusted += share * trust * weigh(hood, gate, k)
        trusted = hood.explained * _best(trusted, k)
        total = trusted.sum(axis=1, keepdims=True)
        cited = np.divide(trusted, total, out=np.zeros_like(trusted), where=total > 0)
        rows[at], weights[at] = np.where(cited > 0, hood.rows, -1), cited
        response[at] = base + retrieved(hood, trusted)
        measured = np.einsum("qk,qkg->qg", cited, bank.values[np.maximum(hood.rows, 0)])
        evidence[at] = np.where(total > 0, measured, base)
    distances = np.where(rows >= 0, distances_to(bank, asked, rows), np.nan)
    return _shortened(Answer(rows, weights, distances, evidence, response - evidence), k)


def _gates(parameters: Mapping[str, Any], kind: int) -> list[tuple[Gate, float, float, float]]:
    """Gates of a kind of query, each with its trust in regression, in retrieval, and its share."""
    lines = np.atleast_2d(np.asarray(parameters["gates"], dtype=np.float64))
    return [(Gate(*line[1:5].tolist()), *line[5:].tolist()) for line in lines[lines[:, 0] == kind]]


def _best(weights: np.ndarray, k: int) -> np.ndarray:
    """The `k` largest weights of each line, which take over what the others had."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, k:]
    out = weights.copy()
    np.put_along_axis(out, order, 0.0, axis=1)
    total = out.sum(axis=1, keepdims=True)
    return out * np.divide(weights.sum(axis=1, keepdims=True), total, out=np.ones_like(total), where=total > 0)


def _shortened(answer: Answer, k: int) -> Answer:
    """Cited rows first, at most `k` of them."""
    order = np.argsort(-answer.weights, axis=1, kind="stable")[:, :k]
    rows, weights, distances = (np.take_along_axis(part, order, axis=1) for part in answer[:3])
    return Answer(rows, weights, distances, answer.evidence, answer.adjustment)


def _part(asked: Asked, at: np.ndarray) -> Asked:
    return replace(
        asked,
        key=asked.key[at],
        genes=tuple(asked.genes[i] for i in at),
        contexts=asked.contexts[at],
        eligible=asked.eligible[at],
        state=None if asked.state is None else asked.state[at],
    )


def _states(bank: Bank, asked: Asked) -> np.ndarray:
    return np.zeros((len(asked.key), 1)) if bank.state is None else asked.states(bank)


def _states_of_rows(bank: Bank) -> np.ndarray:
    return np.zeros((len(bank.key), 1)) if bank.state is None else bank.state[bank.contexts]


def _centres(bank: Bank, asked: Asked, rows: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Mean of the context of each candidate over the rows that the query may use; the query's own level in its context."""
    own = asked.contexts[:, None] == bank.contexts[rows]
    if own.all():
        return level[:, None, :]
    out = np.repeat(level[:, None, :], rows.shape[1], axis=1)
    for queries, allowed in patterns(asked.eligible):
        for code in np.unique(bank.contexts[allowed]):
            mean = bank.mean_of(allowed[bank.contexts[allowed] == code])
            at, where = np.nonzero((bank.contexts[rows[queries]] == code) & ~own[queries])
            out[queries[at], where] = mean
    return out
