"""The gates of `rag`: how candidates are weighed, and how far a gate is trusted, as held-out perturbations allow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.gate import entmax
from ragst_sd.retrieval.response_baselines import bilinear
from ragst_sd.retrieval.response_phi import Neighbors, find_neighbors, place_states, relative_responses
from ragst_sd.retrieval.response_stack import MEASURED, MIN_KIND
from ragst_sd.retrieval.responses import MAX_QUERIES, ask_rows, closed_rows, familiar, pool_mean, reliance, shape_halves

_NOBODY = -1e9
# How much the learned space counts, tried beside 0.
_LEARNED = (0.5, 1.0)
_REACH = (np.inf, 1.0)
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRUST = tuple((line, retrieval) for line, retrieval in product(_STEPS, repeat=2) if line + retrieval <= 1)
"""Shares of `bilinear` and of retrieval; the mean has the rest. The first one is the mean alone."""
_MAX_FOLDS = 64
_MAX_GATES, _SOFTNESS, _LEAST_SHARE = 16, 0.02, 0.01


class Gate(NamedTuple):
    """How candidates are weighed."""

    penalty: float
    """Of the regression B in phi."""
    learned: float
    """Share rho of B in phi."""
    sharpness: float
    reach: float
    """Squared distance at which the null slot stands; infinite for none."""
    line: float = 0.0
    """Trust in `bilinear`."""
    retrieval: float = 0.0
    """Trust in the weighed candidates."""
    share: float = 1.0
    """Among the gates of a kind of query."""


GATE_FIELDS = 1 + len(Gate._fields)
"""Of a line of a fit: the kind of query, and those of its gate."""


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


def grid(options: Any) -> list[Gate]:
    """Gates to choose from, by the options of `rag`."""
    spaces = [(1.0, 0.0), *product(options.penalties, _LEARNED)]
    return [
        Gate(float(penalty), float(learned), float(sharpness), float(reach))
        for (penalty, learned), sharpness, reach in product(spaces, options.sharpnesses, _REACH)
    ]


def held_out_correlations(bank: Bank, run: Run, space: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlation over genes of held-out responses with their truth, for every gate and every trust.

    Returns
    -------
    (gates, trusts, q) correlations, averaged over the two ways in which one half of the controls teaches and the other
    one is the truth; the (q,) rows; and whether each of them has measured relatives.
    """
    options, closed = run.options, closed_rows(bank)
    rows = np.flatnonzero((~closed).any(axis=1))
    if len(rows) > MAX_QUERIES:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_QUERIES).astype(int)]
    asked = ask_rows(bank, rows, closed)
    groups, fold = np.unique(bank.folds[rows], return_inverse=True)
    fold = fold % min(_MAX_FOLDS, len(groups))
    teach = ~np.array([closed[rows[fold == code]].any(axis=0) for code in fold])
    teach[~teach.any(axis=1)] = asked.eligible[~teach.any(axis=1)]
    gates, every = grid(options), np.arange(len(rows))
    total = np.zeros((len(gates), len(TRUST), len(rows)))
    shaped = shape_halves(bank)
    mix = np.array([(1.0, *trust) for trust in TRUST])
    for taught, measured in (shaped, shaped[::-1]):
        truth = measured.values[rows]
        neighbors = find_neighbors(space, taught, asked, run.n_candidates, tuple(options.penalties), teach)
        z = place_states(space, asked.states(taught))
        line = bilinear({"rank": options.rank, "alpha": options.alpha}, taught, asked)
        level = pool_mean(taught, asked)
        relative = relative_responses(taught, asked, neighbors.rows)
        slope = neighbors.explained * (line.evidence + line.adjustment - level)
        for i, gate in enumerate(gates):
            weights = neighbors.explained * weigh(neighbors, gate, run.n_neighbors, every, z)
            parts = np.stack([level, slope, (weights[:, None, :] @ relative)[:, 0]], axis=1)
            total[i] += _correlations(parts, truth, mix)
    return total / 2, rows, familiar(bank, asked)


def _correlations(parts: np.ndarray, truth: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """(t, q) cosines of the mixtures (t, 3) of parts (q, 3, p) with the truth (q, p); zero where there is nothing."""
    products = parts @ parts.transpose(0, 2, 1)
    size = np.sqrt(np.maximum(np.einsum("ta,qab,tb->tq", mix, products, mix), 0)) * np.linalg.norm(truth, axis=1)
    along = np.einsum("ta,qap,qp->tq", mix, parts, truth, optimize=True)
    return np.divide(along, size, out=np.zeros_like(size), where=size > 1e-12)


def chosen_gates(
    bank: Bank, run: Run, correlation: np.ndarray, rows: np.ndarray, kind: np.ndarray
) -> tuple[list[tuple[int, Gate]], list[tuple[float, float]]]:
    """Gates, each for a kind of query, and gain and error of either kind.

    They are chosen by what :func:`held_out_correlations` says.
    """
    gates, gains = grid(run.options), []
    chosen: list[tuple[int, Gate]] = []
    weight = reliance(bank, rows)
    for code in range(MEASURED):
        of_kind = kind == code
        of_kind = of_kind if of_kind.sum() >= MIN_KIND else np.ones_like(of_kind)
        places, shares, gain, error = choose(correlation[:, :, of_kind], weight[of_kind])
        for (gate, trust), share in zip(places, shares.tolist(), strict=True):
            line, retrieval = TRUST[trust]
            chosen.append((code, gates[gate]._replace(line=line, retrieval=retrieval, share=share)))
        gains.append((gain, error))
    return chosen, gains


def choose(correlation: np.ndarray, weight: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray, float, float]:
    r"""Gates and trusts by their gain over the mean of the others, less one standard error, and their shares.

    The mean itself gains nothing and has no error: where nothing is above its own error, it has the largest share.
    Shares are
    :math:`\pi \propto \exp(l / 0.02)` with l the gain less its error; the 16 largest count.

    Parameters
    ----------
    correlation
        (gates, trusts, q).
    weight
        (q,) how much a held-out row counts.

    Returns
    -------
    Places (gate, trust), their shares, and gain and standard error of the first.
    """
    gain = (correlation - correlation[:1, :1]) * (weight / weight.mean())
    mean, error = gain.mean(axis=2), gain.std(axis=2) / np.sqrt(gain.shape[2])
    # All gates are the same where nothing is retrieved, and count once.
    bound = (mean - error).copy()
    bound[1:, [i for i, (_, trust) in enumerate(TRUST) if trust == 0]] = -np.inf
    best = np.argsort(-bound, axis=None, kind="stable")[:_MAX_GATES]
    share = np.exp((bound.ravel()[best] - bound.max()) / _SOFTNESS)
    best, share = best[share > _LEAST_SHARE], share[share > _LEAST_SHARE]
    gates, trusts = np.unravel_index(best, bound.shape)
    places = list(zip(gates.tolist(), trusts.tolist(), strict=True))
    return places, share / share.sum(), float(mean[places[0]]), float(error[places[0]])
