r"""Learned retrieval of responses, trusted as far as held-out perturbations allow.

.. math:: \Delta(p, c) = f + \sum_j u_j (\kappa_j \Delta_j - \bar\Delta_{c(j)}), \qquad u_j = r_p \sum_g \pi_g t_g w_{gj}, \qquad
          f = \bar\Delta_c + r_p b\,(\text{bilinear}(p, c) - \bar\Delta_c)

with weights w of the 1.5-entmax of :math:`-s_g \|\phi_g(p) - \phi_g(j)\|^2` over the candidates and a null slot, of several gates g with
shares pi and trust t, :math:`r_p` the share of the embedding of p that the rows it may use span
(:func:`ragst_sd.retrieval.response_phi.explained`), :math:`\kappa_j` the number of genes perturbed in p over that in j, and :math:`\bar\Delta` the mean of a context. f is the
prediction without retrieval; cited are the rows with u above zero, with the weights u over their sum. Where none is, evidence is
:math:`\bar\Delta_c`, and the rest of f the adjustment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

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
from ragst_sd.retrieval.responses import (
    Answer,
    candidates,
    distances_to,
    familiar,
    patterns,
    pool_mean,
    shortened,
    take_queries,
)

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
    """Candidates of each query, and what the weights are made from and applied to, for any state of its cells."""

    rows: np.ndarray
    """(q, K), -1 for none."""
    distance: np.ndarray
    """(q, K) squared distances of embeddings."""
    learned: dict[float, Bend]
    """Squared distances of what B makes of them, by penalty."""
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
    x, query = place(parameters, bank.key), place(parameters, asked.key)
    z = place_states(parameters, bank.state[bank.contexts])
    found = candidates(bank, asked, asked.pool(bank), min(n_candidates, len(bank.key)))
    rows = np.maximum(found.rows, 0)
    learned = {penalty: no_bend(rows.shape[0], rows.shape[1], z.shape[1]) for penalty in penalties}
    for queries, taught in patterns(asked.eligible if teach is None else teach):
        places = learned_places(bank, x, z, query[queries], taught, penalties) if penalties else []
        for penalty, (mine, theirs) in zip(penalties, places, strict=True):
            for whole, part in zip(learned[penalty], bend(mine, theirs[rows[queries]]), strict=True):
                whole[queries] = part
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


def weigh(hood: Hood, gate: Gate, n_neighbors: int, line: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(n, K) weights of the candidates of queries `line` in states (n, l); what they lack to one is what the null slot took."""
    squared = (1 - gate.learned) ** 2 * hood.distance[line]
    if gate.learned > 0:
        squared = squared + gate.learned**2 * hood.learned[gate.penalty].at(line, z)
    logits = np.where(hood.rows[line] >= 0, -gate.sharpness * squared, -np.inf)
    # Of equally good ones the first are taken: the rows nearer in the embedding.
    taken = np.argsort(-logits, axis=1, kind="stable")[:, :n_neighbors]
    null = -gate.sharpness * gate.reach if np.isfinite(gate.reach) else _NOBODY
    with_null = np.concatenate([np.take_along_axis(logits, taken, axis=1), np.full((len(logits), 1), null)], axis=1)
    weights = np.zeros_like(logits)
    np.put_along_axis(weights, taken, entmax(torch.as_tensor(with_null))[:, :-1].numpy(), axis=1)
    return weights


def respond_rag(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> Answer:
    """Answer with the gates chosen for perturbations with and without measured relatives."""
    z = place_states(parameters, asked.states(bank))
    return prepare_rag(parameters, bank, asked, k).respond(np.arange(len(asked.key)), z)


def prepare_rag(parameters: Mapping[str, Any], bank: Bank, asked: Asked, k: int) -> ReadyRag:
    """Everything that does not depend on the states of the cells."""
    kind = familiar(bank, asked).astype(int)
    gates = {int(code): _gates(parameters, code) for code in np.unique(kind)}
    penalties = tuple(sorted({gate.penalty for own in gates.values() for gate, *_ in own if gate.learned > 0}))
    hood = find_hood(parameters, bank, asked, min(int(parameters["n_candidates"]), len(bank.key)), penalties)
    base = hood.level.copy()
    for code, own in gates.items():
        trust_line, at = sum(share * line_share for _, line_share, _, share in own), np.flatnonzero(kind == code)
        if trust_line:
            line = bilinear(parameters, bank, take_queries(asked, at), k)
            base[at] += trust_line * hood.explained[at] * (line.evidence + line.adjustment - base[at])
    return ReadyRag(parameters, hood, kind, gates, base, bank.values, distances_to(bank, asked, hood.rows), k)


@dataclass(frozen=True)
class ReadyRag:
    """`rag` for some queries, each of which may be asked in many states."""

    parameters: Mapping[str, Any]
    hood: Hood
    kind: np.ndarray
    """(q,) 1 for queries with measured relatives."""
    gates: dict[int, list[tuple[Gate, float, float, float]]]
    base: np.ndarray
    """(q, g) prediction without retrieval."""
    values: np.ndarray
    """(m, g) measured responses."""
    distances: np.ndarray
    """(q, K) distances of embeddings."""
    k: int

    def place(self, states: np.ndarray) -> np.ndarray:
        """(n, l) what is read of states (n, g)."""
        return place_states(self.parameters, states)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """(g,) origin and (g, l) axes along which states are read."""
        return self.parameters["state_mean"], self.parameters["state_axes"]

    def respond(self, line: np.ndarray, z: np.ndarray) -> Answer:
        """Answer to queries `line` in states (n, l)."""
        hood, trusted = self.hood, self._trusted(line, z)
        total = trusted.sum(axis=1, keepdims=True)
        cited = np.divide(trusted, total, out=np.zeros_like(trusted), where=total > 0)
        response, evidence = self.base[line], hood.level[line]
        for one in np.unique(line):
            own = np.flatnonzero(line == one)
            response[own] += trusted[own] @ hood.relative[one]
            own = own[total[own, 0] > 0]
            evidence[own] = cited[own] @ self.values[np.maximum(hood.rows[one], 0)]
        rows = np.where(cited > 0, hood.rows[line], -1)
        distances = np.where(rows >= 0, self.distances[line], np.nan)
        answer = Answer(rows, cited, distances, evidence, response - evidence, hood.explained[line, 0])
        return shortened(answer, self.k)

    def mixture(self, line: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, q + q K) shares of the rows of `parts` that responses are made of; states (n, l) may lie off the rim."""
        trusted, n, q = self._trusted(line, clip_states(z)), len(line), len(self.base)
        out = np.zeros((n, q + q * trusted.shape[1]))
        out[np.arange(n), line] = 1
        np.put_along_axis(out, q + line[:, None] * trusted.shape[1] + np.arange(trusted.shape[1]), trusted, axis=1)
        return out

    def parts(self) -> np.ndarray:
        """(q + q K, g) predictions without retrieval, and what each candidate adds."""
        return np.concatenate([self.base, self.hood.relative.reshape(-1, self.base.shape[1])])

    def _trusted(self, line: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, K) how much of each candidate is added."""
        trusted = np.zeros((len(line), self.hood.rows.shape[1]))
        for code, gates in self.gates.items():
            at = np.flatnonzero(self.kind[line] == code)
            for gate, _, trust, share in gates:
                if trust and len(at):
                    trusted[at] += share * trust * weigh(self.hood, gate, self.k, line[at], z[at])
        return self.hood.explained[line] * _best(trusted, self.k)


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
