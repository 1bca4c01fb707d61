"""Responses of sets of spots, and whether they vary over the tissue more than those of shuffled spots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ragst_sd import _keys
from ragst_sd.retrieval.responses import take_queries
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._respond import at_once, prepare, stacked
from ragst_sd.tl._tissue_state import StatesOfSpots, main_context, spread_over_spots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ragst_sd.retrieval.responses import Answer
    from ragst_sd.tl._respond import Prepared, Responded, Task
    from ragst_sd.tl._tissue_state import States

# A map shows something if fewer than one in twenty shufflings vary as much.
LEVEL = 0.05
_NOTHING = 1e-10
# Responses held at once, in numbers: spots x genes.
_NUMBERS = 4e6


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

    prepared: Prepared
    """One query per context."""
    contexts: list[str]
    errors: np.ndarray
    """(m, g) standard errors of the bank's rows."""
    at: np.ndarray
    """Places of the genes that are predicted."""
    chunk: int
    """Spots to answer for at once."""
    ready: Any = None
    """The method with all that does not depend on the state done, of methods that can be prepared."""

    def respond(self, contexts: np.ndarray, states: np.ndarray) -> tuple[Responded, np.ndarray]:
        """Answers for spots, of the predicted genes only, and the standard error of the evidence."""
        from ragst_sd.retrieval.evidence import evidence_share

        answers, shares, errors = [], [], []
        centre, of_rows = self.prepared.bank.values.mean(axis=0), self.errors[:, self.at]
        for answer in self._answers(contexts, states):
            cites = answer.rows >= 0
            weights = sp.csr_matrix(
                (answer.weights[cites], (np.nonzero(cites)[0], answer.rows[cites])), (len(cites), len(of_rows))
            )
            # Responses against the same controls share their noise, so that errors may add up and do not cancel.
            error = weights @ of_rows
            error[answer.weights.sum(axis=1) <= 0] = np.nan
            errors.append(error)
            shares.append(evidence_share(answer.evidence, answer.adjustment, centre))
            answers.append(
                answer._replace(evidence=answer.evidence[:, self.at], adjustment=answer.adjustment[:, self.at])
            )
        return self.prepared.responded(stacked(answers), np.concatenate(shares)), np.concatenate(errors)

    def spread(self, sets: sp.csr_matrix, contexts: np.ndarray, states: StatesOfSpots) -> float:
        """Variance of the responses alone, averaged over sets of spots."""
        if self.ready is None:
            parts = [(one.evidence + one.adjustment)[:, self.at] for one in self._answers(contexts, states.whole())]
            return spread_over_spots(sets @ np.concatenate(parts))
        # All responses are mixtures of few parts, so that sums over genes can be done once.
        mixture = sets @ self.ready.mixture(self._lines(contexts), states.along(*self.ready.axes))
        mixture -= mixture.mean(axis=0)
        return float(((mixture.T @ mixture) * self.products).sum() / (len(mixture) * len(self.at)))

    @cached_property
    def products(self) -> np.ndarray:
        """Inner products over the predicted genes of the parts that responses are mixtures of."""
        parts = self.ready.parts()[:, self.at]
        return parts @ parts.T

    def _lines(self, contexts: np.ndarray) -> np.ndarray:
        return np.array([self.contexts.index(str(name)) for name in contexts])

    def _answers(self, contexts: np.ndarray, states: np.ndarray) -> Iterator[Answer]:
        line = self._lines(contexts)
        for start in range(0, len(line), self.chunk):
            here = slice(start, start + self.chunk)
            if self.ready is None:
                yield self.prepared.answer(replace(take_queries(self.prepared.asked, line[here]), state=states[here]))
            else:
                yield self.ready.respond(line[here], self.ready.place(states[here]))


def make_responder(task: Task, perturbation: str, contexts: list[str], genes: list[str]) -> Responder:
    """Prepare the fitted method for one perturbation in some contexts."""
    prepared, reference = prepare(task, [(perturbation, context) for context in contexts]), task.reference
    ready = None
    if prepared.method.prepare is not None:
        ready = prepared.method.prepare(prepared.parameters, prepared.bank, prepared.asked, prepared.n_cited)
    errors = dense(reference.layers[_keys.STANDARD_ERROR]).astype(np.float64)[prepared.order]
    return Responder(
        prepared=prepared,
        contexts=contexts,
        errors=np.nan_to_num(errors),
        at=reference.var_names.get_indexer(genes),
        chunk=at_once(task) if ready is None else max(1, int(_NUMBERS / reference.n_vars)),
        ready=ready,
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
    advance: Callable[[int], Any],
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
        advance(n_permutations)
        return Variation(observed, np.zeros(0), 1.0, constant=True)
    shuffled = np.empty(n_permutations)
    for i in range(n_permutations):
        turned = rng.permutation(len(values))
        own = main_context(sets, contexts[turned])
        shuffled[i] = responder.spread(sets, own, StatesOfSpots(states, sets, values, turned, own))
        advance(1)
    p_value = (1 + int((shuffled >= observed * (1 - 1e-9)).sum())) / (1 + n_permutations)
    return Variation(observed, shuffled, float(p_value), constant=p_value > LEVEL)
