"""Cell types of merged references: taken along where all members have the same, told by name where not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types
from ragst_sd._validate import listing
from ragst_sd.reference.hashing import parameters_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

    from ragst_sd.reference.merging import Plan

logger = logging.getLogger(__name__)

_EFFECTS = "platform_effects"


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
    about = next((one for one in found.values() if one is not None), None)
    if about is None:
        return
    panels = _panels_of(named, plan)
    reason = _reason(named, found, about, plan, panels)
    if reason:
        logger.warning(
            "%s: the merged reference has no cell types. Run `rg.tl.add_cell_types` on it again.", reason,
        )  # fmt: skip
        return
    rows = [reference.obs_names.get_indexer(names) for reference, names in zip(named.values(), kept, strict=True)]
    merged.obsm[_keys.CELL_TYPE_FRACTION] = np.concatenate(
        [np.asarray(ref.obsm[_keys.CELL_TYPE_FRACTION])[own] for ref, own in zip(named.values(), rows, strict=True)]
    )
    if all(_keys.CELL_TYPE_FIT in reference.obs for reference in named.values()):
        merged.obs[_keys.CELL_TYPE_FIT] = np.concatenate(
            [ref.obs[_keys.CELL_TYPE_FIT].to_numpy(float)[own] for ref, own in zip(named.values(), rows, strict=True)]
        )
    if _EFFECTS in about:
        columns = [next(iter(panels[panel])) for panel in plan.panels]
        about[_EFFECTS] = np.asarray(about[_EFFECTS])[:, columns]
    merged.uns[_keys.ATTRS][_keys.CELL_TYPES] = about


def _panels_of(named: Mapping[str, AnnData], plan: Plan) -> dict[str, set[int]]:
    """Position, within the members, of the panels that became each panel of the merged reference."""
    out: dict[str, set[int]] = {panel: set() for panel in plan.panels}
    for reference, panel_of in zip(named.values(), plan.panel_of, strict=True):
        own = [str(panel) for panel in reference.uns[_keys.ATTRS]["panels"]]
        for old, new in panel_of.items():
            out[new].add(own.index(old))
    return out


def _reason(
    named: Mapping[str, AnnData],
    found: Mapping[str, dict[str, Any] | None],
    about: dict[str, Any],
    plan: Plan,
    panels: Mapping[str, set[int]],
) -> str:
    """Why the members' cell types are not those of the merged reference; empty if they are."""
    without = [name for name, one in found.items() if one is None]
    if without:
        return f"{listing(without)} of {len(found)} references {'has' if len(without) == 1 else 'have'} no cell types"
    first = next(iter(found))
    different = [name for name, one in found.items() if one and parameters_hash(one) != parameters_hash(about)]
    if different:
        return f"{first} and {listing(different)} have different cell types, signatures or platform effects"
    summed = {
        name: {str(gene) for gene in reference.uns[_keys.ATTRS]["normalization"]["size_factor_genes"]}
        for name, reference in named.items()
    }
    # Signatures are counts per 10,000 of these genes, and so are the rows that fractions were found for.
    anew = [name for name, genes in summed.items() if genes != set(plan.size_factor_genes)]
    if anew and "signatures" in about:
        return f"{listing(anew)} was normalised anew, and the signatures of its cell types are on the old scale"
    if _EFFECTS in about and any(len(old) != 1 for old in panels.values()):
        return "Panels with platform effects of their own became one"
    return ""
