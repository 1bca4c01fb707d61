r"""Learned retrieval of responses, trusted as far as held-out perturbations allow.

.. math:: \Delta(p, c) = f + \sum_j u_j (\kappa_j \Delta_j - \bar\Delta_{c(j)}), \qquad
          u_j = r_p \sum_g \pi_g t_g w_{gj}, \qquad
          f = \bar\Delta_c + r_p b\,(\text{bilinear}(p, c) - \bar\Delta_c)

with weights w of the 1.5-entmax of :math:`-s_g \|\phi_g(p) - \phi_g(j)\|^2` over the candidates and a null slot,
of several gates g with shares pi and trust t, :math:`r_p` the share of the embedding of p that the rows it may
use span (:func:`ragst_sd.retrieval.response_phi.explained`), :math:`\kappa_j` the number of genes perturbed in p
over that in j, and :math:`\bar\Delta` the mean of a context. f is the prediction without retrieval; cited are the
rows with u above zero, with the weights u over their sum. Where none is, evidence is :math:`\bar\Delta_c`, and
the rest of f the adjustment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.gate import entmax
from ragst_sd.retrieval.response_baselines import bilinear
from ragst_sd.retrieval.response_phi import (
    Bend,
    bend,
    clip_states,
    doses,
    explained,
    learned_places,
    no_bend,
    place,
    place_states,
)
from ragst_sd.retrieval.response_shares import ALONE, by_gates_alone, stack_of
from ragst_sd.retrieval.response_stack import MEASURED, Stacked
from ragst_sd.retrieval.responses import (
    candidates,
    cite,
    familiar,
    mean_response,
    means_at,
    patterns,
    pool_mean,
)

_NOBODY = -1e9
# Kind of query, the fields of a gate, two trusts and a share.
GATE_FIELDS = 8


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


def weigh(neighbors: Neighbors, gate: Gate, n_neighbors: int, line: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(n, K) weights of the candidates of queries `line` in states (n, l).

    What they lack to one is what the null slot took.
    """
    squared = (1 - gate.learned) ** 2 * neighbors.distance[line]
    if gate.learned > 0:
        squared = squared + gate.learned**2 * neighbors.learned[gate.penalty].at(line, z)
    logits = np.where(neighbors.rows[line] >= 0, -gate.sharpness * squared, -np.inf)
    # Of equally good ones the first are taken: the rows nearer in the embedding.
    taken = np.argsort(-logits, axis=1, kind="stable")[:, :n_neighbors]
    null = -gate.sharpness * gate.reach if np.isfinite(gate.reach) else _NOBODY
    with_null = np.concatenate([np.take_along_axis(logits, taken, axis=1), np.full((len(logits), 1), null)], axis=1)
    weights = np.zeros_like(logits)
    np.put_along_axis(weights, taken, entmax(torch.as_tensor(with_null))[:, :-1].numpy(), axis=1)
    return weights


def select_rag(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """Rows by the gates chosen for perturbations with and without measured relatives."""
    ready = prepare_rag(parameters, bank, query)
    selection, answer = ready.respond(np.arange(len(query)), place_states(parameters, query.states(bank)))
    return replace(selection, response=answer.evidence + answer.adjustment)


def answer_rag(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """The prediction without retrieval, and what the cited rows add to it as far as they are trusted."""
    level, share = pool_mean(bank, selection.query), explained(bank, selection.query)
    return _answered(bank, selection, np.asarray(selection.response), level, share)


def _answered(bank: Bank, selection: Selection, response: np.ndarray, level: np.ndarray, share: np.ndarray) -> Answer:
    """The response as evidence, the mean of the pool where nobody is cited, and the rest."""
    cites = selection.weights.any(axis=1, keepdims=True)
    evidence = np.where(cites, mean_response(bank, selection), level)
    return Answer(evidence, response - evidence, explained=share if bank.key.shape[1] else None)


def prepare_rag(parameters: Mapping[str, Any], bank: Bank, query: Query) -> ReadyRag:
    """Everything that does not depend on the states of the cells."""
    kind, stacked = familiar(bank, query).astype(int), stack_of(parameters, bank, query)
    if stacked is not None:
        alone = by_gates_alone(parameters, bank, query)
        kind = np.where(alone, ALONE + kind, np.where(stacked.measured, MEASURED, kind))
    gates = {int(code): _gates(parameters, code) for code in np.unique(kind)}
    penalties = tuple(sorted({gate.penalty for of_kind in gates.values() for gate, *_ in of_kind if gate.learned > 0}))
    if any(gates.values()):
        neighbors = find_neighbors(parameters, bank, query, int(parameters["n_candidates"]), penalties)
    else:
        nobody = np.full((len(query), 1), -1)
        neighbors = Neighbors(nobody, nobody.astype(np.float64), {}, explained(bank, query)[:, None])
    return ReadyRag(parameters, bank, query, neighbors, kind, gates, stacked)


@dataclass(frozen=True)
class ReadyRag:
    """`rag` for some queries, each of which may be asked in many states."""

    parameters: Mapping[str, Any]
    bank: Bank
    query: Query
    neighbors: Neighbors
    kind: np.ndarray
    """(q,) 1 for queries with measured relatives."""
    gates: dict[int, list[tuple[Gate, float, float, float]]]
    stacked: Stacked | None = None
    """What the stack adds; `None` in fits of earlier releases."""

    @cached_property
    def level(self) -> np.ndarray:
        """(q, g) mean response of each query's pool."""
        return pool_mean(self.bank, self.query)

    @cached_property
    def base(self) -> np.ndarray:
        """(q, g) the mean of the pool and, as far as these are trusted, what bilinear regression and the stack add."""
        out = self.level.copy()
        for code, gates in self.gates.items():
            at, trust = np.flatnonzero(self.kind == code), sum(share * line for _, line, _, share in gates)
            if trust:
                line = bilinear(self.parameters, self.bank, self.query.some(at))
                out[at] += trust * self.neighbors.explained[at] * (line.evidence + line.adjustment - out[at])
        return out if self.stacked is None else out + self.stacked.coefficients @ self.bank.values

    @cached_property
    def relative(self) -> np.ndarray:
        """(q, K, g) what each candidate brings."""
        return relative_responses(self.bank, self.query, self.neighbors.rows)

    def place(self, states: np.ndarray) -> np.ndarray:
        """(n, l) what is read of states (n, g)."""
        return place_states(self.parameters, states)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """(g,) origin and (g, l) axes along which states are read."""
        return self.parameters["state_mean"], self.parameters["state_axes"]

    def respond(self, line: np.ndarray, z: np.ndarray) -> tuple[Selection, Answer]:
        """Rows and answer for queries `line` in states (n, l)."""
        trusted, rows, response = self._trusted(line, z), self.neighbors.rows[line], self.base[line]
        weights = np.zeros((len(line), len(self.bank))) if self.stacked is None else self.stacked.cited[line]
        np.add.at(weights, (np.arange(len(line))[:, None], np.maximum(rows, 0)), trusted)
        selection = cite(self.bank, self.query.some(line), weights)
        for query in np.unique(line):
            asked = np.flatnonzero(line == query)
            response[asked] += trusted[asked] @ self.relative[query]
        return selection, _answered(self.bank, selection, response, self.level[line], self.neighbors.explained[line, 0])

    def mixture(self, line: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, q + q K) shares of the rows of `parts` that responses are made of; states (n, l) may lie off the rim."""
        trusted, n, q = self._trusted(line, clip_states(z)), len(line), len(self.base)
        out = np.zeros((n, q + q * trusted.shape[1]))
        out[np.arange(n), line] = 1
        np.put_along_axis(out, q + line[:, None] * trusted.shape[1] + np.arange(trusted.shape[1]), trusted, axis=1)
        return out

    def parts(self) -> np.ndarray:
        """(q + q K, g) predictions without retrieval, and what each candidate adds."""
        return np.concatenate([self.base, self.relative.reshape(-1, self.base.shape[1])])

    def _trusted(self, line: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, K) how much of each candidate is added."""
        trusted = np.zeros((len(line), self.neighbors.rows.shape[1]))
        for code, gates in self.gates.items():
            at = np.flatnonzero(self.kind[line] == code)
            for gate, _, trust, share in gates:
                if trust and len(at):
                    trusted[at] += share * trust * weigh(self.neighbors, gate, self.query.n_neighbors, line[at], z[at])
        return self.neighbors.explained[line] * _best(trusted, self.query.n_neighbors)


def _gates(parameters: Mapping[str, Any], kind: int) -> list[tuple[Gate, float, float, float]]:
    """Gates of a kind of query, each with its trust in regression, in retrieval, and its share."""
    lines = np.asarray(parameters["gates"], dtype=np.float64).reshape(-1, GATE_FIELDS)
    return [(Gate(*line[1:5].tolist()), *line[5:].tolist()) for line in lines[lines[:, 0] == kind]]


def _best(weights: np.ndarray, k: int) -> np.ndarray:
    """The `k` largest weights of each line, which take over what the others had."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, k:]
    out = weights.copy()
    np.put_along_axis(out, order, 0.0, axis=1)
    total = out.sum(axis=1, keepdims=True)
    return out * np.divide(weights.sum(axis=1, keepdims=True), total, out=np.ones_like(total), where=total > 0)
