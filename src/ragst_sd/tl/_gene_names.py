"""One naming of genes for all sections of a reference, and the species they are of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._validate import listing
from ragst_sd.reference.current_names import CURRENT, current_names, species_of
from ragst_sd.reference.genes import common_naming, duplicates
from ragst_sd.reference.symbols import SPECIES, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragst_sd.tl._sections import Section

logger = logging.getLogger(__name__)


def common_names(sections: list[Section], *, harmonize: bool, orthologues_to: str | None, unit: str) -> str:
    """Bring all sections to one naming, in place, and return it: `symbol`, `ensembl`, or current symbols of a species.

    Raises
    ------
    ValueError
        If sections are of two species and `orthologues_to` is left out, a section mixes species, the species of a section
        cannot be told where it has to be, there is no common naming, or values on a log scale would have to be added up.
    """
    for section in sections:
        try:
            section.species = species_of(section.names)
        except ValueError as error:
            msg = f"sdatas[{section.sample!r}]: {error}"
            raise ValueError(msg) from error
    if orthologues_to is None:
        check_one_species_of({section.sample: section.species for section in sections}, "Sections")
        if not harmonize:
            return common_naming({section.sample: section.names for section in sections})
    unknown = [section.sample for section in sections if section.species == UNKNOWN]
    if unknown:
        msg = (
            f"Genes of {listing(unknown)} cannot be brought to current symbols: fewer than half of their names are in the gene "
            f"tables of {' or '.join(SPECIES)} (for instance {next(s for s in sections if s.sample == unknown[0]).first_names()}). "
            "Leave out `harmonize`, or name the genes by symbols or Ensembl ids."
        )
        raise ValueError(msg)
    naming = CURRENT[orthologues_to or sections[0].species]
    for section in sections:
        found = current_names(section.names, orthologues_to=orthologues_to)
        kept = np.array([name != "" for name in found.names])
        logger.info("%s: genes of %s, %s.", section.sample, found.species, _summary(found.how))
        names = [name for name in found.names if name]
        if unit != "counts" and duplicates(names):
            msg = (
                f"sdatas[{section.sample!r}]: several names mean one gene ({listing(duplicates(names))}), and values on a log "
                "scale cannot be added up. Give counts with `layer=`."
            )
            raise ValueError(msg)
        section.expression, section.names = section.expression[:, kept], {naming: names}
    return naming


def check_one_species_of(species: Mapping[str, str], what: str) -> None:
    """Refuse parts of a reference that are of two species by name; those of unknown species go with either."""
    known: dict[str, list[str]] = {}
    for name, one in species.items():
        if one != UNKNOWN:
            known.setdefault(one, []).append(name)
    if len(known) > 1:
        parts = "; ".join(f"{one}: {listing(names)}" for one, names in sorted(known.items()))
        msg = (
            f"{what} are of two species ({parts}), whose genes are not the same even where their names are. Build one reference "
            f"for each, or bring all to one by one-to-one orthologues: `rg.tl.build_reference(..., orthologues_to={max(known, key=lambda one: len(known[one]))!r})`."
        )
        raise ValueError(msg)


def _summary(how: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in how.items() if number) or "none"
