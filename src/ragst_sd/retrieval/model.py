r"""The retrieval model as torch modules: the projection phi, and logits that say how well a candidate fits.

.. math:: \phi(x) = A x + B\, \mathrm{gelu}(C x + b), \qquad
          a_j = -s\, \frac{\|\phi(x) - \phi(x_j)\|^2}{d_K^2} + g\bigl(\phi(x), \phi(x_j), \phi(x) - \phi(x_j), c\bigr)

A starts as the identity, B and the last layer of g at zero: the model starts as nearest neighbours among the principal
components, and departs from them where that helps. Several members, trained from different seeds, are searched side by
side, their logits averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Projection phi: linear, plus one hidden layer if `hidden` is above zero."""

    def __init__(self, n_in: int, n_out: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=False)
        nn.init.eye_(self.linear.weight)
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(n_in, hidden) if hidden else None
        self.outer = nn.Linear(hidden, n_out, bias=False) if hidden else None
        if self.outer is not None:
            nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in) to (n, n_out)."""
        x = self.dropout(x)
        out = self.linear(x)
        if self.inner is not None and self.outer is not None:
            out = out + self.outer(nn.functional.gelu(self.inner(x)))
        return out


class Conditioning(nn.Module):
    """Logits g: what candidate, query, their difference and the query's state say beyond the distance."""

    def __init__(self, n_phi: int, n_state: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * n_phi + n_state, hidden)
        self.outer = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, query: Tensor, candidates: Tensor, state: Tensor) -> Tensor:
        """(n, q), (n, K, q) and (n, s) to (n, K)."""
        n, k, _ = candidates.shape
        query, state = (part[:, None, :].expand(n, k, -1) for part in (query, state))
        inputs = torch.cat([candidates, query, query - candidates, state], dim=2)
        return self.outer(nn.functional.gelu(self.inner(inputs)))[..., 0]


class Member(nn.Module):
    """One projection with its gate."""

    scale: Tensor

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        n_phi: int,
        hidden: int,
        gate_hidden: int,
        dropout: float = 0.0,
        sharpness: float = 2.0,
    ) -> None:
        super().__init__()
        self.projection = Projection(n_in, n_phi, hidden, dropout)
        self.conditioning = Conditioning(n_phi, n_state, gate_hidden) if gate_hidden else None
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        # The null slot starts inside the range of the logits, so that it takes part from the first step on.
        self.null = nn.Parameter(torch.tensor(-sharpness / 2))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """phi(x), (n, n_phi)."""
        return self.projection(x) / self.scale

    def logits(self, query: Tensor, candidates: Tensor, state: Tensor, absent: Tensor | None = None) -> Tensor:
        """(n, K) logits of candidates (n, K, q); minus infinity where absent."""
        squared = ((query[:, None, :] - candidates) ** 2).sum(dim=2)
        return self.logits_of_distances(squared, query, candidates, state, absent)

    def logits_of_distances(
        self, squared: Tensor, query: Tensor, candidates: Tensor | None, state: Tensor, absent: Tensor | None = None
    ) -> Tensor:
        """The same from (n, K) squared distances; `candidates` are needed only by a gate that looks at them."""
        if absent is not None:
            squared = squared.masked_fill(absent, 0.0)
        farthest = squared.max(dim=1, keepdim=True).values
        out = -self.log_sharpness.exp() * squared / farthest.clamp_min(1e-12)
        if self.conditioning is not None and candidates is not None:
            # g is trained before the scale is known, on phi as the projection gives it.
            out = out + self.conditioning(query * self.scale, candidates * self.scale, state)
        return out if absent is None else out.masked_fill(absent, -torch.inf)


class RetrievalModel(nn.Module):
    """Members side by side: phi is all of theirs, the logits are their mean."""

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def each(self) -> list[Member]:
        """The members, one by one."""
        return cast("list[Member]", list(self.members))

    def forward(self, x: Tensor) -> Tensor:
        """phi(x), (n, members * n_phi)."""
        return torch.cat([member(x) for member in self.each()], dim=1)

    def logits(self, query: Tensor, candidates: Tensor, state: Tensor, absent: Tensor | None = None) -> Tensor:
        """(n, K) logits of candidates (n, K, q); minus infinity where absent."""
        n = len(self.members)
        queries, rows = query.chunk(n, dim=1), candidates.chunk(n, dim=2)
        each = [m.logits(q, r, state, absent) for m, q, r in zip(self.each(), queries, rows, strict=True)]
        return torch.stack(each).mean(dim=0)

    @property
    def null(self) -> Tensor:
        """Logit of the null slot, (1,)."""
        return torch.stack([member.null for member in self.each()]).mean().reshape(1)


def state_to_arrays(module: nn.Module, prefix: str = "model_") -> dict[str, np.ndarray]:
    """Weights as plain arrays, by name."""
    return {f"{prefix}{name.replace('.', '-')}": value.cpu().numpy() for name, value in module.state_dict().items()}


def state_from_arrays(parameters: Mapping[str, np.ndarray], prefix: str = "model_") -> dict[str, Tensor]:
    """What :func:`state_to_arrays` wrote, as tensors."""
    return {
        name.removeprefix(prefix).replace("-", "."): torch.as_tensor(np.asarray(value))
        for name, value in parameters.items()
        if name.startswith(prefix)
    }


def model_from_arrays(parameters: Mapping[str, np.ndarray]) -> RetrievalModel:
    """The model that :func:`state_to_arrays` wrote, in float64 and eval mode."""
    state = state_from_arrays(parameters)
    n_members = 1 + max(int(name.split(".")[1]) for name in state)
    linear, inner = state["members.0.projection.linear.weight"], state.get("members.0.projection.inner.weight")
    gate = state.get("members.0.conditioning.inner.weight")
    n_phi = len(linear)
    # New modules draw weights that are replaced below; the caller's random numbers go on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        members = [
            Member(
                linear.shape[1],
                0 if gate is None else gate.shape[1] - 3 * n_phi,
                n_phi=n_phi,
                hidden=0 if inner is None else len(inner),
                gate_hidden=0 if gate is None else len(gate),
            )
            for _ in range(n_members)
        ]
    model = RetrievalModel(members).double()
    model.load_state_dict(state)
    return model.eval()
