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

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Run, Selection
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import count, numbers, positive
from ragst_sd.retrieval.response_baselines import bilinear
from ragst_sd.retrieval.response_gates import GATE_FIELDS, Gate, chosen_gates, held_out_correlations, weigh
from ragst_sd.retrieval.response_phi import (
    Neighbors,
    clip_states,
    explained,
    find_neighbors,
    fit_space,
    place_states,
    relative_responses,
)
from ragst_sd.retrieval.response_shares import ALONE, KINDS, by_gates_alone, fit_stack, stack_of
from ragst_sd.retrieval.response_stack import MEASURED, Stacked
from ragst_sd.retrieval.responses import cite, closed_rows, divided, familiar, pool_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResponseRagOptions:
    """Options of `rag` for responses to perturbations.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    penalties
        Penalties of the regression B to choose from.
    sharpnesses
        Sharpnesses of the gate to choose from.
    rank, alpha
        Of its bilinear part, as for `bilinear`.
    """

    n_components: int = count(64)
    penalties: tuple[float, ...] = numbers((0.1, 1.0, 10.0))
    sharpnesses: tuple[float, ...] = numbers((0.5, 1.0, 2.0, 4.0, 8.0))
    rank: int = count(10)
    alpha: float = positive(0.1)


def fit_rag(bank: Bank, run: Run) -> dict[str, Any]:
    """Choose the gate and how far to trust it.

    Returns
    -------
    Axes of embeddings and states; `gates`, one line each: kind of query (0 without, 1 with measured relatives, 2
    measured in other contexts; `ALONE` more where nothing is added to them) and the fields of a `Gate`; `rank` and
    `alpha` of `bilinear`. Of a single perturbation it is the mean.
    """
    options = run.options
    space = fit_space(bank, options.n_components)
    gates: list[tuple[int, Gate]] = []
    tried: Any = None
    # The gates follow the state of the cells, and compare embeddings.
    compares, only_one = bank.screen.from_cells and bank.key.shape[1], closed_rows(bank).all()
    if compares and only_one:
        # Nothing is held out where nothing is left to answer from: no gate has shown that it gains anything.
        logger.warning(
            "rag: the responses are all of one perturbation, so that nothing can be held out to choose on; it is the "
            "mean."
        )
    elif bank.key.shape[1] and not space["projection"].shape[1] and not only_one:
        logger.warning(
            "rag: the embeddings of all perturbations point one way, and rag compares directions: they do not tell "
            "which perturbations are alike. Build the reference with an embedding of several columns."
        )
    elif compares:
        tried = held_out_correlations(bank, run, space)
        gates, gains = chosen_gates(bank, run, *tried)
        for i, name in enumerate(KINDS[:MEASURED]):
            of_kind = [gate for kind, gate in gates if kind == i]
            logger.info(
                "rag, perturbations %s: trust in regression %.2f, in retrieval %.2f; the best gate gains %.3f "
                "(standard error %.3f) over the mean of the others on held-out ones.",
                name,
                sum(gate.share * gate.line for gate in of_kind),
                sum(gate.share * gate.retrieval for gate in of_kind),
                *gains[i],
            )
    parameters = {
        **space,
        "rank": options.rank,
        "alpha": options.alpha,
        "n_candidates": run.n_candidates,
        "gates": _lines(gates),
    }

    def gated(bank: Bank, query: Query) -> np.ndarray:
        # Chosen anew without those asked about: on what a gate was chosen for, it looks better than it is.
        others = np.array([bank.screen.perturbed[row] not in query.perturbed for row in tried[1]])
        judges = others if others.any() else ~others
        anew = chosen_gates(bank, run, *(part[..., judges] for part in tried))[0]
        ready = prepare_rag({**parameters, "gates": _lines(anew)}, bank, query)
        _, answer = ready.respond(np.arange(len(query)), place_states(parameters, query.states(bank)))
        return answer.evidence + answer.adjustment - ready.level

    stack = fit_stack(bank, run, gated=gated if gates else None)
    return {**parameters, **stack, "gates": _shared(gates, stack["stack_gated"])}


def _shared(gates: list[tuple[int, Gate]], shares: np.ndarray) -> np.ndarray:
    """Lines of gates with trusts times their share beside other parts, and of those that answer queries alone."""
    measured = [(MEASURED, gate) for kind, gate in gates if kind == MEASURED - 1]
    beside = [
        (kind, gate._replace(line=gate.line * shares[kind], retrieval=gate.retrieval * shares[kind]))
        for kind, gate in [*gates, *measured]
    ]
    return _lines([*beside, *((ALONE + kind, gate) for kind, gate in gates)])


def _lines(gates: list[tuple[int, Gate]]) -> np.ndarray:
    """Gates as a fit keeps them, each with its kind of query."""
    return np.array([(kind, *gate) for kind, gate in gates], dtype=np.float64).reshape(-1, GATE_FIELDS)


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
    return divided(bank, selection, response, level)._replace(explained=share if bank.key.shape[1] else None)


def prepare_rag(parameters: Mapping[str, Any], bank: Bank, query: Query) -> ReadyRag:
    """Everything that does not depend on the states of the cells."""
    kind, stacked = familiar(bank, query).astype(int), stack_of(parameters, bank, query)
    if stacked is not None:
        alone = by_gates_alone(parameters, bank, query)
        kind = np.where(alone, ALONE + kind, np.where(stacked.measured, MEASURED, kind))
    gates = {int(code): _gates(parameters, code) for code in np.unique(kind)}
    penalties = tuple(sorted({gate.penalty for of_kind in gates.values() for gate in of_kind if gate.learned > 0}))
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
    gates: dict[int, list[Gate]]
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
            at, trust = np.flatnonzero(self.kind == code), sum(gate.share * gate.line for gate in gates)
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
            for gate in gates:
                if gate.retrieval and len(at):
                    weights = weigh(self.neighbors, gate, self.query.n_neighbors, line[at], z[at])
                    trusted[at] += gate.share * gate.retrieval * weights
        return self.neighbors.explained[line] * _best(trusted, self.query.n_neighbors)


def _gates(parameters: Mapping[str, Any], kind: int) -> list[Gate]:
    """Gates of a kind of query."""
    lines = np.asarray(parameters["gates"], dtype=np.float64).reshape(-1, GATE_FIELDS)
    return [Gate(*line[1:].tolist()) for line in lines[lines[:, 0] == kind]]


def _best(weights: np.ndarray, k: int) -> np.ndarray:
    """The `k` largest weights of each line, which take over what the others had."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, k:]
    out = weights.copy()
    np.put_along_axis(out, order, 0.0, axis=1)
    total = out.sum(axis=1, keepdims=True)
    return out * np.divide(weights.sum(axis=1, keepdims=True), total, out=np.ones_like(total), where=total > 0)


RAG = Method(
    ResponseRagOptions,
    fit_rag,
    select=select_rag,
    answer=answer_rag,
    prepare=prepare_rag,
    once=stack_of,
    n_neighbors=16,
    n_candidates=128,
    learns="settings",
)
