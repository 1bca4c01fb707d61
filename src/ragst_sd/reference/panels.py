"""Panels: which genes each section measured, so that missing is never taken for zero; those of merged references."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np

from ragst_sd.reference.genes import changed_capitals
from ragst_sd.reference.normalize import MIN_SHARED_GENES

# The largest targeted panels measure some 6,000 genes; sequencing-based sections of whole transcriptomes list more.
WHOLE_TRANSCRIPTOME_GENES = 10_000
# Share of a section's counts in genes that another one does not list. Sections counted against one annotation stay
# below 0.4 % even at a tenfold difference in depth, because only rare genes go undetected; sections counted against
# different annotations lie above 1.8 %, because abundant genes are named differently or are not in both.
SAME_ANNOTATION = 0.01
PANEL = "panel"
# Names that `assign_panels` gives. They count panels within one reference and say nothing across references.
_AUTOMATIC = re.compile(r"^(transcriptome|panel)\d*$")

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
        raise ValueError(
            f"The panels share {len(shared)} genes ({sizes}); at least {MIN_SHARED_GENES} are needed for size factors. "
            "Check that all sections name their genes alike and are of one species, or build separate references."
            f"{changed}"
        )
    return shared


def measured_mask(genes: Sequence[str], panels: Mapping[str, set[str]]) -> np.ndarray:
    """(genes x panels) mask, panels in the order of the mapping."""
    return np.array([[gene in measured for measured in panels.values()] for gene in genes], dtype=bool).reshape(
        len(genes), len(panels)
    )


@dataclass(frozen=True)
class Part:
    """Genes and panels of one reference."""

    genes: list[str]
    panels: list[str]
    measured: np.ndarray
    """(genes x panels) mask."""
    totals: np.ndarray
    """(panels x genes) counts (or values, where no counts are kept) of the rows of each panel."""
    n_rows: list[int]
    """Rows of each panel."""
    size_factor_genes: list[str]

    @property
    def is_selection(self) -> bool:
        """Whether genes were left out when it was built: then it is unknown what else its panels measured."""
        return not set(self.size_factor_genes) <= set(self.genes)


@dataclass(frozen=True)
class Plan:
    """What the merged reference looks like."""

    genes: list[str]
    panels: list[str]
    measured: np.ndarray
    size_factor_genes: list[str]
    panel_of: list[dict[str, str]]
    """For each part, the merged name of each of its panels that has rows."""


def plan_merge(parts: Mapping[str, Part]) -> Plan:
    """Genes, panels and size-factor genes of several references in one.

    Panels with a name of their own stay what they are; the others are grouped anew, as when all sections are built into
    one reference (see :func:`ragst_sd.reference.panels.assign_panels`). Panels without rows are dropped.

    Raises
    ------
    ValueError
        If the panels share too few genes, or parts hold selections of genes that differ.
    """
    if any(part.is_selection for part in parts.values()):
        return _plan_of_selections(parts)
    totals: dict[tuple[str, int], dict[str, float]] = {}
    named: dict[tuple[str, int], str | None] = {}
    for name, part in parts.items():
        for p in _with_rows(part):
            listed = np.flatnonzero(part.measured[:, p])
            totals[name, p] = {part.genes[g]: float(part.totals[p, g]) for g in listed}
            named[name, p] = None if _AUTOMATIC.match(part.panels[p]) else part.panels[p]
    panel_of, panels = assign_panels(totals, named)
    genes = sorted(set.union(*panels.values()))
    return Plan(
        genes=genes,
        panels=list(panels),
        measured=measured_mask(genes, panels),
        size_factor_genes=shared_genes(panels),
        panel_of=_by_part(parts, panel_of),
    )


def _with_rows(part: Part) -> list[int]:
    """Positions of the panels that have rows."""
    return [p for p in range(len(part.panels)) if part.n_rows[p]]


def _by_part(parts: Mapping[str, Part], panel_of: Mapping[tuple[str, int], str]) -> list[dict[str, str]]:
    """For each part, the merged name of each of its panels, from merged names by part and position."""
    return [
        {parts[name].panels[p]: merged for (owner, p), merged in panel_of.items() if owner == name} for name in parts
    ]


def _plan_of_selections(parts: Mapping[str, Part]) -> Plan:
    """The plan of parts that hold selections of genes, which have to be alike in all that the selection hides."""
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        different = []
        if set(part.genes) != set(first.genes):
            common = len(set(part.genes) & set(first.genes))
            different.append(f"genes ({len(first.genes)} against {len(part.genes)}, {common} in common)")
        if set(part.size_factor_genes) != set(first.size_factor_genes):
            different.append("the genes of their size factors")
        if different:
            raise ValueError(
                f"{first_name} and {name} hold selections of genes (`rg.tl.build_reference(..., genes=...)`) and "
                f"differ in {' and '.join(different)}: what their panels measured beyond the selection is not known. "
                "Build both with all genes, merge, and select afterwards."
            )
    columns: dict[str, np.ndarray] = {}
    panel_of = {}
    for name, part in parts.items():
        place = {gene: i for i, gene in enumerate(part.genes)}
        order = [place[gene] for gene in first.genes]
        for p in _with_rows(part):
            panel, mask = part.panels[p], part.measured[order, p]
            if not np.array_equal(columns.setdefault(panel, mask), mask):
                raise ValueError(
                    f"Panel {panel!r} of {name} measured other genes than the panel of that name in the references "
                    "before it. They hold selections of genes: build both with all genes, merge, and select afterwards."
                )
            panel_of[name, p] = panel
    measured = np.stack(list(columns.values()), axis=1)
    return Plan(list(first.genes), list(columns), measured, list(first.size_factor_genes), _by_part(parts, panel_of))


def differing_columns(columns: Mapping[str, Sequence[str]]) -> str:
    """Which references lack which columns that others have; empty if all have the same."""
    every = list(dict.fromkeys(column for listed in columns.values() for column in listed))
    lacking = {name: [column for column in every if column not in listed] for name, listed in columns.items()}
    return "; ".join(f"{name} lacks {missing}" for name, missing in lacking.items() if missing)
