"""Panels: which genes each section measured, so that missing is never taken for zero."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ragst_sd.reference.genes import changed_capitals
from ragst_sd.reference.normalize import MIN_SHARED_GENES

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

# The largest targeted panels measure some 6,000 genes; sequencing-based sections of whole transcriptomes list more.
WHOLE_TRANSCRIPTOME_GENES = 10_000
# Share of a section's counts in genes that another one does not list. Sections counted against one annotation stay
# below 0.4 % even at a tenfold difference in depth, because only rare genes go undetected; sections counted against
# different annotations lie above 1.8 %, because abundant genes are named differently or are not in both.
SAME_ANNOTATION = 0.01
PANEL = "panel"

Sample = TypeVar("Sample", bound="Hashable")


def assign_panels(
    totals: Mapping[Sample, Mapping[str, float]], named: Mapping[Sample, str | None]
) -> tuple[dict[Sample, str], dict[str, set[str]]]:
    """Panel of each sample, and the genes that each panel measured.

    Sections of one panel measured the union of what they list: a gene that one of them does not list is a zero there.
    A gene that no section of the panel lists was not measured by it. Sections share a panel

    - if they are named so;
    - as whole transcriptomes (10,000 genes listed and more), if they were counted against the same annotation, which
      shows in the share of counts that falls into genes that the other does not list;
    - as targeted panels, if they list the same genes.

    Parameters
    ----------
    totals
        Counts of every gene that a sample lists, by sample.
    named
        Name of a sample's panel, where it is given.

    Returns
    -------
    Panel of each sample, and genes of each panel.
    """
    panel_of: dict[Sample, str] = {sample: str(named[sample]) for sample in totals if named.get(sample)}
    open_samples = [sample for sample in totals if sample not in panel_of]
    transcriptomes = [sample for sample in open_samples if len(totals[sample]) >= WHOLE_TRANSCRIPTOME_GENES]
    # Never a name that was given: its sections would then count as measured what only others did.
    given = set(panel_of.values())
    groups = _same_annotation(transcriptomes, totals)
    numbered = (name for i in count(1) if (name := f"transcriptome{i}") not in given)
    single = len(groups) == 1 and "transcriptome" not in given
    for group in groups:
        panel_of |= dict.fromkeys(group, "transcriptome" if single else next(numbered))
    targeted: dict[frozenset[str], str] = {}
    unused = (name for i in count(1) if (name := f"panel{i}") not in given)
    for sample in open_samples:
        if sample not in panel_of:
            listed = frozenset(totals[sample])
            if listed not in targeted:
                targeted[listed] = next(unused)
            panel_of[sample] = targeted[listed]
    panels: dict[str, set[str]] = {}
    for sample, genes in totals.items():
        panels.setdefault(panel_of[sample], set()).update(genes)
    return panel_of, panels


def unlisted_share(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Share of the first section's counts in genes that the second does not list."""
    total = sum(first.values())
    return sum(count for gene, count in first.items() if gene not in second) / total if total > 0 else 0.0


def _same_annotation(samples: Sequence[Sample], totals: Mapping[Sample, Mapping[str, float]]) -> list[list[Sample]]:
    """Groups of samples, each counted against one annotation."""
    groups: list[list[Sample]] = []
    for sample in samples:
        for group in groups:
            shares = [
                max(unlisted_share(totals[sample], totals[other]), unlisted_share(totals[other], totals[sample]))
                for other in group
            ]
            if max(shares) <= SAME_ANNOTATION:
                group.append(sample)
                break
        else:
            groups.append([sample])
    return groups


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
        proper, *others = sorted(panels.values(), key=lambda genes: sum(map(str.islower, genes)))
        changed = next(filter(None, (changed_capitals(proper, sorted(genes)) for genes in others)), "")
        msg = (
            f"The panels share {len(shared)} genes ({sizes}); at least {MIN_SHARED_GENES} are needed for size factors. "
            "Check that all sections name their genes alike and are of one species, or build separate references."
            f"{changed}"
        )
        raise ValueError(msg)
    return shared


def measured_mask(genes: Sequence[str], panels: Mapping[str, set[str]]) -> np.ndarray:
    """(genes x panels) mask, panels in the order of the mapping."""
    return np.array([[gene in measured for measured in panels.values()] for gene in genes], dtype=bool).reshape(
        len(genes), len(panels)
    )
