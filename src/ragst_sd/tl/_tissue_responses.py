"""Responses of sets of spots, and whether they vary over the tissue more than those of shuffled spots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd import _keys
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._gene_embedding import embed, lookup
from ragst_sd.tl._perturbed_table import Responded
from ragst_sd.tl._respond import learned_from, require_rows
from ragst_sd.tl._tissue_state import main_context, spread_over_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from anndata import AnnData

    from ragst_sd.retrieval.responses import Asked, Bank
    from ragst_sd.tl._tissue_state import States

# A map shows something if fewer than one in twenty shufflings vary as much.
LEVEL = 0.05
_NOTHING = 1e-10
# Numbers held at once: spots x candidates x genes.
_AT_ONCE = 3e7


class Variation(NamedTuple):
    """Variance of the response over neighbourhoods of spots, beside that of spots shuffled over their positions."""

    variance: float
    shuffled: np.ndarray
    p_value: float
    constant: bool
    """Whether there is no more of it than with shuffled spots."""


@dataclass(frozen=True)
class Responder:
    """The fitted method, ready to answer for spots."""

    method: Any
    parameters: dict[str, Any]
    bank: Bank
    asked: Asked
    """One query per context."""
    contexts: list[str]
    cited: int
    order: np.ndarray
    """Rows of the bank in the reference."""
    errors: np.ndarray
    """(m, g) standard errors of the bank's rows."""
    at: np.ndarray
    """Places of the genes that are predicted."""
    chunk: int
    """Spots to answer for at once."""
    learned_from: dict[str, Any]
    """As in the header of the table."""

    def respond(self, contexts: np.ndarray, states: np.ndarray) -> tuple[Responded, np.ndarray]:
        """Answers for spots, of the predicted genes only, and the standard error of the evidence."""
        from ragst_sd.retrieval.evidence import effective_n, evidence_share

        line = np.array([self.contexts.index(str(name)) for name in contexts])
        centre = self.bank.values.mean(axis=0)
        parts = []
        for start in range(0, len(line), self.chunk):
            here = slice(start, start + self.chunk)
            answer = self.method.respond(self.parameters, self.bank, self._asked(line[here], states[here]), self.cited)
            # Responses against the same controls share their noise, so that errors may add up and do not cancel.
            error = np.einsum("qk,qkg->qg", answer.weights, self.errors[np.maximum(answer.rows, 0)][..., self.at])
            error[answer.weights.sum(axis=1) <= 0] = np.nan
            parts.append(
                (
                    np.where(answer.rows >= 0, self.order[np.maximum(answer.rows, 0)], -1),
                    answer.weights,
                    answer.distances,
                    answer.evidence[:, self.at],
                    (answer.evidence + answer.adjustment)[:, self.at],
                    effective_n(answer.weights),
                    evidence_share(answer.evidence, answer.adjustment, centre),
                    error,
                )
            )
        rows, weights, distances, *columns, error = zip(*parts, strict=True)
        # A method may cite as many rows as the query with most of them has, so that chunks differ in width.
        padded = ((rows, -1), (weights, 0.0), (distances, np.nan))
        cited: list[Any] = [_stacked(part, missing) for part, missing in padded]
        others: list[Any] = [np.concatenate(part) for part in columns]
        return Responded(*cited, *others), np.concatenate(error)

    def response(self, contexts: np.ndarray, states: np.ndarray) -> np.ndarray:
        """(n, g) responses alone."""
        line = np.array([self.contexts.index(str(name)) for name in contexts])
        out = np.empty((len(line), len(self.at)))
        for start in range(0, len(line), self.chunk):
            here = slice(start, start + self.chunk)
            answer = self.method.respond(self.parameters, self.bank, self._asked(line[here], states[here]), self.cited)
            out[here] = (answer.evidence + answer.adjustment)[:, self.at]
        return out

    def _asked(self, line: np.ndarray, states: np.ndarray) -> Asked:
        one = self.asked
        return replace(
            one,
            key=one.key[line],
            genes=tuple(one.genes[i] for i in line),
            contexts=one.contexts[line],
            eligible=one.eligible[line],
            state=states,
        )


def _stacked(parts: Sequence[np.ndarray], missing: float) -> np.ndarray:
    """(n, k) parts one after another, filled up to the widest one."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=missing) for part in parts]
    )


def make_responder(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    perturbation: str,
    contexts: list[str],
    genes: list[str],
    *,
    n_neighbors: int | None,
    exclude: list[str],
    allowed: np.ndarray,
) -> Responder:
    """Prepare the fitted method for one perturbation in some contexts."""
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
    from ragst_sd.tl._response_bank import asked_of, response_bank

    # Rows in the order of their names, so that sums do not depend on the order in the reference.
    order = np.argsort(np.asarray(reference.obs_names, dtype=str))
    ordered, method = reference[order], RESPONSE_METHODS[str(fit["method"])]
    bank = response_bank(ordered, header, metric=str(fit["metric"]), cells=method.needs_cells)
    pairs = [(perturbation, context) for context in contexts]
    key = embed([perturbation] * len(contexts), str(header["control"]), lookup(header["embedding"]))
    asked = asked_of(
        ordered, header, [perturbation] * len(contexts), contexts, key, allowed=allowed[order], exclude=exclude
    )
    require_rows(bank, asked, pairs, method, str(fit["method"]), n_neighbors)
    cited = int(fit["n_candidates"] if method.cites_candidates else fit["n_neighbors"])
    return Responder(
        method=method,
        parameters=fit["parameters"],
        bank=bank,
        asked=asked,
        contexts=contexts,
        cited=cited if n_neighbors is None else int(n_neighbors),
        order=order,
        errors=np.nan_to_num(dense(ordered.layers[_keys.STANDARD_ERROR]).astype(np.float64)),
        at=reference.var_names.get_indexer(genes),
        chunk=max(1, int(_AT_ONCE / (min(int(fit["n_candidates"]), reference.n_obs) * reference.n_vars))),
        learned_from=learned_from(bank, asked, pairs, method, str(fit["method"])),
    )


def variation(
    responder: Responder,
    response: np.ndarray,
    sets: sp.csr_matrix,
    values: np.ndarray,
    contexts: np.ndarray,
    states: States,
    n_permutations: int,
    rng: np.random.Generator,
) -> Variation:
    r"""Whether the response varies over the tissue more than by the chance of which spots stand together.

    .. math:: V = \frac{1}{nG} \sum_i \Big\| \frac{1}{|S_i|} \sum_{j \in S_i} \hat\Delta_j - \bar\Delta \Big\|^2, \qquad
              p = \frac{1 + \#\{V_\pi \ge V\}}{1 + P}

    Spots keep their expression and change places, so that a spot and its neighbours :math:`S_i` are a random set. Where
    neighbours are alike, true sets vary more than random ones. Responses are averaged over the sets once more, because two
    kinds of response that are strewn at random vary as much from spot to spot as two that lie apart.
    """
    observed = spread_over_spots(sets @ response)
    if spread_over_spots(response) <= _NOTHING * max(float((response**2).mean()), _NOTHING):
        return Variation(observed, np.zeros(0), 1.0, constant=True)
    shuffled = np.empty(n_permutations)
    for i in range(n_permutations):
        turned = rng.permutation(len(values))
        own = main_context(sets, contexts[turned])
        shuffled[i] = spread_over_spots(sets @ responder.response(own, states.of(sets, values[turned], own)))
    p_value = (1 + int((shuffled >= observed * (1 - 1e-9)).sum())) / (1 + n_permutations)
    return Variation(observed, shuffled, float(p_value), constant=p_value > LEVEL)
