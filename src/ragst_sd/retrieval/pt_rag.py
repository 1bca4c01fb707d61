"""PT-RAG: predicts the cells after a perturbation, with perturbations retrieved in two stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ragst_sd.retrieval.bank import Answer, Bank, Cells, Query, Run, Selection
from ragst_sd.retrieval.gate import normalised
from ragst_sd.retrieval.loop import History, optimise, seeded
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import choice, count, not_negative, positive, switch
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.pt_rag_model import PtRag, energy_distance, fit_net, net_from_arrays
from ragst_sd.retrieval.pt_rag_responses import fit_responses, select_responses
from ragst_sd.retrieval.response_phi import place
from ragst_sd.retrieval.responses import ask_rows, candidates, closed_rows, divided, select, shortened
from ragst_sd.retrieval.search import Candidates, unit_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PtRagOptions:
    """Options of `pt_rag`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    width, layers, heads
        Of the transformer over the cells of a set.
    scope
        What the choice of candidates depends on: `"set"` or `"cell"`.
    candidates
        `"nearest"`; `"random"` or `"none"` show what retrieval is worth.
    temperature
        Of the straight-through choice in training.
    sparsity
        Weight of the share of candidates chosen in the loss.
    pseudobulk
        Weight of the error of the mean response in the loss.
    batch_size
        Sets of a training step.
    set_size
        Cells of a set.
    max_steps
        Training steps at most; how many are taken is chosen on held-out perturbations.
    learning_rate, weight_decay
        Of AdamW.
    context_aware
        Of given responses: whether maps and choice depend on the state of the context.
    """

    n_components: int = count(64)
    width: int = count(64)
    layers: int = count(2)
    heads: int = count(4)
    scope: str = choice("set", "set", "cell")
    candidates: str = choice("nearest", "nearest", "random", "none")
    temperature: float = positive(0.5)
    sparsity: float = not_negative(0.1)
    pseudobulk: float = not_negative(1.0)
    batch_size: int = count(16)
    set_size: int = count(16)
    max_steps: int = count(200)
    learning_rate: float = positive(2e-3)
    weight_decay: float = not_negative(1e-2)
    context_aware: bool = switch(default=True)


_EVERY = 25
_HELD_OUT = 5
_CLIP = 10.0
# Sets that go through the network together.
_AT_ONCE = 64


@dataclass(frozen=True)
class _Lessons:
    """Tensors that a training step draws from."""

    key: Tensor
    """(m, p) embeddings of the rows."""
    candidates: Tensor
    """(m, K) rows."""
    absent: Tensor
    """(m, K)."""
    controls: list[Tensor]
    """Cells of each context, relative to `centre`."""
    treated: list[Tensor]
    """Cells of each row, relative to `centre`."""
    contexts: np.ndarray
    """(m,) place in `controls`."""
    delta: Tensor
    """(m, g) mean responses."""


def fit_pt_rag(bank: Bank, run: Run) -> dict[str, Any]:
    """Train the network on sets of cells; the number of steps is chosen on perturbations held out.

    Where responses were given, it is trained on these: see :mod:`ragst_sd.retrieval.pt_rag_responses`.

    Raises
    ------
    ValueError
        If the bank holds no perturbed cells.
    """
    if not bank.screen.from_cells:
        return fit_responses(bank, run)
    options, key, cells = run.options, unit_rows(bank.key), _cells_of(bank)
    mean, axes = fit_pca(key, options.n_components)
    spread = float(np.sqrt((((key - mean) @ axes) ** 2).mean())) if axes.shape[1] else 1.0
    space = {"projection_mean": mean, "projection": axes / (spread or 1.0), "centre": cells.controls.mean(axis=0)}
    lessons, closed = _lessons(bank, space, run.n_candidates, options.candidates)
    taught = np.array([len(cells) > 1 for cells in lessons.treated])
    groups = np.unique(bank.folds)
    held = np.isin(bank.folds, groups[:: max(2, min(_HELD_OUT, len(groups)))]) & taught
    # What would give a held-out perturbation away does not teach either.
    teachers = taught & ~held & ~closed[held].any(axis=0)

    def train(steps: int, *, held_out: bool) -> tuple[PtRag, History]:
        if held_out:
            return _train(lessons, teachers, held, run, steps, "perturbations held out")
        return _train(lessons, taught, None, run, steps, "training")

    return {
        **space,
        **fit_net(train, options.max_steps, scored=bool(held.any()) and teachers.sum() > 1),
        "heads": options.heads,
        "per_cell": options.scope == "cell",
        "set_size": options.set_size,
        "n_candidates": run.n_candidates,
        "candidates": options.candidates,
    }


def _train(
    lessons: _Lessons, taught: np.ndarray, held: np.ndarray | None, run: Run, steps: int, label: str
) -> tuple[PtRag, History]:
    options = run.options
    rows = np.flatnonzero(taught)
    random = np.random.default_rng(run.rng)
    # Candidates that do not teach are not shown: what is held out is new in every respect.
    absent = lessons.absent | ~torch.as_tensor(taught)[lessons.candidates]
    with seeded(run.rng):
        net = PtRag(
            lessons.delta.shape[1],
            lessons.key.shape[1],
            options.width,
            options.layers,
            options.heads,
            per_cell=options.scope == "cell",
        )
        optimiser = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)

        def clip(*_: object) -> None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), _CLIP)

        optimiser.register_step_pre_hook(clip)

        def step(i: int) -> Tensor:
            return batch_loss(net, lessons, random.choice(rows, options.batch_size), absent, options, random)

        history = optimise(
            net,
            step,
            optimiser,
            steps=steps,
            every=_EVERY,
            progress=run.progress,
            label=label,
            score=None if held is None else lambda: _score(net, lessons, np.flatnonzero(held), absent, options),
        )
    return net, history


def batch_loss(
    net: PtRag,
    lessons: _Lessons,
    rows: np.ndarray,
    absent: Tensor,
    options: PtRagOptions,
    random: np.random.Generator,
) -> Tensor:
    r"""Energy distance of predicted and measured cells, error of their mean response, and a cost of candidates.

    The cost is \(\lambda\) times the share of candidates taken.
    """
    size, at = options.set_size, torch.as_tensor(rows)
    x = torch.stack([_draw(lessons.controls[lessons.contexts[row]], size, random) for row in rows])
    y = torch.stack([_draw(lessons.treated[row], size, random) for row in rows])
    candidates = lessons.key[lessons.candidates[at]]
    response, weights, _ = net(x, lessons.key[at], candidates, absent[at], options.temperature)
    error = ((response.mean(dim=1) - lessons.delta[at]) ** 2).sum(dim=1).mean()
    penalties = options.sparsity * weights.mean() + options.pseudobulk * error
    return energy_distance(x + response, y).mean() + penalties


def _score(net: PtRag, lessons: _Lessons, rows: np.ndarray, absent: Tensor, options: PtRagOptions) -> float:
    """Mean correlation over genes of the responses of held-out rows."""
    size, at = options.set_size, torch.as_tensor(rows)
    x = torch.stack([_even(lessons.controls[lessons.contexts[row]], size) for row in rows])
    response, _, _ = net(x, lessons.key[at], lessons.key[lessons.candidates[at]], absent[at])
    a, b = (part - part.mean(dim=1, keepdim=True) for part in (response.mean(dim=1), lessons.delta[at]))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-6).mean())


def select_pt_rag(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """Candidates the network takes for a set of the context's controls, moved to the mean of the cells asked about.

    Choosing and predicting are one pass, so that the mean response of the set is kept with the choice.
    """
    if "response_axes" in parameters:
        return select_responses(parameters, bank, query)
    # In float64, so that what is asked for beside it moves no digit that is kept.
    net = net_from_arrays(parameters).double()
    near = stage_one(bank, query, int(parameters["n_candidates"]), str(parameters["candidates"]))
    n, k = len(query), query.n_neighbors
    response, weights = np.zeros((n, bank.values.shape[1])), np.zeros(near.rows.shape)
    states = query.states(bank)
    for start in range(0, n, _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        cells = torch.as_tensor(_sets_of(parameters, bank, query.contexts[here], states[here]))
        predicted, chosen = predict_sets(net, parameters, cells, bank, query.key[here], near.rows[here], k)
        response[here], weights[here] = predicted.mean(axis=1), chosen.mean(axis=1)
    return replace(shortened(select(query, near, normalised(weights)), k), response=response)


def answer_pt_rag(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
    """The mean response that the network predicted.

    Evidence is that of the rows it took, or all of it where it took none.
    """
    response = np.asarray(selection.response)
    return divided(bank, selection, response, response)


def predict_sets(
    net: PtRag, parameters: Mapping[str, Any], cells: Tensor, bank: Bank, key: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B, S, g) responses of the cells of sets (B, S, g), and (B, S or 1, K) choices, `k` candidates at most."""
    e, absent = torch.as_tensor(place(parameters, key)), torch.as_tensor(rows < 0)
    others = torch.as_tensor(place(parameters, bank.key)[np.maximum(rows, 0)])
    with torch.no_grad():
        response, chosen, logits = net(cells, e, others, absent)
        if k < chosen.shape[2]:
            last = logits.sort(dim=2, descending=True).indices[..., k:]
            chosen = chosen.scatter(2, last, 0.0)
            response, chosen, _ = net(cells, e, others, absent, chosen=chosen)
    return response.numpy(), chosen.numpy()


def _cells_of(bank: Bank) -> Cells:
    if bank.screen.cells is None or not len(bank.screen.cells.treated):
        raise ValueError(
            "`pt_rag` learns from cells, of which the reference holds none. Build it with `max_cells` above 0."
        )
    return bank.screen.cells


def _sets_of(parameters: Mapping[str, Any], bank: Bank, contexts: np.ndarray, states: np.ndarray) -> np.ndarray:
    """(B, S, g) controls of each context, of all for a new one, moved so that their mean is the state asked about."""
    of_bank = _cells_of(bank)
    out = np.empty((len(contexts), 2 * int(parameters["set_size"]), states.shape[1]))
    for context in np.unique(contexts):
        there, here = of_bank.contexts == context, contexts == context
        controls = of_bank.controls[there] if there.any() else of_bank.controls
        cells = _even(torch.as_tensor(controls), out.shape[1]).numpy()
        shift = np.where(np.isnan(states[here]), 0.0, states[here] - cells.mean(axis=0))
        out[here] = cells + shift[:, None] - parameters["centre"]
    return out


def stage_one(bank: Bank, query: Query, n: int, how: str) -> Candidates:
    """The nearest rows of each query's pool, as many random ones, or none: to see what retrieval is worth."""
    n = min(n, len(bank.key))
    if how == "none":
        return Candidates(np.full((len(query), n), -1), np.full((len(query), n), np.nan))
    return candidates(bank, query, query.pool(bank), n, how=how)


def _lessons(bank: Bank, space: Mapping[str, Any], n_candidates: int, how: str) -> tuple[_Lessons, np.ndarray]:
    closed, of_bank = closed_rows(bank), _cells_of(bank)
    asked = ask_rows(bank, np.arange(len(bank.key)), closed)
    near = stage_one(bank, asked, n_candidates, how)
    names, contexts = np.unique(bank.sections, return_inverse=True)

    def tensor(x: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32)

    lessons = _Lessons(
        key=tensor(place(space, bank.key)),
        candidates=torch.as_tensor(np.maximum(near.rows, 0)),
        absent=torch.as_tensor(near.rows < 0),
        controls=[tensor(of_bank.controls[of_bank.contexts == name] - space["centre"]) for name in names],
        treated=[tensor(of_bank.treated[of_bank.rows == i] - space["centre"]) for i in range(len(bank.key))],
        contexts=contexts,
        delta=tensor(bank.values),
    )
    return lessons, closed


def _draw(cells: Tensor, size: int, random: np.random.Generator) -> Tensor:
    """`size` cells at random, with repetition only where there are fewer."""
    return cells[torch.as_tensor(random.choice(len(cells), size, replace=len(cells) < size))]


def _even(cells: Tensor, size: int) -> Tensor:
    """`size` cells spread evenly over those there are, all of fewer."""
    if len(cells) <= size:
        return cells[torch.arange(size) % len(cells)]
    return cells[torch.as_tensor(np.linspace(0, len(cells) - 1, size).astype(int))]


PT_RAG = Method(
    PtRagOptions,
    fit_pt_rag,
    select=select_pt_rag,
    answer=answer_pt_rag,
    n_neighbors=16,
    n_candidates=16,
    starts_from="prediction without retrieval",
    needs_cells=True,
    needs_embedding=True,
    learns="values",
)
