"""What the networks minimise: error per gene, and agreement of patterns within each section."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-8


def standardised_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of (n, g) values whose genes are on one scale."""
    return torch.nn.functional.mse_loss(pred, target)


def section_correlation(pred: Tensor, target: Tensor, sections: Tensor) -> Tensor:
    """Pearson of each gene in each section, averaged over genes that vary, then over sections of three rows or more.

    Parameters
    ----------
    pred, target
        (n, g), genes on a scale of about one.
    sections
        (n,) code of each row's section.

    Returns
    -------
    A scalar that can be differentiated, also where a prediction does not vary; zero where nothing can be compared.
    """
    codes = torch.unique(sections, return_inverse=True)[1]
    member = torch.nn.functional.one_hot(codes).to(pred.dtype)
    count = member.sum(dim=0)[:, None]
    # A product with the membership sums over sections in one fixed order, which scattered additions on a GPU do not.
    b = target - member @ (member.T @ target / count)
    spread_b = member.T @ (b * b) / count
    # Products with what is centred need not be centred themselves, which spares passes over all values.
    spread_a = (member.T @ (pred * pred) / count - (member.T @ pred / count) ** 2).clamp_min(0)
    correlation = (member.T @ (pred * b) / count) * ((spread_a + _TINY) * (spread_b + _TINY)).rsqrt()
    compared = (spread_b > _TINY) & (count > 2)
    per_section = (correlation * compared).sum(dim=1) / compared.sum(dim=1).clamp_min(1)
    return per_section.sum() / compared.any(dim=1).sum().clamp_min(1)
