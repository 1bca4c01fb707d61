"""The method `rag`: members that learn phi and the gate from episodes, and beside them the regression."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ragst_sd.retrieval.bank import Bank, Query, Run, Selection
from ragst_sd.retrieval.blocks import in_blocks
from ragst_sd.retrieval.episodes import Episodes
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.loop import AdamW, History, best_step, optimise, seeded
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.model import Member, RetrievalModel, model_from_arrays, state_to_arrays
from ragst_sd.retrieval.options import CitingOptions, choice, count, not_negative, positive, share, switch
from ragst_sd.retrieval.regression import fit_regression, regression_features
from ragst_sd.retrieval.stack import nothing_cited, stacked
from ragst_sd.retrieval.training import held_out_splits, section_shifts
from ragst_sd.retrieval.type_inputs import fit_types, typed_queries

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RagOptions(CitingOptions):
    r"""Options of `rag` and `random_rag` for tissue.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    center_sections
        Take measured values relative to the mean of their section, and put them on the mean of the rows that may be
        used.
    n_latent
        Dimensions of phi, of each of the `n_seeds` members.
    hidden
        Units of the hidden layer of phi; 0: phi is linear.
    gate
        `"softmax"`, `"entmax"` (1.5-entmax, sparse) or `"gumbel"` (rows in or out).
    gate_hidden
        Units of the part of the gate that looks at query, row and state; 0: it looks at distances alone.
    cell_types
        Let phi take in the fractions of cell types: of rows their own (see :func:`ragst_sd.tl.add_cell_types`), of a
        query those that ridge regression predicts from its embedding. Rows of other types than the picture speaks of
        are then passed over, as far as training finds that to help.
    sharpness
        Where the sharpness :math:`s` of the gate starts.
    dropout
        Share of the inputs of phi that are left out in a training step.
    correlation
        Weight of the correlation within sections in the loss.
    sparsity
        Penalty on the effective number of cited rows.
    n_train_genes
        Genes to train on, the most variable ones.
    n_seeds
        Members, each trained from a seed of its own.
    max_steps
        Training steps at most; how many are taken is chosen on held-out groups. Training ends earlier where their
        score no longer rises.
    learning_rate, weight_decay
        Of AdamW.
    regression
        Let the regression H take part, as far as held-out groups are predicted better with it. `random_rag`, which is
        a control of retrieval, does without.
    """

    n_latent: int = count(64)
    hidden: int = count(0, least=0)
    gate: str = choice("softmax", *GATES)
    gate_hidden: int = count(0, least=0)
    cell_types: bool = switch(default=False)
    sharpness: float = positive(2.0)
    dropout: float = share(0.1)
    correlation: float = not_negative(1.0)
    sparsity: float = not_negative(0.0)
    n_train_genes: int = count(250)
    n_seeds: int = count(3)
    max_steps: int = count(240)
    learning_rate: float = positive(6e-3)
    weight_decay: float = not_negative(1e-4)
    regression: bool = switch(default=True)


# Steps between two scores of a held-out group.
_EVERY = 10
# Scores over which the best one has to rise, or training ends.
_PATIENCE = 3
# Numbers that a processor multiplies at once: inputs are filled up to whole multiples.
_LANES = 8


def fit_rag(training: Bank, run: Run, *, candidates: str = "nearest") -> dict[str, Any]:
    r"""Train phi and the gate on episodes, then the regression H and the share of retrieval in closed form.

    In an episode the queries retrieve from rows of other groups and donors only. The loss is the squared error of the
    evidence in standard deviations of each gene, plus one minus its correlation within sections, plus a penalty on the
    effective number of rows. The number of steps is chosen on held-out inner groups: queries of the others train,
    those of the held-out group score, and the members are then trained on all rows for that many steps.

    Returns
    -------
    `model_*`, `input_scale`, `gate`, those of :func:`ragst_sd.retrieval.regression.fit_regression`, and what the
    training found (`training_steps`, `inner_score`, `interrupted`).
    """
    options, key = run.options, training.key
    input_scale = float(np.sqrt((key**2).mean())) or 1.0
    # Cell types stand before the components, of queries as they are predicted, of rows as they are known.
    query_types, row_types, types = fit_types(training) if options.cell_types else (key[:, :0], key[:, :0], {})
    queries, rows = (np.concatenate([part, key], axis=1) / input_scale for part in (query_types, row_types))
    episodes = Episodes(training, queries, run, candidates, rows, row_types.shape[1])
    steps, training_record, splits, evidence = _choose_steps(episodes, training, run)
    members: list[Member] = []
    # Who interrupts the search for the number of steps wants an end: one member then, and no unfinished one beside it.
    n_seeds = 1 if training_record["interrupted"] else options.n_seeds
    for seed in range(n_seeds):
        label = f"training {seed + 1} of {n_seeds}"
        member, history = _train(episodes, np.arange(len(key)), run, seed=run.rng + seed, steps=steps, label=label)
        if not (history.interrupted and members):
            members.append(member)
        if history.interrupted:
            training_record["interrupted"] = True
            break
    model = RetrievalModel(members).cpu()
    parameters: dict[str, Any] = {
        **state_to_arrays(model),
        "input_scale": np.float64(input_scale),
        "gate": options.gate,
        **types,
        **training_record,
    }
    if not options.regression:
        return parameters
    shifts = section_shifts(training) * options.center_sections
    targets = episodes.y.cpu().numpy().astype(np.float64)
    return {**parameters, **fit_regression(training, targets, splits, evidence, shifts, rng=run.rng)}


def rag_phi(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """Queries in phi-space, (n, members * n_latent), from principal components, and from types if these count."""
    return _in_phi(parameters, typed_queries(parameters, key))


def rag_phi_of_rows(parameters: Mapping[str, Any], training: Bank) -> np.ndarray | None:
    """Rows in phi-space, with their own types; `None` where types do not count, and rows are placed as queries are."""
    if "types_map" not in parameters:
        return None
    return _in_phi(parameters, np.concatenate([fit_types(training)[1], training.key], axis=1))


def _in_phi(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """Inputs in phi-space, in blocks of one fixed shape."""
    model = model_from_arrays(parameters)
    # Products of odd widths round by the place of a row in its block; zeros beside it change nothing else.
    spare = -key.shape[1] % _LANES
    key = np.pad(key, ((0, 0), (0, spare)))
    for member in model.each():
        for layer in (member.projection.linear, member.projection.inner):
            if layer is not None:
                layer.weight = torch.nn.Parameter(torch.nn.functional.pad(layer.weight.detach(), (0, spare)))

    def forward(block: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(block)).numpy()

    width = sum(len(member.projection.linear.weight) for member in model.each())
    return in_blocks(forward, key / float(parameters["input_scale"]), width)


def select(parameters: Mapping[str, Any], bank: Bank, query: Query) -> Selection:
    """The candidates with the largest weights of the gate; none where the share of retrieval is zero for all genes."""
    if not np.any(parameters.get("retrieval_share", 1)):
        return nothing_cited(query)
    return cite(query, gate_weights(parameters, bank.key, query))


def gate_weights(parameters: Mapping[str, Any], key: np.ndarray, query: Query) -> np.ndarray:
    """(n, K) weights of the candidates, query by query in blocks of one fixed shape, without noise."""
    model, gate = model_from_arrays(parameters), GATES[str(parameters["gate"])]
    n_phi, n_state = query.key.shape[1], query.state.shape[1]

    def weigh(block: np.ndarray) -> np.ndarray:
        phi, state, stored_rows = np.split(block, [n_phi, n_phi + n_state], axis=1)
        rows = stored_rows.astype(np.int64)
        absent = torch.from_numpy(rows < 0)
        # A query without any candidate would divide by zero.
        empty = absent.all(dim=1, keepdim=True)
        queries, candidates, states = map(torch.from_numpy, (phi, key[np.maximum(rows, 0)], state))
        with torch.no_grad():
            weights = gate(model.logits(queries, candidates, states, absent & ~empty), model.null)
        return weights.masked_fill(empty, 0.0).numpy()

    rows = query.candidates.rows
    return in_blocks(weigh, np.concatenate([query.key, query.state, rows], axis=1), rows.shape[1])


def _choose_steps(
    episodes: Episodes, training: Bank, run: Run
) -> tuple[int, dict[str, Any], list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Train once for each held-out group, to find the number of steps that scores best.

    Returns
    -------
    This number, what a fit keeps of the search, the splits that were trained on, and evidence of their held-out rows.
    """
    splits, max_steps = held_out_splits(training), run.options.max_steps
    histories: list[History] = []
    evidence: list[np.ndarray] = []
    for i, (inner, held) in enumerate(splits):
        label = f"{run.held_out} held out: {i + 1} of {len(splits)}"
        member, history = _train(episodes, inner, run, seed=run.rng, steps=max_steps, label=label, held=held)
        histories.append(history)
        with seeded(run.rng):
            evidence.append(episodes.evidence(member, held, inner))
        if history.interrupted:
            break
    steps, score = best_step(histories, max_steps)
    if not splits:
        logger.warning("No inner group of three rows or more could be held out: all %d steps are taken.", max_steps)
    logger.info("Inner groups score best after %d of %d steps (Pearson %.3f).", steps, max_steps, score)
    interrupted = any(history.interrupted for history in histories)
    record = {"training_steps": steps, "inner_score": np.float64(score), "interrupted": interrupted}
    return steps, record, splits[: len(evidence)], evidence


def _train(
    episodes: Episodes,
    rows: np.ndarray,
    run: Run,
    *,
    seed: int,
    steps: int,
    label: str,
    held: np.ndarray | None = None,
) -> tuple[Member, History]:
    """One member, trained on `rows` as queries, and scored on `held` rows, which retrieve from `rows`, where given."""
    options = run.options
    with seeded(seed):
        member = Member(
            episodes.x.shape[1],
            episodes.state.shape[1],
            # As types stand before the components, the identity that phi starts from takes all of them in.
            n_phi=options.n_latent + episodes.n_types,
            hidden=options.hidden,
            gate_hidden=options.gate_hidden,
            dropout=options.dropout,
            sharpness=options.sharpness,
        ).to(run.device)
        optimiser = AdamW(member.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        episodes.random = np.random.default_rng(seed)
        batches: list[np.ndarray] = []

        def step(i: int) -> torch.Tensor:
            if not batches:
                batches.extend(episodes.batches(rows))
            return episodes.loss(member, batches.pop(), i / max(1, steps - 1))

        history = optimise(
            member,
            step,
            optimiser,
            steps=steps,
            score=None if held is None else lambda: episodes.score(member, held, rows),
            every=_EVERY,
            patience=_PATIENCE,
            progress=run.progress,
            label=label,
        )
        with torch.no_grad():
            member.scale.copy_(member(episodes.x).pow(2).sum(dim=1).mean().sqrt().clamp_min(1e-12))
    return member, history


RAG = Method(
    RagOptions,
    fit_rag,
    select=select,
    answer=stacked,
    place=rag_phi,
    place_rows=rag_phi_of_rows,
    regress=regression_features,
    per_gene=("retrieval_share", "regression_coefficients", "regression_intercept", "adjustment_out"),
    learns="values",
)


@dataclass(frozen=True)
class RandomRagOptions(RagOptions):
    """Options of `random_rag`: those of `rag`."""

    regression: bool = switch(default=False)


RANDOM_RAG = replace(RAG, options=RandomRagOptions, fit=partial(fit_rag, candidates="random"), candidates="random")
