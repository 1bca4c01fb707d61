"""What references must have in common to be merged, and to keep their cell types."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types
from ragst_sd._gene_names import check_one_species_of
from ragst_sd._validate import listing
from ragst_sd.reference.current_names import CURRENT
from ragst_sd.reference.hashing import parameters_hash
from ragst_sd.reference.panels import differing_columns
from ragst_sd.reference.schema import differing_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

    from ragst_sd.reference.panels import Plan

logger = logging.getLogger(__name__)

_EFFECTS = "platform_effects"


def check_alike(named: Mapping[str, AnnData], headers: Mapping[str, dict[str, Any]]) -> None:
    """Raise a `ValueError` if references differ in embedding, expression scale, gene naming, species or columns."""
    first_name, first = next(iter(headers.items()))
    for name, header in headers.items():
        clauses = differing_fields(first["encoder"], header["encoder"])
        for field in ("task", "use_rep", "standardize"):
            if first[field] != header[field]:
                clauses.append(f"{field}: {first[field]} against {header[field]}")
        if not clauses:
            first_width, width = (named[one].obsm[str(header["use_rep"])].shape[1] for one in (first_name, name))
            if width != first_width:
                clauses.append(f"width: {first_width} against {width}")
        for field in ("naming", "given", "target_sum", "unit"):
            a, b = first["normalization"][field], header["normalization"][field]
            if a != b:
                clauses.append(f"{field} of the expression: {a} against {b}")
        if clauses:
            msg = (
                f"{first_name} and {name} were made differently ({'; '.join(clauses)}), so their rows cannot be "
                "compared. Build both with the same embedding, settings and naming of genes."
            )
            raise ValueError(msg)
    if first["normalization"]["naming"] not in CURRENT.values():
        species: dict[str, str] = {}
        for sections in (header["sections"] for header in headers.values()):
            species |= zip(map(str, sections["sample"]), map(str, sections["species"]), strict=True)
        check_one_species_of(species, "Sections of the references")
    missing = differing_columns({name: list(map(str, header["obs"])) for name, header in headers.items()})
    if missing:
        msg = (
            f"The references keep different columns of `obs` ({missing}). Build them with the same "
            "`rg.tl.build_reference(..., obs=...)`."
        )
        raise ValueError(msg)


def check_samples(headers: Mapping[str, dict[str, Any]]) -> None:
    """Raise a `ValueError` if a sample is in several references."""
    owners: dict[str, list[str]] = {}
    for name, header in headers.items():
        for sample in map(str, header["sections"]["sample"]):
            owners.setdefault(sample, []).append(name)
    twice = [sample for sample, names in owners.items() if len(names) > 1]
    if twice:
        sample = twice[0]
        first, second, *_ = owners[sample]
        msg = (
            f"{len(twice)} samples are in more than one reference: {listing(twice)} ({sample!r} in {first} and "
            f"{second}). If it is the same section, leave it out of one: "
            f"`reference[reference.obs['sample'] != {sample!r}].copy()`; else build one of them with another sample "
            "name."
        )
        raise ValueError(msg)


def carry_cell_types(merged: AnnData, named: Mapping[str, AnnData], kept: Sequence[pd.Index], plan: Plan) -> None:
    """Give `merged` the fractions and signatures of its members, or warn of those that it cannot have.

    Parameters
    ----------
    merged
        Rows of the members one after another.
    named
        The members.
    kept
        Names of the rows of each that are in `merged`.
    plan
        Genes and panels of `merged`.
    """
    found = {name: cell_types(reference) for name, reference in named.items()}
    if not any(found.values()):
        return
    panels = _panels_of(named, plan)
    reason = _reason(named, found, plan, panels)
    if reason:
        logger.warning("%s: the merged reference has no cell types. Run `rg.tl.add_cell_types` on it again.", reason)
        return
    about = dict(found[next(iter(named))] or {})
    members = [reference[names] for reference, names in zip(named.values(), kept, strict=True)]
    fractions = [np.asarray(member.obsm[_keys.CELL_TYPE_FRACTION]) for member in members]
    merged.obsm[_keys.CELL_TYPE_FRACTION] = np.concatenate(fractions)
    if all(_keys.CELL_TYPE_FIT in member.obs for member in members):
        fits = [member.obs[_keys.CELL_TYPE_FIT].to_numpy(float) for member in members]
        merged.obs[_keys.CELL_TYPE_FIT] = np.concatenate(fits)
    if _EFFECTS in about:
        columns = [next(iter(panels[panel])) for panel in plan.panels]
        about[_EFFECTS] = np.asarray(about[_EFFECTS])[:, columns]
    merged.uns[_keys.ATTRS][_keys.CELL_TYPES] = about


def _panels_of(named: Mapping[str, AnnData], plan: Plan) -> dict[str, set[int]]:
    """Position, within the members, of the panels that became each panel of the merged reference."""
    out: dict[str, set[int]] = {panel: set() for panel in plan.panels}
    for reference, panel_of in zip(named.values(), plan.panel_of, strict=True):
        panels = [str(panel) for panel in reference.uns[_keys.ATTRS]["panels"]]
        for old, new in panel_of.items():
            out[new].add(panels.index(old))
    return out


def _reason(
    named: Mapping[str, AnnData], found: Mapping[str, dict[str, Any] | None], plan: Plan, panels: Mapping[str, set[int]]
) -> str:
    """Why the members' cell types are not those of the merged reference; empty if they are."""
    without = [name for name, about in found.items() if about is None]
    if without:
        return f"{listing(without)} of {len(found)} references {'has' if len(without) == 1 else 'have'} no cell types"
    hashes = {name: parameters_hash(about) for name, about in found.items() if about}
    first = next(iter(named))
    different = [name for name, own in hashes.items() if own != hashes[first]]
    if different:
        return f"{first} and {listing(different)} have different cell types, signatures or platform effects"
    anew = []
    for name, reference in named.items():
        genes = reference.uns[_keys.ATTRS]["normalization"]["size_factor_genes"]
        # Signatures are counts per 10,000 of these genes, and so are the rows that fractions were found for.
        if set(map(str, genes)) != set(plan.size_factor_genes):
            anew.append(name)
    about = found[first] or {}
    if anew and "signatures" in about:
        return f"{listing(anew)} was normalised anew, and the signatures of its cell types are on the old scale"
    if _EFFECTS in about and any(len(positions) != 1 for positions in panels.values()):
        return "Panels with platform effects of their own became one"
    return ""
