"""Names of perturbations: single genes, and combinations written `A+B`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SEPARATOR = "+"


def components(name: str, control: str | Collection[str]) -> tuple[str, ...]:
    """The genes of a perturbation, sorted; none for the control, or one of several. `A+control` is `A`."""
    controls = {control} if isinstance(control, str) else set(control)
    parts = {part.strip() for part in str(name).split(SEPARATOR)} - {"", *controls}
    return () if str(name).strip() in controls else tuple(sorted(parts))


def canonical(name: str, control: str | Collection[str]) -> str:
    """One spelling of a perturbation: `B+A` is `A+B`, and all controls go by the name of the first.

    Raises
    ------
    ValueError
        If the name holds neither a gene nor a control, as `""` and `"+"` do.
    """
    genes = components(name, control)
    first = control if isinstance(control, str) else next(iter(control))
    if not genes and not any(part.strip() for part in str(name).split(SEPARATOR)):
        msg = f"{name!r} names no perturbation. Name a gene, a combination `A+B`, or the control ({first!r})."
        raise ValueError(msg)
    return SEPARATOR.join(genes) or first


def embed_perturbation(genes: tuple[str, ...], table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Embedding of a perturbation: the sum over its genes.

    So a method that is linear in the embedding predicts the sum of the singles' responses for a combination, which is
    the null model of no interaction. Cosine similarity does not tell the sum from the mean.
    """
    return np.asarray(np.sum([table[gene] for gene in genes], axis=0, dtype=np.float64))
