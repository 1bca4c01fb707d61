"""Stage 2: how much weight each candidate gets.

Logits say how well a candidate fits, and a gate turns the logits of a query's candidates into weights. All gates give
the best candidate weight, give absent candidates none, and add up to one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def distance_gate(distances: np.ndarray, sharpness: float) -> np.ndarray:
    r"""Weights that fall with distance, on the scale of each query's own neighbourhood.

    .. math:: w_j \propto \exp(-s\, d_j^2 / d_K^2)

    with s the sharpness, zero for equal weights, and :math:`d_K` the distance of the farthest candidate. Absent
    candidates (NaN) get none.
    """
    present = ~np.isnan(distances)
    filled = np.where(present, distances, 0.0)
    farthest = filled.max(axis=1, keepdims=True)
    scaled = np.divide(filled, farthest, out=np.zeros_like(filled), where=farthest > 0)
    return normalised(np.where(present, np.exp(-sharpness * scaled**2), 0.0))


def normalised(weights: np.ndarray) -> np.ndarray:
    """(n, K) weights over their sum; a query without any keeps none."""
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def softmax(logits: Tensor, null: Tensor | None = None, temperature: float | None = None) -> Tensor:
    r"""Weights :math:`w_j \propto \exp(a_j)`, (n, K).

    A null slot takes nothing: weights are shared among candidates.
    """
    return torch.softmax(logits, dim=1)


def entmax(logits: Tensor, null: Tensor | None = None, temperature: float | None = None) -> Tensor:
    r"""Sparse weights: :math:`w_j = [a_j / 2 - \tau]_+^2` with :math:`\tau` such that they add up to one (1.5-entmax).

    Candidates far below the best get exactly none. Peters, Niculae and Martins (2019),
    https://doi.org/10.18653/v1/P19-1146; the threshold is found exactly, by sorting.
    """
    scaled = (logits - logits.max(dim=1, keepdim=True).values) / 2
    ordered = scaled.sort(dim=1, descending=True).values
    finite = torch.isfinite(ordered)
    ordered = ordered.masked_fill(~finite, 0.0)
    count = torch.arange(1, logits.shape[1] + 1, dtype=logits.dtype, device=logits.device)
    mean = (ordered * finite).cumsum(dim=1) / count
    mean_square = (ordered**2 * finite).cumsum(dim=1) / count
    spread = count * (mean_square - mean**2)
    threshold = mean - ((1 - spread) / count).clamp_min(0.0).sqrt()
    support = ((threshold <= ordered) & finite).sum(dim=1, keepdim=True)
    tau = threshold.gather(1, support - 1)
    weights = (scaled.masked_fill(~torch.isfinite(scaled), -torch.inf) - tau).clamp_min(0.0) ** 2
    return weights / weights.sum(dim=1, keepdim=True)


def gumbel(logits: Tensor, null: Tensor | None = None, temperature: float | None = None) -> Tensor:
    r"""Candidates are taken in or left out one by one, and those taken share the weight equally.

    Candidate j is in if :math:`a_j - a_0 > 0`, with :math:`a_0` the logit of a null slot (0 if left out). In training
    (with a `temperature` :math:`\tau`) logistic noise L, the difference of two Gumbel variables, is added, and the
    gradient passes straight through the hard choice to :math:`\sigma((a_j - a_0 + L) / \tau)`. Without a temperature
    there is no noise. The best candidate is always in. Jang, Gu and Poole (2017), https://arxiv.org/abs/1611.01144.
    """
    margin = logits if null is None else logits - null
    chosen = include(margin, temperature)
    # At least the best one, without a gradient of its own.
    best = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
    chosen = chosen + (best - chosen.detach()).clamp_min(0.0)
    return chosen / chosen.sum(dim=1, keepdim=True)


def include(margin: Tensor, temperature: float | None = None) -> Tensor:
    r"""One where a margin is above zero, else zero; straight through in training.

    With a `temperature` :math:`\tau` logistic noise L, the difference of two Gumbel variables, is added to the
    margin a, and the gradient is that of :math:`\sigma((a + L) / \tau)`. Without one there is no noise. Minus
    infinity is never chosen.
    """
    if temperature is None:
        return (margin > 0).to(margin.dtype)
    uniform = torch.rand_like(margin).clamp(1e-6, 1 - 1e-6)
    noisy = margin + torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid(noisy / temperature)
    return (noisy > 0).to(margin.dtype) + soft - soft.detach()


GATES: dict[str, Callable[..., Tensor]] = {"softmax": softmax, "entmax": entmax, "gumbel": gumbel}
"""By name, functions (logits, null, temperature) -> weights (n, K).

Logits are (n, K), minus infinity for absent candidates. `null` is the logit of a null slot, (n, 1), or `None`;
`temperature` is `None` at prediction.
"""
