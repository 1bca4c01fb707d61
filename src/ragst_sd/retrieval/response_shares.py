"""Settings and shares of the stack of responses, chosen on held-out perturbations."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Answer
from ragst_sd.retrieval.response_phi import doses
from ragst_sd.retrieval.response_stack import MEASURED, MIN_KIND, PARTS, Lesson, Settings, Stacked, lessons, part, stack
from ragst_sd.retrieval.responses import (
    MAX_QUERIES,
    ask_rows,
    closed_rows,
    cosines,
    familiar,
    pool_mean,
    relative,
    reliance,
    same_perturbation,
    shape_halves,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragst_sd.retrieval.bank import Bank, Query, Run, Selection

    Gated = Callable[[Bank, Query], np.ndarray]

logger = logging.getLogger(__name__)

ALONE = 3
"""Added to the kind of a query, for the gates of those that have nothing beside them."""
KINDS = ("without measured relatives", "with measured relatives", "measured in other contexts")
# Of few rows each perturbation is left out by itself, so that the others are as many as when it matters.
_MIN_FOLDS, _FOLDS_TIMES_ROWS = 5, 1280
_BETAS = (0.0, 0.25, 1.0)
_ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0)
_POWERS = (1.0, 3.0, 6.0)
# Perturbations that equal shares count as.
_PRIOR = 5
_TINY = 1e-12


class Held(NamedTuple):
    """Perturbations of one context that are held out, of a bank in which one half of the controls teaches."""

    bank: Bank
    query: Query
    lesson: Lesson
    relative: np.ndarray
    """(a, g) responses of the rows that may be used, per dose, relative to the means of their contexts."""
    dose: np.ndarray
    """(q, 1)."""
    level: np.ndarray
    """(q, g) mean of the pool."""
    truth: np.ndarray
    """(q, g) against the other half of the controls, relative to the mean of the pool."""
    weight: np.ndarray
    """(q,)."""

    def predict(self, name: str, kind: int, settings: Settings, n_neighbors: int) -> np.ndarray:
        """(q, g) what one part adds to the mean."""
        coefficients, _ = part(self.lesson, name, kind, settings, n_neighbors)
        return self.dose * self.lesson.reach * (coefficients @ self.relative)

    def beyond(self, values: np.ndarray) -> np.ndarray:
        """(q, g) what does not lie along the mean of the pool."""
        size = np.maximum((self.level**2).sum(axis=1, keepdims=True), _TINY)
        return values - self.level * (values * self.level).sum(axis=1, keepdims=True) / size


class Chosen(NamedTuple):
    """What was chosen for one kind of query."""

    settings: Settings
    shares: np.ndarray
    """(parts,) of `PARTS`."""
    gated: float
    """Share of what is given beside them."""
    gain: float
    """Cosine with held-out responses, both relative to the mean."""
    error: float


def fit_stack(bank: Bank, run: Run, *, parts: tuple[str, ...] = PARTS, gated: Gated | None = None) -> dict[str, Any]:
    """Choose the stack of each of `KINDS`; relatives share a gene, as a combination and its parts do.

    Parameters
    ----------
    gated
        (bank, query) -> (q, g) another prediction, relative to the mean of the pool, to be weighed with the parts.

    Returns
    -------
    `stack_settings` (3, settings), `stack_shares` (3, parts), `stack_gated` (3,), `stack_gain` and `stack_error` (3,).
    """
    chosen: list[Chosen] = []
    shaped = shape_halves(bank, None)
    for kind in range(len(KINDS)):
        held = held_out(bank, kind, shaped) if kind == MEASURED or bank.key.shape[1] else []
        chosen_here = choose_stack(bank, run, kind, held, parts, gated) if held else None
        chosen.append(
            chosen_here or (chosen[0] if kind else Chosen(Settings(), np.zeros(len(PARTS)), 0.0, 0.0, np.nan))
        )
    of_kinds = dict(zip(Chosen._fields, map(np.array, zip(*chosen, strict=True)), strict=True))
    return {"n_cited": run.n_neighbors, **{f"stack_{name}": values for name, values in of_kinds.items()}}


def stack_of(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Stacked | None:
    """The stack that was chosen, for some queries; `None` for fits of earlier releases."""
    if query.worked is not None or "stack_shares" not in parameters:
        return query.worked
    settings = tuple(Settings(*line) for line in np.asarray(parameters["stack_settings"]).tolist())
    answer = stack(bank, query, settings, np.asarray(parameters["stack_shares"]), int(parameters["n_cited"]))
    by_gates = by_gates_alone(parameters, bank, query)
    answer.coefficients[by_gates], answer.cited[by_gates] = 0.0, 0.0
    return answer


def by_gates_alone(parameters: Mapping[str, Any], bank: Bank, query: Query) -> np.ndarray:
    """(q,) whether the gates answer a query alone, if the fit has such gates.

    They alone follow the state of cells of no context of the bank, and shares chosen on held-out perturbations say
    nothing of one whose own response in the context may be used.
    """
    gates = np.asarray(parameters.get("gates", np.zeros((0, 1))))
    if not (gates[:, 0] >= ALONE).any():
        return np.zeros(len(query), dtype=bool)
    measured_here = same_perturbation(bank, query) & query.eligible & (query.contexts[:, None] == bank.sections)
    return np.asarray(measured_here.any(axis=1) | (query.contexts < 0))


def kernel_ridge(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """Kernel ridge regression on the embedding, and on the responses in other contexts where there are any."""
    stacked = stack_of(parameters, bank, selection.query)
    added = stacked.coefficients @ bank.values if stacked is not None else 0.0
    level = pool_mean(bank, selection.query)
    return Answer(level, np.zeros_like(level) + added)


def held_out(bank: Bank, kind: int, shaped: tuple[Bank, Bank]) -> list[Held]:
    """Held-out perturbations of one of `KINDS`: new to all rows, or to those of their context alone."""
    closed = closed_rows(bank)
    groups = np.unique(bank.folds, return_inverse=True)[1]
    n_folds = min(groups.max() + 1, max(_MIN_FOLDS, _FOLDS_TIMES_ROWS // len(bank)))
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % n_folds
    contexts, parts, n_asked = np.unique(bank.sections), [], 0
    # Another fold of each context in turn, until they are enough.
    for turn, (i, context) in product(range(n_folds), enumerate(contexts)):
        rows = np.flatnonzero((fold == (turn + i) % n_folds) & (bank.sections == context))
        if not len(rows) or n_asked >= MAX_QUERIES:
            continue
        shut = closed[rows].any(axis=0)
        if kind == MEASURED:
            # Combinations that hold it are shut in all contexts, itself in its own.
            itself = np.isin(bank.folds, bank.folds[rows])
            shut &= ~itself | (bank.sections == context)
        if not shut.all():
            n_asked += len(rows)
            parts.append((rows, replace(ask_rows(bank, rows, closed), eligible=np.tile(~shut, (len(rows), 1)))))
    of_kind = []
    for rows, query in parts:
        if kind == MEASURED:
            known = np.concatenate([lesson.measured for lesson in lessons(shaped[0], query)])
        else:
            known = familiar(bank, query) == bool(kind)
        at = np.flatnonzero(known)
        of_kind.append((rows[at], query.some(at)))
    if kind != MEASURED and sum(len(rows) for rows, _ in of_kind) < MIN_KIND:
        of_kind = [] if kind else parts
    same = np.array_equal(shaped[0].values, shaped[1].values)
    return [
        _held(shaped_by, other, rows[lesson.queries], query.some(lesson.queries), lesson)
        for rows, query in of_kind
        for shaped_by, other in ((shaped,) if same else (shaped, shaped[::-1]))
        for lesson in lessons(shaped_by, query)
    ]


def _held(bank: Bank, other: Bank, rows: np.ndarray, query: Query, lesson: Lesson) -> Held:
    dose_of_rows = doses(bank.screen.perturbed)[lesson.allowed, None]
    gaps = relative(bank.values[lesson.allowed], bank.sections[lesson.allowed]) / dose_of_rows
    level, dose = pool_mean(bank, query), doses(query.perturbed)[:, None]
    return Held(bank, query, lesson, gaps, dose, level, other.values[rows] - level, reliance(bank, rows))


def choose_stack(
    bank: Bank, run: Run, kind: int, held: list[Held], parts: tuple[str, ...] = PARTS, gated: Gated | None = None
) -> Chosen:
    """Settings of the parts, each by its own cosine with held-out responses, and shares by :func:`choose_shares`.

    Shares for perturbations that nobody measured are chosen on what does not lie along the mean: that a response is
    shorter, as of one gene among combinations, speaks for no part.
    """
    known = int(kind == MEASURED)
    betas = _BETAS if known and bank.key.shape[1] else (1.0,) if not known else (0.0,)
    k, best = run.n_neighbors, Settings()

    def pick(name: str, options: list[Settings]) -> Settings:
        if name not in parts or len(options) == 1:
            return options[0]
        scores = [_cosine(held, [each.predict(name, known, settings, k) for each in held])[0] for settings in options]
        return options[int(np.argmax(scores))]

    best = pick("kernel_ridge", [best._replace(beta=b, alpha=a) for b, a in product(betas, _ALPHAS)])
    best = pick("learned", [best._replace(again=a) for a in _ALPHAS])
    best = pick("knn", [best._replace(power=s) for s in _POWERS])
    best = pick("moved" if known else "ridge", [best._replace(linear=a) for a in _ALPHAS])
    usable = [name for name in parts if name not in (("ridge",) if known else ("moved", "copy"))]
    predicted = [[each.predict(name, known, best, k) for each in held] for name in usable]
    if gated is not None:
        predicted.append([gated(each.bank, each.query) for each in held])
    by_itself = parts == ("kernel_ridge",)
    if not (known or by_itself):
        predicted = [[each.beyond(f) for each, f in zip(held, of_part, strict=True)] for of_part in predicted]
        held = [each._replace(truth=each.beyond(each.truth)) for each in held]
    # Ridge divides by one plus its penalty, on average.
    penalty = {"learned": best.again, "kernel_ridge": best.alpha, "ridge": best.linear, "moved": best.linear}
    most = np.array([1 + penalty.get(name, 0.0) for name in usable] + [1.0] * (gated is not None))
    shares = np.ones(1) if by_itself else choose_shares(held, predicted, most)
    total = [sum(s * f[i] for s, f in zip(shares, predicted, strict=True)) for i in range(len(held))]
    gain, error = _cosine(held, total)
    if not gain > error:
        shares = np.zeros_like(shares)
    named = dict(zip(usable, shares, strict=False))
    logger.info(
        "Perturbations %s: %s; cosine with held-out responses %.3f (standard error %.3f).",
        KINDS[kind],
        ", ".join(f"{name} {share:.2f}" for name, share in named.items() if share) or "the mean",
        gain,
        error,
    )
    return Chosen(
        best, np.array([named.get(name, 0.0) for name in PARTS]), float(shares[-1]) if gated else 0.0, gain, error
    )


def _cosine(held: list[Held], predicted: list[np.ndarray]) -> tuple[float, float]:
    """Weighted mean of the cosines of rows with their truth, and its standard error."""
    truth, weight = (np.concatenate([getattr(each, name) for each in held]) for name in ("truth", "weight"))
    scaled = cosines(np.concatenate(predicted), truth) * weight / weight.mean()
    return float(scaled.mean()), float(scaled.std() / np.sqrt(len(scaled)))


def choose_shares(held: list[Held], predicted: list[list[np.ndarray]], most: np.ndarray) -> np.ndarray:
    r"""Least squares of held-out responses on the parts, drawn towards equal shares, and all of them towards zero.

    .. math:: \min_{0 \le v_i \le b_i / c_i} \sum_q \frac{w_q}{\|y_q\|} \Big\|y_q - \sum_i v_i c_i f_i\Big\|^2
              + \lambda \sum_i (v_i - 1/m)^2, \qquad
              \pi_i = \frac{v_i c_i / \max(1, \sum_k v_k c_k / b_k)}{1 + (\sigma / s)^2}

    with y relative to the mean, and :math:`c_i` the coefficient of part i by itself, at most :math:`b_i`, of which m
    are above zero. Lambda weighs as much as 5 perturbations. b, called `most`, undoes what a penalty has shrunk, so
    that the sum is at most an average of measured responses: parts that are short on held-out perturbations, which
    may be unlike all others, need not be short on those asked for. s is the coefficient of the sum, and
    :math:`\sigma` its standard error over perturbations, infinite if the parts say something of a single one. Rows
    count by their size, between squared errors, which a few large responses lead, and correlations, which count noise
    like signal.
    """
    from scipy.optimize import lsq_linear

    stacked = np.concatenate([np.stack([of_part[i] for of_part in predicted]) for i in range(len(held))], axis=1)
    truth = np.concatenate([each.truth for each in held])
    weight, length = np.concatenate([each.weight for each in held]), np.linalg.norm(truth, axis=1)
    weight = np.divide(weight, length, out=np.zeros_like(weight), where=length > _TINY)
    products = np.einsum("iqg,kqg,q->ik", stacked, stacked, weight, optimize=True)
    along, size = np.einsum("iqg,qg,q->i", stacked, truth, weight, optimize=True), np.diag(products)
    coefficient = np.minimum(np.divide(np.maximum(along, 0), size, out=np.zeros_like(along), where=size > _TINY), most)
    used, shares = np.flatnonzero(coefficient), np.zeros(len(predicted))
    if not len(used):
        return shares
    names = [name for each in held for name in each.query.perturbed]
    group = np.unique([" ".join(name) for name in names], return_inverse=True)[1]
    scaled = products[np.ix_(used, used)] * np.outer(coefficient[used], coefficient[used])
    penalty = _PRIOR / (group.max() + 1) * np.trace(scaled) / len(used)
    root = np.linalg.cholesky(scaled + penalty * np.eye(len(used)))
    aim = np.linalg.solve(root, along[used] * coefficient[used] + penalty / len(used))
    shares[used] = coefficient[used] * lsq_linear(root.T, aim, (0, most[used] / coefficient[used]), method="bvls").x
    shares /= max(1.0, (shares / most).sum())
    total = np.tensordot(shares, stacked, 1)
    size, along = weight * (total**2).sum(axis=1), weight * (total * truth).sum(axis=1)
    if len(np.unique(group[size > _TINY])) < 2:
        return np.zeros_like(shares)
    s = along.sum() / max(size.sum(), _TINY)
    error = np.linalg.norm(np.bincount(group, along - s * size)) / max(size.sum(), _TINY)
    return shares * s**2 / max(s**2 + error**2, _TINY)
