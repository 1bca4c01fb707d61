r"""A small network from embedding to expression, the non-linear baseline without neighbours.

.. math:: h(x) = \mathrm{GELU}(A x / c + a), \qquad \hat y(x) = \bar y + W^\top h(x) + b

with c the root mean square of the key. A and a are learned on the most variable genes; their columns of W are the
network's own output layer, those of all other genes are ridge regression on h. Several networks are averaged, by
setting their h side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ragst_sd.retrieval.bank import Bank, Run, Selection
from ragst_sd.retrieval.blocks import gelu, in_blocks
from ragst_sd.retrieval.evidence import mean_of_reference
from ragst_sd.retrieval.loop import AdamW, History, best_step, optimise, section_correlation, seeded
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import Options, count, not_negative, positive, share
from ragst_sd.retrieval.ridge import RidgeSolver, fit_ridge
from ragst_sd.retrieval.training import (
    Targets,
    centred_within_sections,
    dense,
    held_out_splits,
    mean_over_groups,
    measured_everywhere,
    standardised_targets,
    variable_genes,
    within_section_pearson,
)

logger = logging.getLogger(__name__)

_HEAD_ALPHAS = np.logspace(-3, 2, 6)


@dataclass(frozen=True)
class MlpOptions(Options):
    """Options of `mlp`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    n_train_genes
        Genes to train on, the most variable ones; all others are ridge regression on the hidden units.
    hidden
        Hidden units.
    dropout
        Share of inputs and of hidden units that are left out in a training step.
    learning_rate, weight_decay
        Of AdamW.
    max_steps
        Training steps at most; how many are taken is chosen on held-out groups.
    batch_size
        Rows of a training step at most.
    n_seeds
        Networks that are averaged.
    """

    n_train_genes: int = count(250)
    hidden: int = count(64)
    dropout: float = share(0.2)
    learning_rate: float = positive(1e-3)
    weight_decay: float = not_negative(1e-2)
    max_steps: int = count(300)
    batch_size: int = count(4096)
    n_seeds: int = count(3)


class _Network(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int, options: MlpOptions) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, options.hidden)
        self.head = nn.Linear(options.hidden, n_outputs)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(self.dropout(x)), approximate="tanh")
        return self.head(self.dropout(hidden))


def fit_mlp(training: Bank, run: Run) -> dict[str, Any]:
    """Train networks on all rows, for as many steps as are best on held-out groups.

    The loss is the standardised squared error plus one minus the within-section correlation. At most three groups are
    held out, one at a time; they choose the number of steps, by within-section Pearson, and the penalty of the other
    genes. Ctrl-C ends the stage that it falls into: what was scored so far chooses the steps, and the networks trained
    so far are used.

    Returns
    -------
    `scale`, `first` (p, s * hidden) and `first_bias` of the s networks side by side; `coefficients` (s * hidden, g) and
    `intercept` (g,) relative to the per-gene reference mean; `trained_genes`, `steps`, `inner_score`, `head_alpha` and
    `interrupted`.
    """
    options, key = run.options, training.key
    scale = float(np.sqrt((key**2).mean())) or 1.0
    x = key / scale
    n_genes, max_steps, n_seeds = options.n_train_genes, options.max_steps, options.n_seeds
    seeds = np.random.default_rng(run.rng).integers(2**31, size=n_seeds + 1).tolist()

    histories: list[History] = []
    head_scores: list[list[float]] = []
    splits = held_out_splits(training)
    for inner, held in splits:
        targets = standardised_targets(training, inner, n_genes, "mlp")
        label = f"{run.held_out} held out: {len(histories) + 1} of {len(splits)}"
        network, history = _train(training, x, inner, targets, run, seeds[-1], max_steps, label, held)
        histories.append(history)
        head_scores.append(_score_head(training, _hidden([network], x), inner, held, targets.genes))
        if history.interrupted:
            break
    steps, inner_score = best_step(histories, max_steps // 2)
    mean = mean_over_groups(head_scores, len(_HEAD_ALPHAS))
    alpha = float(_HEAD_ALPHAS[int(np.nanargmax(mean))]) if np.isfinite(mean).any() else 1.0
    logger.info("mlp: %d steps, chosen on held-out groups (within-section Pearson %.3f).", steps, inner_score)

    rows = np.arange(len(x))
    targets = standardised_targets(training, rows, n_genes, "mlp")
    networks = []
    for i, seed in enumerate(seeds[:-1]):
        label = f"training {i + 1} of {n_seeds}"
        network, history = _train(training, x, rows, targets, run, seed, steps, label)
        networks.append(network)
        histories.append(history)
        if history.interrupted:
            break
    coefficients, intercept = _head(training, networks, _hidden(networks, x), targets, alpha)
    return {
        "scale": scale,
        "first": np.concatenate([_array(network.first.weight).T for network in networks], axis=1),
        "first_bias": np.concatenate([_array(network.first.bias) for network in networks]),
        "coefficients": coefficients,
        "intercept": intercept,
        "trained_genes": targets.genes,
        "steps": steps,
        "inner_score": inner_score,
        "head_alpha": alpha,
        "interrupted": any(history.interrupted for history in histories),
    }


def mlp_adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    """What the networks add to the per-gene reference mean, (n, g)."""
    first, bias, coefficients = (np.asarray(parameters[name]) for name in ("first", "first_bias", "coefficients"))

    def added(block: np.ndarray) -> np.ndarray:
        return gelu(block / float(parameters["scale"]) @ first + bias) @ coefficients

    return in_blocks(added, selection.key, coefficients.shape[1]) + parameters["intercept"]


def _train(
    training: Bank,
    x: np.ndarray,
    rows: np.ndarray,
    targets: Targets,
    run: Run,
    seed: int,
    steps: int,
    label: str,
    held: np.ndarray | None = None,
) -> tuple[_Network, History]:
    """One network, trained on `rows`, and scored on `held` ones where they are given."""
    options = run.options
    inputs = torch.as_tensor(x[rows], dtype=torch.float32, device=run.device)
    values = torch.as_tensor(targets.values, dtype=torch.float32, device=run.device)
    sections = torch.as_tensor(training.sections[rows], device=run.device)
    size = options.batch_size
    with seeded(seed):
        network = _Network(x.shape[1], len(targets.genes), options).to(run.device)
        optimiser = AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)

        def step(i: int) -> Tensor:
            batch = slice(None) if len(rows) <= size else torch.randperm(len(rows))[:size].to(run.device)
            predicted, wanted = network(inputs[batch]), values[batch]
            return (
                nn.functional.mse_loss(predicted, wanted) + 1 - section_correlation(predicted, wanted, sections[batch])
            )

        scored = np.zeros(0, dtype=np.int64) if held is None else held
        truth = dense(training.values[scored][:, targets.genes])

        def score() -> float:
            predicted = network(torch.as_tensor(x[scored], dtype=torch.float32, device=run.device))
            return within_section_pearson(_array(predicted), truth, training.sections[scored])

        history = optimise(
            network,
            step,
            optimiser,
            steps=steps,
            score=None if held is None else score,
            every=10,
            progress=run.progress,
            label=label,
        )
    return network, history


def _score_head(
    training: Bank, hidden: np.ndarray, inner: np.ndarray, held: np.ndarray, trained: np.ndarray
) -> list[float]:
    """Held-out score of each penalty, on genes that the network was not trained on where there are any."""
    everywhere = measured_everywhere(training, "mlp")
    genes = np.setdiff1d(variable_genes(training.values, inner, everywhere, 2 * len(trained)), trained)
    genes = genes if len(genes) else trained
    truth, sections = dense(training.values[held][:, genes]), training.sections[held]
    centred = centred_within_sections(hidden[inner], training.sections[inner])
    solver = RidgeSolver(centred, training.values[inner][:, genes])
    predicted = (hidden[held] @ solver.coefficients(alpha * len(inner)) for alpha in _HEAD_ALPHAS)
    return [within_section_pearson(values, truth, sections) for values in predicted]


def _head(
    training: Bank, networks: Sequence[_Network], hidden: np.ndarray, targets: Targets, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Output layer for all genes on the hidden units of all networks; it predicts the reference mean on average."""
    # Centred activations make ridge see expression centred within sections too, without a dense copy of it.
    centred = centred_within_sections(hidden, training.sections)
    whole = replace(training, key=centred, folds=np.zeros_like(training.folds))
    coefficients = fit_ridge(whole, alphas=[alpha])["coefficients"]
    # `_hidden` divides by the root of the number of networks, and their mean asks for division by the number itself.
    heads = np.concatenate([_array(network.head.weight).T for network in networks]) / np.sqrt(len(networks))
    coefficients[:, targets.genes] = heads * targets.sd
    coefficients /= np.sqrt(len(networks))
    intercept = np.zeros(coefficients.shape[1])
    for rows, genes in training.gene_patterns():
        intercept[genes] = -np.sqrt(len(networks)) * hidden[rows].mean(axis=0) @ coefficients[:, genes]
    return coefficients, intercept


def _hidden(networks: Sequence[_Network], x: np.ndarray) -> np.ndarray:
    """Hidden units side by side, scaled so that the penalty of ridge does not depend on the number of networks."""
    units = [gelu(x @ _array(network.first.weight).T + _array(network.first.bias)) for network in networks]
    return np.concatenate(units, axis=1) / np.sqrt(len(networks))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


MLP = Method(
    MlpOptions,
    fit_mlp,
    answer=partial(mean_of_reference, adjustment=mlp_adjustment),
    per_gene=("coefficients", "intercept"),
    learns="values",
)
