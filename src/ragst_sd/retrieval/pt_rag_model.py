r"""The network of `pt_rag`: two-stage retrieval of perturbations for a set of cells.

.. math:: h_i = W_x x_i, \quad q = W_p e, \quad u_k = W_p e_k, \quad c_{ik} = \mathrm{LN}[h_i; q; u_k], \quad
          w_{ik} = 1[a(c_{ik}) > 0]

.. math:: z_i = h_i + q + \alpha\,\frac{\sum_k w_{ik} W_f c_{ik}}{\max(1, \sum_k w_{ik})}, \qquad
          \hat y_i = x_i + W_o\,T(z)_i

with x the cells of a set, e and e_k the embeddings of the perturbation asked about and of the candidates, T a
transformer over the cells of the set without positions, in which all see all, and alpha zero at the start. After Di
Francesco et al. 2026 (PT-RAG, https://arxiv.org/abs/2603.07233), with a normalised sum, a residual path, and no noise
and no statistics of the batch in prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ragst_sd.retrieval.gate import entmax, include
from ragst_sd.retrieval.loop import History
from ragst_sd.retrieval.model import state_from_arrays, state_to_arrays

# Of the network that reads responses: width of phi at most, and the sharpness that training starts with.
_MAX_WIDTH, _SHARPNESS = 64, 12.0
# How names of their weights begin in a fit.
NET = "net_"


class Block(nn.Module):
    """Attention of all cells of a set to all, and a network for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, width) cells, each with what it reads of the others."""
        parts = self.project(self.before(x)).chunk(3, dim=2)
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        seen = nn.functional.scaled_dot_product_attention(*split)
        x = x + self.join(seen.transpose(1, 2).flatten(2))
        return x + self.outer(nn.functional.gelu(self.inner(self.between(x))))


class PtRag(nn.Module):
    """See the module."""

    def __init__(self, n_genes: int, n_embedding: int, width: int, layers: int, heads: int, *, per_cell: bool) -> None:
        super().__init__()
        self.per_cell = per_cell
        self.cells, self.perturbation = nn.Linear(n_genes, width), nn.Linear(n_embedding, width)
        self.norm = nn.LayerNorm(3 * width)
        self.select = nn.Sequential(nn.Linear(3 * width, 128), nn.GELU(), nn.Linear(128, 1))
        self.fuse = nn.Linear(3 * width, width)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.out = nn.Linear(width, n_genes)
        nn.init.zeros_(self.out.bias)

    def selection(
        self, h: Tensor, q: Tensor, u: Tensor, absent: Tensor, temperature: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and choices (B, S or 1, K), and what the candidates say (B, S or 1, K, 3 width)."""
        state = h if self.per_cell else h.mean(dim=1, keepdim=True)
        shape = (*state.shape[:2], u.shape[1], -1)
        parts = (state[:, :, None], q[:, None, None], u[:, None])
        context = self.norm(torch.cat([part.expand(shape) for part in parts], dim=3))
        logits = self.select(context)[..., 0].masked_fill(absent[:, None], -torch.inf)
        return logits, include(logits, temperature), context

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        candidates: Tensor,
        absent: Tensor,
        temperature: float | None = None,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Response of every cell.

        Parameters
        ----------
        x
            (B, S, g) cells, relative to the mean of the controls.
        e
            (B, p) perturbations.
        candidates
            (B, K, p).
        absent
            (B, K).
        temperature
            For training; `None` draws no noise.
        chosen
            (B, S or 1, K) choices to use instead of the network's own.

        Returns
        -------
        Responses (B, S, g), choices and logits (B, S or 1, K).
        """
        h, q, u = self.cells(x), self.perturbation(e), self.perturbation(candidates)
        logits, weights, context = self.selection(h, q, u, absent, temperature)
        weights = weights if chosen is None else chosen
        # The sum goes first: the map of a sum is the sum of the maps, and there are K times fewer.
        total = weights.sum(dim=2, keepdim=True)
        summed = torch.einsum("bsk,bskc->bsc", weights, context)
        retrieved = nn.functional.linear(summed, self.fuse.weight) + total * self.fuse.bias
        z = h + q[:, None] + self.alpha * retrieved / total.clamp_min(1)
        for block in self.blocks:
            z = block(z)
        return self.out(z), weights, logits


class PtRagResponses(nn.Module):
    """Weights of candidates, the map that moves responses of other contexts, and what is said without candidates."""

    def __init__(self, width: int, n_embedding: int, n_out: int, n_state: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(1 + n_state, width, min(_MAX_WIDTH, n_out)))
        self.move = nn.Parameter(torch.zeros(1 + n_state, n_out, n_out))
        self.direct = nn.Parameter(torch.zeros(1 + n_state, n_embedding, n_out))
        self.sharpness = nn.Parameter(torch.tensor(float(math.log(_SHARPNESS))))
        self.bias = nn.Parameter(torch.zeros(()))
        self.alpha = nn.Parameter(torch.ones(()))

    def weigh(
        self, query: Tensor, rows: Tensor, z: Tensor, open_: Tensor, measured: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """(q, k) candidates and (q, k + 1) weights, the last one of the perturbation's own responses elsewhere.

        Parameters
        ----------
        query, rows
            (q, d) and (n, d) features.
        z
            (l,) state of the context.
        open_
            (q, n) rows that may be candidates.
        measured
            (q,) whether there are responses elsewhere.
        k
            Candidates of stage 1.
        """
        phi = at_state(self.phi, z)
        first, second = (nn.functional.normalize(x @ phi, dim=1, eps=1e-8) for x in (query, rows))
        logits = (self.sharpness.exp() * first @ second.T).masked_fill(~open_, -torch.inf)
        logits, candidates = logits.topk(min(k, logits.shape[1]), dim=1)
        itself = (self.sharpness.exp() + self.bias).expand(len(query)).masked_fill(~measured, -torch.inf)
        logits = torch.cat([logits, itself[:, None]], dim=1)
        nobody = torch.isinf(logits).all(dim=1, keepdim=True)
        return candidates, entmax(logits.masked_fill(nobody, 0.0)).masked_fill(nobody, 0.0)


def at_state(blocks: Tensor, z: Tensor) -> Tensor:
    """A map in the state z (l,): the first block, and the others by z."""
    return blocks[0] + torch.tensordot(z, blocks[1:], dims=1)


def energy_distance(predicted: Tensor, measured: Tensor) -> Tensor:
    r"""(B,) :math:`E\|\hat y - y\| - \frac12 E\|\hat y - \hat y'\| - \frac12 E\|y - y'\|` of sets (B, S, g)."""
    between = torch.cdist(predicted, measured).mean(dim=(1, 2))
    within = [torch.cdist(cells, cells).mean(dim=(1, 2)) for cells in (predicted, measured)]
    return between - 0.5 * within[0] - 0.5 * within[1]


def fit_net(train: Callable[..., tuple[nn.Module, History]], most: int, *, scored: bool) -> dict[str, Any]:
    """Train with perturbations held out to choose the number of steps, `most` at most, and then on all of them.

    Parameters
    ----------
    train
        (steps, held_out=) -> network and history.
    scored
        Whether perturbations can be held out; without, all steps are taken.

    Returns
    -------
    The network as plain arrays, and how its training went.
    """
    steps, score = most, float("nan")
    if scored:
        _, history = train(most, held_out=True)
        steps, score = max(1, history.best_step), history.best_score
    net, history = train(steps, held_out=False)
    went = {"training_steps": steps, "inner_score": score, "interrupted": history.interrupted}
    return {**state_to_arrays(net, NET), **went}


def net_from_arrays(parameters: Mapping[str, np.ndarray]) -> Any:
    """The `PtRag` or `PtRagResponses` that a fit wrote, in eval mode."""
    state = state_from_arrays(parameters, NET)
    # New modules draw weights that are replaced below; the caller's random numbers go on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        if "phi" in state:
            (blocks, width, _), n_out = state["phi"].shape, state["move"].shape[2]
            net: nn.Module = PtRagResponses(width, state["direct"].shape[1], n_out, blocks - 1)
        else:
            width, n_genes = state["cells.weight"].shape
            layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            heads, per_cell = int(parameters["heads"]), bool(parameters["per_cell"])
            net = PtRag(n_genes, state["perturbation.weight"].shape[1], width, layers, heads, per_cell=per_cell)
    net.load_state_dict({name: value.reshape(net.state_dict()[name].shape) for name, value in state.items()})
    return net.eval()
