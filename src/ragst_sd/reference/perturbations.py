"""Names of perturbations: single genes, and combinations written `A+B`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

SEPARATOR = "+"


def components(name: str, control: str) -> tuple[str, ...]:
    """The genes of a perturbation, sorted; none for the control. `A+control` is `A`."""
    parts = {part.strip() for part in str(name).split(SEPARATOR)} - {"", control}
    return () if str(name).strip() == control else tuple(sorted(parts))


def canonical(name: str, control: str) -> str:
    """One spelling of a perturbation: `B+A` is `A+B`."""
    return SEPARATOR.join(components(name, control)) or control


def embed_perturbation(genes: tuple[str, ...], table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Embedding of a perturbation: the sum over its genes.

    So a method that is linear in the embedding predicts the sum of the singles' responses for a combination, which is
    the null model of no interaction. Cosine similarity does not tell the sum from the mean.
    """
    return np.asarray(np.sum([table[gene] for gene in genes], axis=0, dtype=np.float64))
