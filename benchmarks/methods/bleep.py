r"""BLEEP: images and expression aligned in one space by contrast. Xie et al. (NeurIPS 2023), https://arxiv.org/abs/2306.01859.

A head on the embedding gives :math:`I`, a head on measured expression gives :math:`E`, both (batch, d). The similarities
between the two kinds should be those within each kind:

.. math::
    P = E I^\top / \tau, \qquad T = \mathrm{softmax}\bigl(\tfrac12 (I I^\top + E E^\top)\, \tau\bigr), \qquad
    L = \tfrac12 \bigl(\mathrm{CE}(P, T) + \mathrm{CE}(P^\top, T^\top)\bigr)

A query is its image projection, the bank are expression projections, and the nearest by cosine are averaged.

    rg.tl.register_method("bleep", METHOD)
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ragst_sd.retrieval.blocks import gelu, in_blocks
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import distance_gate
from ragst_sd.retrieval.loop import History, best_step, optimise, seeded
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import CitingOptions, count, not_negative, positive, share
from ragst_sd.retrieval.training import (
    centred_within_sections,
    dense,
    held_out_splits,
    standardised_targets,
    within_section_pearson,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ragst_sd.retrieval.bank import Bank, Query, Run, Selection
    from ragst_sd.retrieval.training import Targets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BleepOptions(CitingOptions):
    """Options of `bleep`: genes to train on, width of the heads, and how they are trained."""

    n_train_genes: int = count(250)
    width: int = count(256)
    dropout: float = share(0.1)
    temperature: float = positive(1.0)
    learning_rate: float = positive(1e-3)
    weight_decay: float = not_negative(1e-3)
    max_steps: int = count(200)
    batch_size: int = count(512)


_AVERAGED = 50
_PARTS = ("project.weight", "project.bias", "mix.weight", "mix.bias", "norm.weight", "norm.bias")


class _Head(nn.Module):
    def __init__(self, n_inputs: int, options: BleepOptions) -> None:
        super().__init__()
        width = int(options.width)
        self.project = nn.Linear(n_inputs, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(float(options.dropout))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        mixed = self.dropout(self.mix(nn.functional.gelu(projected, approximate="tanh")))
        return self.norm(projected + mixed)


class _Heads(nn.Module):
    def __init__(self, n_inputs: int, n_genes: int, options: BleepOptions) -> None:
        super().__init__()
        self.image = _Head(n_inputs, options)
        self.expression = _Head(n_genes, options)


def contrastive_loss(image: Tensor, expression: Tensor, temperature: float) -> Tensor:
    """Symmetric cross entropy between (n, d) image and expression projections of the same spots."""
    logits = expression @ image.T / temperature
    targets = torch.softmax((image @ image.T + expression @ expression.T) / 2 * temperature, dim=1)
    return (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets.T)) / 2


def fit_bleep(training: Bank, run: Run) -> dict[str, Any]:
    """Train both heads on all rows, for as many steps as are best on held-out groups.

    At most three groups are held out, one at a time. Their score is the within-section Pearson of the mean of the 50
    nearest rows of the other groups.

    Returns
    -------
    `scale` of the key, `genes` and `sd` of the expression that goes in, `image_*` and `expression_*` weights, `steps`,
    `inner_score`, `loss`, the contrastive loss of one more batch, without dropout, and `interrupted`.
    """
    options, key = run.options, training.key
    scale = float(np.sqrt((key**2).mean())) or 1.0
    x = key / scale
    n_genes, max_steps = int(options.n_train_genes), int(options.max_steps)
    seeds = np.random.default_rng(run.rng).integers(2**31, size=2).tolist()

    histories: list[History] = []
    for inner, held in held_out_splits(training):
        targets = standardised_targets(training, inner, n_genes, "bleep")
        truth = dense(training.values[held][:, targets.genes])
        score = _held_out_score(x[inner], targets.values, x[held], truth, training.sections[held])
        label = f"bleep, group {len(histories) + 1} held out"
        _, history, _ = _train(x[inner], targets, run, seeds[0], max_steps, label, score)
        histories.append(history)
        if history.interrupted:
            break
    steps, inner_score = best_step(histories, max_steps // 2)
    logger.info("bleep: %d steps, chosen on held-out groups (within-section Pearson %.3f).", steps, inner_score)

    targets = standardised_targets(training, np.arange(len(x)), n_genes, "bleep")
    heads, last, loss = _train(x, targets, run, seeds[1], steps, "bleep")
    chance = math.log(min(len(x), int(options.batch_size)))
    if abs(loss - chance) < 0.01 * chance:
        logger.warning(
            "bleep: the contrastive loss %.3f is at chance (%.3f): images and expression were not aligned.",
            loss,
            chance,
        )
    state = {name: value.detach().cpu().numpy().astype(np.float64) for name, value in heads.state_dict().items()}
    return {
        "scale": scale,
        "genes": targets.genes,
        "sd": targets.sd,
        "steps": steps,
        "inner_score": inner_score,
        "loss": loss,
        "interrupted": last.interrupted or any(history.interrupted for history in histories),
        **{name.replace(".", "_"): value for name, value in state.items()},
    }


def bleep_phi(parameters: dict[str, Any], key: np.ndarray) -> np.ndarray:
    """(n, width) image projections of length one, whose euclidean order to the bank is that of the cosine."""
    return _projected(parameters, "image", key / float(parameters["scale"]))


def bleep_bank(parameters: dict[str, Any], training: Bank) -> np.ndarray:
    """(m, width) expression projections of the training rows, of length one."""
    values = dense(training.values[:, np.asarray(parameters["genes"])])
    centred = centred_within_sections(values, training.sections)
    return _projected(parameters, "expression", centred / np.asarray(parameters["sd"]))


def _projected(parameters: dict[str, Any], head: str, rows: np.ndarray) -> np.ndarray:
    arrays = [np.asarray(parameters[f"{head}_{part.replace('.', '_')}"]) for part in _PARTS]
    project, project_bias, mix, mix_bias, gain, offset = arrays

    def unit(block: np.ndarray) -> np.ndarray:
        projected = block @ project.T + project_bias
        out = projected + gelu(projected) @ mix.T + mix_bias
        out = out - out.mean(axis=1, keepdims=True)
        out = out / np.sqrt((out**2).mean(axis=1, keepdims=True) + 1e-5) * gain + offset
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)

    return in_blocks(unit, rows, len(gain))


def _train(
    x: np.ndarray,
    targets: Targets,
    run: Run,
    seed: int,
    steps: int,
    label: str,
    score: Callable[[_Heads], float] | None = None,
) -> tuple[_Heads, History, float]:
    options = run.options
    inputs = torch.as_tensor(x, dtype=torch.float32, device=run.device)
    values = torch.as_tensor(targets.values, dtype=torch.float32, device=run.device)
    size, temperature = min(len(x), int(options.batch_size)), float(options.temperature)
    with seeded(seed):
        heads = _Heads(x.shape[1], len(targets.genes), options).to(run.device)
        optimiser = torch.optim.AdamW(
            heads.parameters(), lr=float(options.learning_rate), weight_decay=float(options.weight_decay)
        )

        def loss(batch: Tensor) -> Tensor:
            return contrastive_loss(heads.image(inputs[batch]), heads.expression(values[batch]), temperature)

        def batch() -> Tensor:
            return torch.randperm(len(x))[:size].to(run.device)

        history = optimise(
            heads,
            lambda i: loss(batch()),
            optimiser,
            steps=steps,
            score=None if score is None else lambda: score(heads),
            every=10,
            progress=run.progress,
            label=label,
        )
        with torch.no_grad():
            last = float(loss(batch()))
    return heads, history, last


def _held_out_score(
    x: np.ndarray, values: np.ndarray, held_x: np.ndarray, truth: np.ndarray, sections: np.ndarray
) -> Callable[[_Heads], float]:
    n_averaged = min(_AVERAGED, len(x))

    def score(heads: _Heads) -> float:
        device = next(heads.parameters()).device
        bank_values = torch.as_tensor(values, dtype=torch.float32, device=device)
        queries = heads.image(torch.as_tensor(held_x, dtype=torch.float32, device=device))
        bank = heads.expression(bank_values)
        cosine = nn.functional.normalize(queries, dim=1) @ nn.functional.normalize(bank, dim=1).T
        nearest = cosine.topk(n_averaged, dim=1).indices
        weights = torch.zeros_like(cosine).scatter(1, nearest, 1 / n_averaged)
        return within_section_pearson((weights @ bank_values).cpu().numpy().astype(np.float64), truth, sections)

    return score


def select(parameters: dict[str, Any], bank: Bank, query: Query) -> Selection:
    """The nearest rows, weighted equally."""
    return cite(query, distance_gate(query.candidates.distances, 0.0))


METHOD = Method(BleepOptions, fit_bleep, select=select, place=bleep_phi, place_rows=bleep_bank, learns="values")
