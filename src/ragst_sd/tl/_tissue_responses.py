r"""Responses of sets of spots, how far these lie from a screen's cells, and whether responses vary over the tissue.

A spot and its spatial neighbours are its set of cells; the state is their mean expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from ragst_sd import _keys
from ragst_sd._respond import Task, ask
from ragst_sd.reference.header import ScreenHeader
from ragst_sd.retrieval.bank import Answer, Query, Selection
from ragst_sd.retrieval.evidence import evidence_share
from ragst_sd.retrieval.response_run import at_once, values_of
from ragst_sd.retrieval.responses import respond_to
from ragst_sd.retrieval.training import dense

# A map shows something if fewer than one in twenty shufflings vary as much.
LEVEL = 0.05
_NOTHING = 1e-10
# Responses held at once, in numbers: spots x genes.
_NUMBERS = 4e6


# As in the check of tissue: what no more than two in a hundred sets of the screen's own controls exceed.
FAR_PERCENTILE = 98.0
_DRAWS = 200
_SPARE = 8
_LEAST_SPREAD = 0.1


def niches(xy: np.ndarray, names: np.ndarray, n_around: int) -> sp.csr_matrix:
    """(n, n) matrix that averages over each spot and its `n_around` nearest.

    Of equally distant ones the first by name.
    """
    n = len(xy)
    size = min(n_around, n - 1)
    distance, nearest = cKDTree(xy).query(xy, k=min(n, size + 1 + _SPARE))
    distance, nearest = distance.reshape(n, -1), nearest.reshape(n, -1)
    rank = np.argsort(np.argsort(names.astype(str), kind="stable"), kind="stable")
    # Rounded, so that neighbours on a grid are equally distant; the spot itself goes first.
    rounded = np.round(distance / max(float(np.median(distance)), 1e-12), 6)
    rounded[nearest == np.arange(n)[:, None]] = -1
    order = np.lexsort((rank[nearest], rounded), axis=1)[:, : size + 1]
    members = np.take_along_axis(nearest, order, axis=1)
    weights = np.full(members.size, 1 / (size + 1))
    return sp.csr_matrix((weights, (np.repeat(np.arange(n), size + 1), members.ravel())), shape=(n, n))


def mean_states(sets: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """(n, g) mean expression of each set, over the members that have a value; NaN where none has."""
    known = np.isfinite(values)
    if known.all():
        return sets @ values
    total = sets @ known.astype(np.float64)
    return np.divide(sets @ np.where(known, values, 0.0), total, out=np.full(total.shape, np.nan), where=total > 0)


def main_context(sets: sp.csr_matrix, contexts: np.ndarray) -> np.ndarray:
    """Context of most members of each set.

    Where several are as frequent, that of the spot itself, or the first by name.
    """
    names, codes = np.unique(contexts.astype(str), return_inverse=True)
    member = np.eye(len(names))[codes]
    return names[np.argmax(np.round(sets @ member, 9) + 1e-6 * member, axis=1)].astype(object)


@dataclass(frozen=True)
class SpotStates:
    """Spots, at their own places or at those of others, as states that the methods compare with those of a screen."""

    sets: sp.csr_matrix
    """(n, n) averages over each place and those around it."""
    values: np.ndarray
    """(n, g) expression of the spots."""
    labels: np.ndarray
    """(n,) context of each spot."""
    turned: np.ndarray
    """(n,) spot that stands at each place."""
    at: np.ndarray
    """(g,) places of the tissue's genes among those of the screen."""
    header: ScreenHeader
    """Of the screen, whose contexts have the mean expression of their controls."""
    center: bool
    """Whether the spots of each context are put on the mean of its controls."""

    @cached_property
    def contexts(self) -> np.ndarray:
        """(n,) context of each place."""
        return main_context(self.sets, self.labels[self.turned])

    def whole(self) -> np.ndarray:
        """(n, genes of the screen) states.

        Genes that the tissue lacks are as in the controls, so that they tell nothing.
        """
        base, codes = self._bases()
        values = self.values[self.turned]
        states = mean_states(self.sets, values)
        if self.center:
            for code in range(len(base)):
                with np.errstate(invalid="ignore"):
                    level = np.nan_to_num(np.nanmean(np.where(codes[:, None] == code, values, np.nan), axis=0))
                states[codes == code] += base[code][self.at] - level
        out = base[codes]
        out[:, self.at] = np.where(np.isfinite(states), states, out[:, self.at])
        return out

    def along(self, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """(n, l) states less an origin, along axes (genes of the screen, l).

        They come from spots on these axes, if all values are known.
        """
        if not np.isfinite(self.values).all():
            return np.nan_to_num(self.whole() - origin) @ axes
        base, codes = self._bases()
        along = (self.values @ axes[self.at])[self.turned]
        level: Any = 0
        if self.center:
            level = np.array([along[codes == code].mean(axis=0) for code in range(len(base))])
        else:
            base[:, self.at] = 0
        return self.sets @ along + ((base - origin) @ axes - level)[codes]

    def _bases(self) -> tuple[np.ndarray, np.ndarray]:
        """(contexts, genes of the screen) means of controls, of all for a new context, and (n,) each place's row."""
        names, codes = np.unique(self.contexts.astype(str), return_inverse=True)
        known = dict(zip(self.header.contexts, self.header.states, strict=True))
        everywhere = self.header.states.mean(axis=0)
        return np.array([known.get(str(name), everywhere) for name in names]), codes


def remoteness(spots: SpotStates, rng: np.random.Generator) -> dict[str, np.ndarray]:
    r"""Distance of states from the nearest context of the screen, beside that of sets of as many of its own controls.

    .. math:: d(s) = \min_c \sqrt{\tfrac1G \sum_g (s_g - m_{cg})^2 / \sigma_{cg}^2}

    with the mean and standard deviation of the controls of a context. The threshold is the 98th percentile of the
    distances of random sets of controls from their own context. Given are the fields of a table that say so.
    """
    header, at = spots.header, spots.at
    # As they are: centring would hide how far they lie.
    states, size = mean_states(spots.sets, spots.values), spots.sets[0].nnz
    cells = dense(header.controls["values"])[:, at]
    of_cell = np.asarray(header.controls["context"]).astype(str)
    means = header.states[:, at]
    nearest, percentile, ratio = np.full(len(states), np.inf), np.full(len(states), 100.0), np.full(len(states), np.inf)
    for name, mean in zip(header.contexts, means, strict=True):
        controls = cells[of_cell == name]
        spread = controls.std(axis=0)
        spread = np.maximum(spread, max(_LEAST_SPREAD * float(np.median(spread)), 1e-6))
        drawn = np.array(
            [
                controls[rng.choice(len(controls), min(size, len(controls)), replace=False)].mean(axis=0)
                for _ in range(_DRAWS)
            ]
        )
        usual = np.sort(_distance(drawn, mean, spread))
        from_context = _distance(states, mean, spread)
        closer = from_context < nearest
        nearest[closer] = from_context[closer]
        percentile[closer] = 100 * np.searchsorted(usual, from_context[closer]) / _DRAWS
        ratio[closer] = from_context[closer] / max(float(np.quantile(usual, FAR_PERCENTILE / 100)), 1e-12)
    return {_keys.STATE_DISTANCE: ratio, _keys.STATE_PERCENTILE: percentile, _keys.FAR_FROM_SCREEN: ratio > 1}


def _distance(states: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.nanmean(((states - mean) / spread) ** 2, axis=1))


@dataclass(frozen=True)
class Responder:
    """The fitted method, ready to answer for spots."""

    task: Task
    query: Query
    """One line per context."""
    learned_from: dict[str, Any]
    contexts: list[str]
    at: np.ndarray
    """Places of the genes that are predicted."""
    chunk: int
    """Spots to answer for at once."""
    ready: Any = None
    """The method with all that does not depend on the state done, of methods that can be prepared."""

    def respond(self, contexts: np.ndarray, states: np.ndarray) -> dict[str, np.ndarray]:
        """Fields of spots, of the predicted genes only, with the standard error of the evidence."""
        parts, shares, errors, bank = [], [], [], self.task.bank
        centre, of_rows = bank.values.mean(axis=0), np.asarray(bank.screen.errors)[:, self.at]
        for selection, answer in self._answers(contexts, states):
            cites = selection.rows >= 0
            weights = sp.csr_matrix(
                (selection.weights[cites], (np.nonzero(cites)[0], selection.rows[cites])), (len(cites), len(of_rows))
            )
            # Responses against the same controls share their noise, so that errors may add up and do not cancel.
            error = weights @ of_rows
            error[selection.weights.sum(axis=1) <= 0] = np.nan
            errors.append(error)
            shares.append(evidence_share(answer.evidence, answer.adjustment, centre))
            of_genes = {name: getattr(answer, name)[:, self.at] for name in ("evidence", "adjustment")}
            parts.append((selection, answer._replace(**of_genes)))
        values = values_of(bank, self.query, parts, np.concatenate(shares), self._lines(contexts))
        return values | {_keys.STANDARD_ERROR: np.concatenate(errors)}

    def spread(self, spots: SpotStates) -> float:
        """Variance of the responses alone, averaged over sets of spots."""
        if self.ready is None:
            answers = self._answers(spots.contexts, spots.whole())
            parts = [(answer.evidence + answer.adjustment)[:, self.at] for _, answer in answers]
            return spread_over_spots(spots.sets @ np.concatenate(parts))
        # All responses are mixtures of few parts, so that sums over genes can be done once.
        mixture = spots.sets @ self.ready.mixture(self._lines(spots.contexts), spots.along(*self.ready.axes))
        mixture -= mixture.mean(axis=0)
        return float(((mixture.T @ mixture) * self.products).sum() / (len(mixture) * len(self.at)))

    @cached_property
    def products(self) -> np.ndarray:
        """Inner products over the predicted genes of the parts that responses are mixtures of."""
        parts = self.ready.parts()[:, self.at]
        return parts @ parts.T

    def _lines(self, contexts: np.ndarray) -> np.ndarray:
        return np.array([self.contexts.index(str(name)) for name in contexts])

    def _answers(self, contexts: np.ndarray, states: np.ndarray) -> Iterator[tuple[Selection, Answer]]:
        line = self._lines(contexts)
        for start in range(0, len(line), self.chunk):
            here = slice(start, start + self.chunk)
            if self.ready is None:
                query = replace(self.query.some(line[here]), state=states[here])
                yield respond_to(self.task.method, self.task.bank, query)
            else:
                yield self.ready.respond(line[here], self.ready.place(states[here]))


def make_responder(task: Task, perturbation: str, contexts: list[str], genes: list[str]) -> Responder:
    """Prepare the fitted method for one perturbation in some contexts."""
    query, learned_from = ask(task, [(perturbation, context) for context in contexts])
    bank, prepare = task.bank, task.method.prepare
    ready = None if prepare is None else prepare(bank.fit.parameters, bank, query)
    return Responder(
        task=task,
        query=query,
        learned_from=learned_from,
        contexts=contexts,
        at=bank.genes.get_indexer(genes),
        chunk=at_once(bank) if ready is None else max(1, int(_NUMBERS / len(bank.genes))),
        ready=ready,
    )


def variation(
    responder: Responder,
    response: np.ndarray,
    spots: SpotStates,
    n_permutations: int,
    rng: np.random.Generator,
    advance: Callable[[int], Any],
) -> dict[str, Any]:
    r"""Whether the response varies over the tissue more than by the chance of which spots stand together.

    .. math:: V = \frac{1}{nG} \sum_i \Big\| \frac{1}{|S_i|} \sum_{j \in S_i} \hat\Delta_j - \bar\Delta \Big\|^2, \qquad
              p = \frac{1 + \#\{V_\pi \ge V\}}{1 + P}

    Spots keep their expression and change places, so that a spot and its neighbours :math:`S_i` are a random set. Where
    neighbours are alike, true sets vary more than random ones. Responses are averaged over the sets once more, because
    two kinds of response that are strewn at random vary as much from spot to spot as two that lie apart. Given is what
    the header of a table says of it.
    """
    observed = spread_over_spots(spots.sets @ response)
    if spread_over_spots(response) <= _NOTHING * max(float((response**2).mean()), _NOTHING):
        advance(n_permutations)
        return varying(observed, np.zeros(0), 1.0)
    shuffled = np.empty(n_permutations)
    for i in range(n_permutations):
        shuffled[i] = responder.spread(replace(spots, turned=rng.permutation(len(response))))
        advance(1)
    p_value = (1 + int((shuffled >= observed * (1 - 1e-9)).sum())) / (1 + n_permutations)
    return varying(observed, shuffled, float(p_value))


def varying(variance: float, shuffled: np.ndarray, p_value: float) -> dict[str, Any]:
    """What the header of a table says of the variance of a response over neighbourhoods of spots."""
    return {
        "variance": variance,
        "variance_shuffled": shuffled,
        "variance_p_value": p_value,
        "constant": p_value > LEVEL,
    }


def spread_over_spots(response: np.ndarray) -> float:
    """Variance of the response over spots, averaged over genes."""
    return float(((response - response.mean(axis=0)) ** 2).mean())
