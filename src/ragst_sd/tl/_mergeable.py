"""What references must have in common to be merged, and to keep their cell types."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types
from ragst_sd._gene_names import check_one_species_of
from ragst_sd._validate import listing
from ragst_sd.reference.current_names import CURRENT
from ragst_sd.reference.hashing import parameters_hash
from ragst_sd.reference.panels import Plan, differing_columns
from ragst_sd.reference.schema import differing_fields

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
            first_width, width = (named[member].obsm[str(header["use_rep"])].shape[1] for member in (first_name, name))
            if width != first_width:
                clauses.append(f"width: {first_width} against {width}")
        for field in ("naming", "given", "target_sum", "unit"):
            a, b = first["normalization"][field], header["normalization"][field]
            if a != b:
                clauses.append(f"{field} of the expression: {a} against {b}")
        if clauses:
            raise ValueError(
                f"{first_name} and {name} were made differently ({'; '.join(clauses)}), so their rows cannot be "
                "compared. Build both with the same embedding, settings and naming of genes."
            )
    if first["normalization"]["naming"] not in CURRENT.values():
        species: dict[str, str] = {}
        for sections in (header["sections"] for header in headers.values()):
            species |= zip(map(str, sections["sample"]), map(str, sections["species"]), strict=True)
        check_one_species_of(species, "Sections of the references")
    missing = differing_columns({name: list(map(str, header["obs"])) for name, header in headers.items()})
    if missing:
        raise ValueError(
            f"The references keep different columns of `obs` ({missing}). Build them with the same "
            "`rg.tl.build_reference(..., obs=...)`."
        )


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
        raise ValueError(
            f"{len(twice)} samples are in more than one reference: {listing(twice)} ({sample!r} in {first} and "
            f"{second}). If it is the same section, leave it out of one: "
            f"`reference[reference.obs['sample'] != {sample!r}].copy()`; else build one of them with another sample "
            "name."
        )


def carry_cell_types(merged: AnnData, named: Mapping[str, AnnData], rows_of: Sequence[pd.Index], plan: Plan) -> None:
    """Give `merged` the fractions and signatures of its members, or warn of those that it cannot have.

    Parameters
    ----------
    merged
        Rows of the members one after another.
    named
        The members.
    rows_of
        Names of the rows of each that are in `merged`.
    plan
        Genes and panels of `merged`.
    """
    members = list(named.values())
    abouts = [cell_types(reference) for reference in members]
    if not any(abouts):
        return
    panels = _panels_of(members, plan)
    obstacles = [
        f"{name} {obstacle}"
        for (name, reference), about in zip(named.items(), abouts, strict=True)
        if (obstacle := _obstacle(reference, about, abouts[0], plan, panels))
    ]
    if obstacles:
        logger.warning(
            "The merged reference has no cell types: %s. Run `rg.tl.add_cell_types` on it again.", "; ".join(obstacles)
        )
        return
    about, parts = dict(abouts[0] or {}), [reference[rows] for reference, rows in zip(members, rows_of, strict=True)]
    merged.obsm[_keys.CELL_TYPE_FRACTION] = np.concatenate([part.obsm[_keys.CELL_TYPE_FRACTION] for part in parts])
    if all(_keys.CELL_TYPE_FIT in part.obs for part in parts):
        merged.obs[_keys.CELL_TYPE_FIT] = np.concatenate(
            [part.obs[_keys.CELL_TYPE_FIT].to_numpy(float) for part in parts]
        )
    if _EFFECTS in about:
        columns = [next(iter(panels[panel])) for panel in plan.panels]
        about[_EFFECTS] = np.asarray(about[_EFFECTS])[:, columns]
    merged.uns[_keys.ATTRS][_keys.CELL_TYPES] = about


def _panels_of(members: Sequence[AnnData], plan: Plan) -> dict[str, set[int]]:
    """Position, within the members, of the panels that became each panel of the merged reference."""
    out: dict[str, set[int]] = {panel: set() for panel in plan.panels}
    for reference, panel_of in zip(members, plan.panel_of, strict=True):
        panels = [str(panel) for panel in reference.uns[_keys.ATTRS]["panels"]]
        for old, new in panel_of.items():
            out[new].add(panels.index(old))
    return out


def _obstacle(reference: AnnData, about: Any, first: Any, plan: Plan, panels: Mapping[str, set[int]]) -> str:
    """Why the cell types of a member are not those of the merged reference; empty if they are."""
    if about is None:
        return "has none"
    if first is not None and parameters_hash(about) != parameters_hash(first):
        return "has other types, signatures or platform effects than the first"
    basis = reference.uns[_keys.ATTRS]["normalization"]["size_factor_genes"]
    # Signatures are counts per 10,000 of these genes, and so are the rows that fractions were found for.
    if "signatures" in about and set(map(str, basis)) != set(plan.size_factor_genes):
        return "was normalised anew, and the signatures of its cell types are on the old scale"
    several = _EFFECTS in about and any(len(positions) != 1 for positions in panels.values())
    return "has panels with platform effects of their own, which became one" if several else ""
