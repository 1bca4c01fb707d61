"""Merging references: one set of genes, panels and size factors for rows that were built apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.reference.panels import assign_panels, measured_mask, shared_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Names that `assign_panels` gives. They count panels within one reference and say nothing across references.
_AUTOMATIC = re.compile(r"^(transcriptome|panel)\d*$")


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
        """Whether genes were left out when it was built: then nobody knows what else its panels measured."""
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
        return _of_selections(parts)
    totals: dict[tuple[str, int], dict[str, float]] = {}
    named: dict[tuple[str, int], str | None] = {}
    for name, part in parts.items():
        for p in _used(part):
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


def _used(part: Part) -> list[int]:
    return [p for p in range(len(part.panels)) if part.n_rows[p]]


def _by_part(parts: Mapping[str, Part], panel_of: Mapping[tuple[str, int], str]) -> list[dict[str, str]]:
    return [
        {parts[name].panels[p]: merged for (owner, p), merged in panel_of.items() if owner == name} for name in parts
    ]


def _of_selections(parts: Mapping[str, Part]) -> Plan:
    """Parts that hold a selection of genes fit together only if they are alike in all that the selection hides."""
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        different = []
        if set(part.genes) != set(first.genes):
            common = len(set(part.genes) & set(first.genes))
            different.append(f"genes ({len(first.genes)} against {len(part.genes)}, {common} in common)")
        if set(part.size_factor_genes) != set(first.size_factor_genes):
            different.append("the genes of their size factors")
        if different:
            msg = (
                f"{first_name} and {name} hold selections of genes (`rg.tl.build_reference(..., genes=...)`) and "
                f"differ in {' and '.join(different)}: what their panels measured beyond the selection is not known. "
                "Build both with all genes, merge, and select afterwards."
            )
            raise ValueError(msg)
    columns: dict[str, np.ndarray] = {}
    panel_of = {}
    for name, part in parts.items():
        place = {gene: i for i, gene in enumerate(part.genes)}
        order = [place[gene] for gene in first.genes]
        for p in _used(part):
            panel, mask = part.panels[p], part.measured[order, p]
            if not np.array_equal(columns.setdefault(panel, mask), mask):
                msg = (
                    f"Panel {panel!r} of {name} measured other genes than the panel of that name in the references "
                    "before it. They hold selections of genes: build both with all genes, merge, and select afterwards."
                )
                raise ValueError(msg)
            panel_of[name, p] = panel
    measured = np.stack(list(columns.values()), axis=1)
    return Plan(list(first.genes), list(columns), measured, list(first.size_factor_genes), _by_part(parts, panel_of))


def differing_columns(columns: Mapping[str, Sequence[str]]) -> str:
    """Which references lack which columns that others have; empty if all have the same."""
    every = list(dict.fromkeys(column for own in columns.values() for column in own))
    lacking = {name: [c for c in every if c not in own] for name, own in columns.items()}
    return "; ".join(f"{name} lacks {missing}" for name, missing in lacking.items() if missing)
