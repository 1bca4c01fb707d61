"""References written by earlier releases, brought to the present schema.

Version 1 did not say of which species a section is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.reference.current_names import CURRENT, species_of
from ragst_sd.reference.genes import ENSEMBL, SYMBOL
from ragst_sd.reference.schema import REFERENCE_VERSION
from ragst_sd.reference.symbols import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence


def migrated(header: Any, genes: Sequence[str]) -> Any:
    """The header in the present version, a copy; no header, or one of a later version, is left to the schema's check.

    Content hash and fit stay valid: no version changes what a reference says, or what a fit rests on.

    Parameters
    ----------
    header
        `uns["ragst"]` of a reference of tissue.
    genes
        Names of its genes.
    """
    if not isinstance(header, Mapping):
        return header
    if int(header.get("schema_version", REFERENCE_VERSION)) != 1:
        return dict(header)
    # Species of the sections, told from the genes; `donor_key` and `obs`, which the first files lack.
    sections = header.get("sections")
    if isinstance(sections, Mapping) and "sample" in sections and "species" not in sections:
        naming = str(header.get("normalization", {}).get("naming", SYMBOL))
        offered = {ENSEMBL if naming == ENSEMBL else SYMBOL: list(map(str, genes))}
        try:
            species = next((one for one, name in CURRENT.items() if name == naming), None) or species_of(offered)
        except ValueError:
            # Names of both species in one table: version 1 took them, and no section can be told to be of one.
            species = UNKNOWN
        sections = {**sections, "species": np.full(len(sections["sample"]), species)}
    added = {"donor_key": "donor", "obs": np.array([], dtype=str)}
    return {**added, **header, "sections": sections, "schema_version": REFERENCE_VERSION}
