"""Panels: which genes each section measured, so that missing is never taken for zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.reference.normalize import MIN_SHARED_GENES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The largest targeted panels measure some 6,000 genes; sequencing-based sections of whole transcriptomes list more.
WHOLE_TRANSCRIPTOME_GENES = 10_000
WHOLE_TRANSCRIPTOME = "whole_transcriptome"


def assign_panels(
    genes: Mapping[str, Sequence[str]], whole_transcriptome: Mapping[str, bool | None]
) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Panel of each sample, and the genes that each panel measured.

    A gene that a whole-transcriptome section does not list was measured and is zero there, as long as another
    whole-transcriptome section lists it. Targeted sections measure what they list; equal lists are one panel.

    Parameters
    ----------
    genes
        Genes that each sample lists.
    whole_transcriptome
        Whether a sample is a whole-transcriptome assay; `None` decides by its number of genes (10,000 or more).

    Returns
    -------
    Panel of each sample, and genes of each panel.
    """
    panel_of: dict[str, str] = {}
    panels: dict[str, set[str]] = {}
    targeted: dict[frozenset[str], str] = {}
    for sample, names in genes.items():
        whole = whole_transcriptome.get(sample)
        if whole is None:
            whole = len(names) >= WHOLE_TRANSCRIPTOME_GENES
        if whole:
            panel_of[sample] = WHOLE_TRANSCRIPTOME
            panels.setdefault(WHOLE_TRANSCRIPTOME, set()).update(names)
        else:
            listed = frozenset(names)
            panel = targeted.setdefault(listed, f"panel{len(targeted) + 1}")
            panel_of[sample] = panel
            panels[panel] = set(listed)
    return panel_of, panels


def shared_genes(panels: Mapping[str, set[str]]) -> list[str]:
    """Genes that all panels measured, sorted.

    Raises
    ------
    ValueError
        If there are fewer than 200: size factors would rest on too little.
    """
    shared = sorted(set.intersection(*panels.values()))
    if len(shared) < MIN_SHARED_GENES:
        sizes = ", ".join(f"{panel}: {len(genes)}" for panel, genes in panels.items())
        msg = (
            f"The panels share {len(shared)} genes ({sizes}); at least {MIN_SHARED_GENES} are needed for size factors. "
            "Check that all sections name their genes alike and are of one species, or build separate references."
        )
        raise ValueError(msg)
    return shared


def measured_mask(genes: Sequence[str], panels: Mapping[str, set[str]]) -> np.ndarray:
    """(genes x panels) mask, panels in the order of the mapping."""
    return np.array([[gene in measured for measured in panels.values()] for gene in genes], dtype=bool).reshape(
        len(genes), len(panels)
    )
