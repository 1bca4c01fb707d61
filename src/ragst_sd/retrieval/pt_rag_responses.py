r"""PT-RAG where responses were given: two stages, differentiable, and what candidates bring is their response.

.. math:: \Delta(p, c) = \bar\Delta_c + f_z(e_p) + \alpha \sum_j w_j M_j \tilde\Delta_j, \qquad
          w = \mathrm{entmax}\big(s\, \cos(\phi_z(x_p), \phi_z(x_j)) + b_{t(j)}\big)

with :math:`\tilde\Delta_j` relative to the mean of the context of j, x the embedding e of a perturbation beside the
mean of its responses in other contexts, and z the state of the query's context. Stage 1 takes the `n_candidates` rows
of the context that are nearest in :math:`\phi_z(x) = (A_0 + \sum_l z_l A_l)\,x`, and beside them the responses in other
contexts of the perturbation itself, where they may be used. Those are moved by :math:`M_z`, a map of principal
components; rows of the context stay as they are. b is a bias of the perturbation's own responses. Training starts from
ridge regressions. A perturbation without an embedding has f = 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ragst_sd.retrieval.bank import Bank, Query, Run, Selection
from ragst_sd.retrieval.loop import History, optimise, seeded
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.pt_rag_model import PtRagResponses, at_state, fit_net, net_from_arrays
from ragst_sd.retrieval.response_phi import fit_space, place_states
from ragst_sd.retrieval.responses import Group, cite, cosines, grouped, pool_mean, relative
from ragst_sd.retrieval.search import unit_rows

_COMPONENTS = 100
_HELD_OUT = 5
_EVERY = 10
_STEPS = 60
_RATE = 3e-3
_PENALTY = 4.0
_TINY = 1e-12


class Scene(NamedTuple):
    """What is known of rows and queries of one context."""

    group: Group
    features: np.ndarray
    """(n + q + e, d) of `group.key`: embedding and responses elsewhere, each of unit length."""
    elsewhere: np.ndarray
    """(n + q + e, c) components of the responses elsewhere."""
    relative: np.ndarray
    """(a, g) responses relative to the means of their contexts."""


def scenes(bank: Bank, query: Query, axes: np.ndarray) -> Iterator[Scene]:
    """Queries by context and by the rows that they may use; responses are put on the (g, c) axes."""
    for group in grouped(bank, query):
        gaps = relative(bank.values[group.allowed], bank.sections[group.allowed])
        elsewhere = group.elsewhere @ (gaps @ axes)
        yield Scene(group, np.concatenate([unit_rows(group.key), unit_rows(elsewhere)], axis=1), elsewhere, gaps)


def fit_responses(bank: Bank, run: Run) -> dict[str, Any]:
    """Train on the rows of the bank, each as if it had not been measured here.

    The number of steps is chosen on perturbations held out.

    Raises
    ------
    ValueError
        If the reference has no embedding, and no perturbation was measured in two contexts.
    """
    options, space = run.options, fit_space(bank, 1)
    if not bank.key.shape[1] and len(set(bank.screen.perturbed)) == len(bank):
        raise ValueError(
            "`pt_rag` has nothing to compare perturbations by: the reference has no embedding, and none of them was "
            "measured in two contexts. Build it with `embedding=`, or with the responses of another context."
        )
    _, axes = fit_pca(relative(bank.values, bank.sections), _COMPONENTS)
    aware = options.context_aware
    parameters = {
        "response_axes": axes.astype(np.float32),
        "state_mean": space["state_mean"],
        "state_axes": space["state_axes"] if aware else space["state_axes"][:, :0],
        "candidates": options.candidates,
        "n_candidates": run.n_candidates,
    }
    # Training sees responses on their axes alone.
    lean = {**parameters, "response_axes": np.eye(axes.shape[1])}
    bank = replace(bank, values=bank.values @ axes)
    groups = np.unique(bank.folds, return_inverse=True)[1]
    held = np.random.default_rng(run.rng).permutation(groups.max() + 1)[groups] % _HELD_OUT == 0

    def train(steps: int, *, held_out: bool) -> tuple[PtRagResponses, History]:
        return _train(bank, lean, run, steps, held & held_out)

    most = min(_STEPS, options.max_steps)
    return {**parameters, **fit_net(train, most, scored=bool(held.any() and not held.all()))}


class _Lesson(NamedTuple):
    """One context in training: tensors of a scene whose queries are its own rows."""

    z: Tensor
    rows: Tensor
    elsewhere: Tensor
    measured: Tensor
    values: Tensor
    open_: Tensor
    """(n, n) rows of other perturbations."""


def _lessons(bank: Bank, parameters: Mapping[str, Any], rows: np.ndarray) -> list[_Lesson]:
    axes, out = np.asarray(parameters["response_axes"], dtype=np.float64), []
    for context in np.unique(bank.sections[rows]):
        mine = rows[bank.sections[rows] == context]
        eligible = np.zeros((len(mine), len(bank)), dtype=bool)
        eligible[:, rows] = True
        perturbed = tuple(bank.screen.perturbed[row] for row in mine)
        query = Query(bank.key[mine], perturbed=perturbed, contexts=bank.sections[mine], eligible=eligible)
        (scene,) = scenes(bank, query, axes)
        n, here = len(mine), scene.group.here
        same = bank.folds[mine][:, None] == bank.folds[mine]
        z = place_states(parameters, bank.screen.states[[context]])[0]
        measured = scene.group.elsewhere[:n].any(axis=1)
        parts = z, scene.features[:n], scene.elsewhere[:n], measured, scene.relative[here] @ axes, ~same
        out.append(
            _Lesson(*(torch.as_tensor(x, dtype=torch.bool if x.dtype == bool else torch.float32) for x in parts))
        )
    return out


def _train(
    bank: Bank, parameters: Mapping[str, Any], run: Run, steps: int, held: np.ndarray
) -> tuple[PtRagResponses, History]:
    """Train on all rows but those held out, which tell how many steps are best."""
    taught = np.flatnonzero(~held)
    lessons = _lessons(bank, parameters, taught)
    d, k = bank.key.shape[1], run.n_candidates
    how, n_state = str(parameters["candidates"]), len(lessons[0].z)
    with seeded(run.rng):
        net = PtRagResponses(lessons[0].rows.shape[1], d, lessons[0].values.shape[1], n_state)
        _start(net, lessons)
        optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=run.options.weight_decay)

        def step(i: int) -> Tensor:
            losses = [_loss(net, lesson, k, how, known) for lesson in lessons for known in _kinds(lesson, d)]
            return torch.stack(losses).mean()

        def score() -> float:
            # Of perturbations held out everywhere, and of those held out in one context.
            contexts = np.unique(bank.sections[held])
            return float(np.mean([_held_score(net, bank, parameters, k, held, context) for context in contexts]))

        history = optimise(
            net, step, optimiser, steps=steps, every=_EVERY, progress=run.progress, label="pt_rag",
            score=score if held.any() else None,
        )  # fmt: skip
    return net, history


def _kinds(lesson: _Lesson, d: int) -> list[bool]:
    """Whether the queries are known from other contexts: both where both can be."""
    return [True] * bool(lesson.measured.any()) + [False] * (d > 0)


def predict(
    net: PtRagResponses, asked: Tensor, rows: Tensor, z: Tensor, open_: Tensor, measured: Tensor, k: int, how: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k) candidates, (q, k + 1) weights, and (q, c) what the embedding says without them.

    What was measured elsewhere is part of what is retrieved: without candidates only the embedding is known.
    """
    if how == "random":
        # The same for a query whatever the others are: drawn from the features of either side.
        noise = torch.frac(
            torch.sin(asked.sum(dim=1)[:, None] * 78.233 + torch.arange(len(rows)) * 12.9898) * 43758.5453
        )
        noise = noise.abs().masked_fill(~open_, -1.0)
        open_ = open_ & (noise >= noise.topk(min(k, noise.shape[1]), dim=1).values[:, -1:])
    if how == "none":
        open_ = torch.zeros_like(open_)
    measured = measured & (how == "nearest")
    direct = asked[:, : net.direct.shape[1]] @ at_state(net.direct, z)
    return *net.weigh(asked, rows, z, open_, measured, k), direct


def _loss(net: PtRagResponses, lesson: _Lesson, k: int, how: str, known: bool) -> Tensor:  # noqa: FBT001
    features, measured = lesson.rows, lesson.measured & known
    if not known:
        # The embedding alone.
        features = features * (torch.arange(features.shape[1]) < net.direct.shape[1])
    rows, weights, direct = predict(net, features, features, lesson.z, lesson.open_, measured, k, how)
    moved = lesson.elsewhere @ at_state(net.move, lesson.z)
    read = torch.einsum("qk,qkc->qc", weights[:, :-1], lesson.values[rows])
    predicted = direct + net.alpha * (read + weights[:, -1:] * moved)
    size = lesson.values.norm(dim=1).clamp_min(_TINY)
    cosine = (predicted * lesson.values).sum(dim=1) / size / predicted.norm(dim=1).clamp_min(1e-6)
    error = ((predicted - lesson.values) ** 2).sum(dim=1) / size**2
    return (1 - cosine + 0.1 * error).mean()


def _start(net: PtRagResponses, lessons: list[_Lesson]) -> None:
    """Ridge regressions of the responses on what the maps are of."""
    with torch.no_grad():
        rows, elsewhere, values = (
            torch.cat([getattr(lesson, name) for lesson in lessons]).double()
            for name in ("rows", "elsewhere", "values")
        )
        for parameter, x in ((net.phi, rows), (net.move, elsewhere), (net.direct, rows[:, : net.direct.shape[1]])):
            if not x.shape[1]:
                continue
            gram = x.T @ x
            penalty = _PENALTY * gram.diagonal().mean() + 1e-9
            solved = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), x.T @ values).float()
            parameter[0] = solved[:, : parameter.shape[2]]


def _held_score(
    net: PtRagResponses, bank: Bank, parameters: Mapping[str, Any], k: int, held: np.ndarray, context: int
) -> float:
    """Mean cosine of held-out rows of a context, known from others or, where they have an embedding, from none."""
    rows, scores = np.flatnonzero(held & (bank.sections == context)), []
    for known in (True, False) if bank.key.shape[1] else (True,):
        eligible = np.tile(~held | (known & (bank.sections != bank.sections[rows[0]])), (len(rows), 1))
        perturbed = tuple(bank.screen.perturbed[row] for row in rows)
        query = Query(bank.key[rows], perturbed=perturbed, contexts=bank.sections[rows], eligible=eligible)
        added = _respond(net, parameters, bank, query, k)[0]
        scores.append(cosines(added, bank.values[rows] - pool_mean(bank, query)).mean())
    return float(np.mean(scores))


def _respond(
    net: PtRagResponses, parameters: Mapping[str, Any], bank: Bank, query: Query, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(q, g) what is added to the mean of the pool, and (q, m) weights of the rows that were read."""
    axes, d = np.asarray(parameters["response_axes"], dtype=np.float64), bank.key.shape[1]
    added, read = np.zeros((len(query), bank.values.shape[1])), np.zeros((len(query), len(bank)))
    states, how = place_states(parameters, query.states(bank)), str(parameters["candidates"])
    n_candidates = int(parameters["n_candidates"])
    for scene in scenes(bank, query, axes):
        group, n = scene.group, len(scene.group.here)
        q = n + len(group.queries)
        z = torch.as_tensor(states[group.queries[0]], dtype=torch.float32)
        measured = np.asarray(group.elsewhere[n:q].any(axis=1))
        moved = torch.as_tensor(scene.elsewhere[n:q], dtype=torch.float32) @ at_state(net.move, z).detach()
        for known in np.unique(measured):
            at = np.flatnonzero(measured == known)
            features = scene.features if known else np.pad(scene.features[:, :d], ((0, 0), (0, axes.shape[1])))
            first, second = (torch.as_tensor(x, dtype=torch.float32) for x in (features[n:q][at], features[:n]))
            open_, there = torch.ones(len(at), n, dtype=torch.bool), torch.as_tensor(measured[at])
            with torch.no_grad():
                near, weights, direct = predict(net, first, second, z, open_, there, n_candidates, how)
                if k < weights.shape[1]:
                    # Of equal weights the first ones stay.
                    weights = weights.scatter(1, weights.sort(dim=1, descending=True, stable=True).indices[:, k:], 0.0)
                    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(_TINY)
                alpha, maps = float(net.alpha), direct + net.alpha * weights[:, -1:] * moved[at]
            queries, w = group.queries[at], np.zeros((len(at), n))
            np.put_along_axis(w, near.numpy(), weights[:, :-1].numpy().astype(np.float64), axis=1)
            added[queries] = maps.numpy() @ axes.T + alpha * w @ scene.relative[group.here]
            read[np.ix_(queries, group.allowed[group.here])] += w
            read[np.ix_(queries, group.allowed)] += weights[:, -1:].numpy() * group.elsewhere[n:q][at]
    return added, read


def select_responses(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """Rows that were read, with the response that was predicted with them."""
    added, read = _respond(net_from_arrays(parameters), parameters, bank, query, query.n_neighbors)
    return replace(cite(bank, query, read), response=pool_mean(bank, query) + added)
