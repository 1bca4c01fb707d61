"""Gaps and biases of a reference, as its own facts show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED
from ragst_sd._validate import listing
from ragst_sd.datasets._data_card_facts import DONORS, SPOTS

if TYPE_CHECKING:
    import pandas as pd

    from ragst_sd.datasets._data_card_facts import CardFacts

_FEW_DONORS = 5
# Below this, most genes of a whole transcriptome are seen in a minority of spots.
_SHALLOW = 1000
_LARGE_SHARE = 0.5
# ... and this many times what it were if all groups had the same number of spots.
_MUCH_LARGER = 1.5
_ENLARGED = 1.25
_FEW_SPOTS = 100
# A prediction warns from here on, too.
_DIFFERENT_RESOLUTION = 2.0


def gaps(facts: CardFacts) -> list[str]:
    """Sentences that hold for this reference."""
    return [*_donors(facts), *_origin(facts), *_sections(facts), *_genes(facts), *_terms(facts), *_never_known()]


def _donors(facts: CardFacts) -> list[str]:
    table = facts.composition(_keys.DONOR)
    n, out = len(table), []
    if n == 1:
        out.append(
            "One donor. Nothing can be learned about differences between donors, and no accuracy on a new donor can be measured."
        )
    elif n < _FEW_DONORS:
        out.append(
            f"Few donors ({n}): accuracy on held-out donors is measured on {n} of them, and is itself uncertain."
        )
    share = table[SPOTS].iloc[0] / facts.n_spots
    if n > 1 and share > max(_LARGE_SHARE, _MUCH_LARGER / n):
        out.append(f"Donor {table.index[0]!r} is {share:.0%} of the spots: what is retrieved is mostly this donor.")
    for tissue, line in facts.composition(_keys.TISSUE).iterrows():
        if line[DONORS] == 1 and n > 1:
            out.append(f"Only one donor of organ {tissue!r}: with that donor held out, nothing of its kind is left.")
    return out


def _origin(facts: CardFacts) -> list[str]:
    out = []
    for column, what, why in (
        (_keys.TISSUE, "organ", "Sections of other organs have no counterpart here."),
        (_keys.TECHNOLOGY, "technology", "Spots of another size or chemistry were not seen."),
    ):
        table = facts.composition(column)
        named = [str(value) for value in table.index if value != _keys.UNKNOWN]
        if len(named) == 1 and len(table) == 1:
            out.append(f"One {what}: {named[0]}. {why}")
        if _keys.UNKNOWN in table.index:
            out.append(f"The {what} of {int(table.loc[_keys.UNKNOWN, SPOTS]):,} spots is not known.")
        share = table[SPOTS].iloc[0] / facts.n_spots
        if len(table) > 1 and share > max(_LARGE_SHARE, _MUCH_LARGER / len(table)):
            out.append(f"{table.index[0]} is {share:.0%} of the spots (by {what}).")
    cited = set(facts.sections["citation"]) - {_keys.UNKNOWN}
    if len(cited) == 1 and not (facts.sections["citation"] == _keys.UNKNOWN).any():
        out.append(
            "All sections come from one publication, so probably from one laboratory: stain, scanner and protocol of others were not seen."
        )
    return out


def _sections(facts: CardFacts) -> list[str]:
    out = []
    sections = facts.sections
    shallow = sections.index[sections["median_counts"] < _SHALLOW]
    if len(shallow):
        out.append(
            f"Shallow sections (median under {_SHALLOW:,} counts per spot in the genes kept): {listing(shallow)}."
        )
    if facts.counts is None:
        out.append("The depth of the sections is not known: expression was given on a log scale.")
    small = sections.index[sections["spots"] < _FEW_SPOTS]
    if len(small):
        out.append(f"Sections of under {_FEW_SPOTS} spots: {listing(small)}.")
    enlarged = sections.index[sections["upsampling"] > _ENLARGED]
    if len(enlarged):
        out.append(
            f"Pictures coarser than the tiles, which were enlarged up to {sections['upsampling'].max():.1f} times: {listing(enlarged)}. "
            "Detail of cells is missing there."
        )
    resolution = sections["upsampling"].to_numpy(float)
    if np.isfinite(resolution).any() and np.nanmax(resolution) / np.nanmin(resolution) > _DIFFERENT_RESOLUTION:
        out.append("The real resolution of the pictures differs more than twofold between sections.")
    if sections["image_mpp"].isna().any():
        out.append(f"Microns per pixel are not known of {listing(sections.index[sections['image_mpp'].isna()])}.")
    out += _same_pictures(facts.header["sections"], sections)
    return out


def _same_pictures(statistics: dict[str, np.ndarray], sections: pd.DataFrame) -> list[str]:
    by_hash: dict[str, list[str]] = {}
    for sample, image in zip(statistics["sample"], statistics["image_hash"], strict=True):
        if str(sample) in sections.index and str(image):
            by_hash.setdefault(str(image), []).append(str(sample))
    return [
        f"The same picture under several names: {listing(names)}. If their donors differ, a held-out donor is not held out."
        for names in by_hash.values()
        if len(names) > 1
    ]


def _genes(facts: CardFacts) -> list[str]:
    if len(facts.genes_by_panel) == 1:
        return []
    missing = facts.n_genes - facts.n_shared_genes
    if not missing:
        return []
    return [
        f"{missing:,} of {facts.n_genes:,} genes were not measured by every panel: they rest on fewer donors than the others."
    ]


def _terms(facts: CardFacts) -> list[str]:
    found = {terms for terms, _, _ in facts.licenses}
    out = []
    unknown = facts.sections.index[
        facts.sections["license"].isin([name for terms, name, _ in facts.licenses if terms is UNKNOWN])
    ]
    if len(unknown):
        out.append(
            f"No licence is known of {listing(unknown)}: ask the owners before this reference is used or passed on."
        )
    if UNRECOGNISED in found:
        out.append("One licence is not of a known kind: read it.")
    if found & {NON_COMMERCIAL, NO_DERIVATIVES}:
        out.append(
            "Some terms forbid commercial use, or passing on what is derived; they bind the reference as a whole."
        )
    uncited = facts.sections.index[facts.sections["citation"] == _keys.UNKNOWN]
    if len(uncited):
        out.append(f"No citation is known of {listing(uncited)}.")
    return out


def _never_known() -> list[str]:
    return [
        "A reference records no sex, age, ancestry, diagnosis or laboratory of its donors: whether they stand for the people "
        "a prediction is made for cannot be told from it. See the publications."
    ]
