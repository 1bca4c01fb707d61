"""How far `rag` trusts what it retrieves: chosen on held-out perturbations, with their own controls for the truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query, Run
from ragst_sd.retrieval.options import count, numbers, positive
from ragst_sd.retrieval.response_baselines import bilinear
from ragst_sd.retrieval.response_phi import fit_space, place_states
from ragst_sd.retrieval.response_rag import (
    GATE_FIELDS,
    Gate,
    find_neighbors,
    prepare_rag,
    relative_responses,
    weigh,
)
from ragst_sd.retrieval.response_shares import ALONE, fit_stack
from ragst_sd.retrieval.response_stack import MEASURED
from ragst_sd.retrieval.responses import ask_rows, closed_rows, familiar, pool_mean, shape_halves

logger = logging.getLogger(__name__)

# Beside none at all.
_LEARNED = (0.5, 1.0)
_REACH = (np.inf, 1.0)
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRUST = tuple((line, retrieval) for line, retrieval in product(_STEPS, repeat=2) if line + retrieval <= 1)
"""Shares of `bilinear` and of retrieval; the mean has the rest. The first one is the mean alone."""
_MAX_QUERIES = 256
_MAX_FOLDS = 64
# With fewer held-out rows of a kind than this, what was chosen on all of them serves.
_MIN_KIND = 6
# Rows that say nothing about accuracy hardly count.
_LEAST_WEIGHT = 0.05
_MAX_GATES, _SOFTNESS, _LEAST_SHARE = 16, 0.02, 0.01
_KINDS = ("without measured relatives", "with measured relatives")


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
    measured in other contexts; `ALONE` more where nothing is added to them), the fields of a `Gate`, trust in
    `bilinear` and in retrieval, share; its `rank` and `alpha`. Of a single perturbation it is the mean.
    """
    options = run.options
    space = fit_space(bank, options.n_components)
    lines: list[tuple[float, ...]] = []
    tried: Any = None
    # The gates follow the state of the cells, and compare embeddings.
    compares, alone = bank.screen.from_cells and bank.key.shape[1], closed_rows(bank).all()
    if compares and alone:
        # Nothing is held out where nothing is left to answer from: no gate has shown that it gains anything.
        logger.warning(
            "rag: the responses are all of one perturbation, so that nothing can be held out to choose on; it is the "
            "mean."
        )
        lines = [(code, *grid(options)[0], *TRUST[0], 1.0) for code in range(len(_KINDS))]
    elif bank.key.shape[1] and not space["projection"].shape[1] and not alone:
        logger.warning(
            "rag: the embeddings of all perturbations point one way, and rag compares directions: they do not tell "
            "which perturbations are alike. Build the reference with an embedding of several columns."
        )
    elif compares:
        tried = held_out_correlations(bank, run, space)
        lines, gains = _chosen(bank, run, *tried)
        for i, name in enumerate(_KINDS):
            trust = np.sum([np.multiply(line[-1], line[5:7]) for line in lines if line[0] == i], axis=0).tolist()
            logger.info(
                "rag, perturbations %s: trust in regression %.2f, in retrieval %.2f; the best gate gains %.3f "
                "(standard error %.3f) over the mean of the others on held-out ones.",
                name,
                *trust,
                *gains[i],
            )
    parameters = {
        **space,
        "rank": options.rank,
        "alpha": options.alpha,
        "n_candidates": run.n_candidates,
        "gates": np.array(lines, dtype=np.float64).reshape(-1, GATE_FIELDS),
    }

    def gated(bank: Bank, query: Query) -> np.ndarray:
        # Chosen anew without those asked about: on what a gate was chosen for, it looks better than it is.
        others = np.array([bank.screen.perturbed[row] not in query.perturbed for row in tried[1]])
        judges = others if others.any() else ~others
        gates = _chosen(bank, run, *(part[..., judges] for part in tried))[0]
        ready = prepare_rag({**parameters, "gates": np.array(gates)}, bank, query)
        _, answer = ready.respond(np.arange(len(query)), place_states(parameters, query.states(bank)))
        return answer.evidence + answer.adjustment - ready.level

    stack = fit_stack(bank, run, gated=gated if lines else None)
    return {**parameters, **stack, "gates": _shared(lines, stack["stack_gated"])}


def _shared(lines: list[tuple[float, ...]], shares: np.ndarray) -> np.ndarray:
    """Lines of `gates` for queries that they answer alone, and with trusts times their share beside other parts."""
    by_gates = np.array([(ALONE + line[0], *line[1:]) for line in lines]).reshape(-1, GATE_FIELDS)
    measured = [(MEASURED, *line[1:]) for line in lines if line[0] == MEASURED - 1]
    out = np.array([*lines, *measured], dtype=np.float64).reshape(-1, GATE_FIELDS)
    for line in out:
        line[5:7] *= shares[int(line[0])]
    return np.concatenate([out, by_gates])


def _chosen(
    bank: Bank, run: Run, correlation: np.ndarray, rows: np.ndarray, kind: np.ndarray
) -> tuple[list[tuple[float, ...]], list[tuple[float, float]]]:
    """Lines of `gates`, and gain and error of either kind, from what :func:`held_out_correlations` says."""
    gates, gains = grid(run.options), []
    lines: list[tuple[float, ...]] = []
    weight = np.clip(bank.screen.reliability[rows], _LEAST_WEIGHT, 1)
    for code in range(len(_KINDS)):
        of_kind = kind == code
        of_kind = of_kind if of_kind.sum() >= _MIN_KIND else np.ones_like(of_kind)
        places, shares, gain, error = choose(correlation[:, :, of_kind], weight[of_kind])
        for (gate, trust), share in zip(places, shares.tolist(), strict=True):
            lines.append((code, *gates[gate], *TRUST[trust], share))
        gains.append((gain, error))
    return lines, gains


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


def grid(options: ResponseRagOptions) -> list[Gate]:
    """Gates to choose from."""
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
    if len(rows) > _MAX_QUERIES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_QUERIES).astype(int)]
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
