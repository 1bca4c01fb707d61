"""Expression of tables, as it is stored and in the unit of a reference; one naming of the genes of several tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_choice, require_key, require_type, require_unique
from ragst_sd.reference.current_names import CURRENT, current_names, names_in, species_of
from ragst_sd.reference.genes import (
    SYMBOL,
    available_names,
    changed_capitals,
    common_naming,
    duplicates,
    sum_duplicates,
    take_genes,
)
from ragst_sd.reference.normalize import (
    MIN_SHARED_GENES,
    TARGET_SUM,
    UNITS,
    as_csr,
    check_unit,
    log_normalize,
    refuse_masked,
)
from ragst_sd.reference.symbols import SPECIES, UNKNOWN

logger = logging.getLogger(__name__)

_FEATURE_TYPES, _RNA = "feature_types", "Gene Expression"
# Control probes and codewords of Xenium, CosMx and MERSCOPE, and spike-ins: no gene is named so.
_CONTROLS = (
    r"neg(?:ative)?[-_ ]?(?:control|prb|probe|\d)|blank[-_]?\d|systemcontrol|falsecode|"
    r"(?:unassigned|deprecated)codeword|antisense_|intergenic_region|ercc-\d"
)


def common_names(sections: Sequence[Any], *, harmonize: bool, orthologues_to: str | None, unit: str) -> str:
    """Name the genes of all sections alike, in place, and return the naming: `symbol`, `ensembl`, or current symbols.

    Raises
    ------
    ValueError
        If sections are of two species and `orthologues_to` is left out, a section mixes species, the species of a
        section cannot be told where it has to be, there is no common naming, or values on a log scale would have to be
        added up.
    """
    for section in sections:
        try:
            section.species = species_of(section.names)
        except ValueError as error:
            raise ValueError(f"sdatas[{section.sample!r}]: {error}") from error
    if orthologues_to is None:
        check_one_species_of({section.sample: section.species for section in sections}, "Sections")
        if not harmonize:
            return common_naming({section.sample: section.names for section in sections})
    unknown = [section for section in sections if section.species == UNKNOWN]
    if unknown:
        first_names = next(iter(unknown[0].names.values()))[:3]
        samples = listing(section.sample for section in unknown)
        raise ValueError(
            f"Genes of {samples} cannot be brought to current symbols: fewer than half of their names are in the gene "
            f"tables of {' or '.join(SPECIES)} (for instance {first_names}). "
            "Leave out `harmonize`, or name the genes by symbols or Ensembl ids."
        )
    naming = CURRENT[orthologues_to or sections[0].species]
    for section in sections:
        current = current_names(section.names, orthologues_to=orthologues_to)
        has_name = np.array([name != "" for name in current.names])
        how = ", ".join(f"{number} {what}" for what, number in current.how.items() if number)
        logger.info("%s: genes of %s, %s.", section.sample, current.species, how or "none")
        names = [name for name in current.names if name]
        if unit != "counts" and duplicates(names):
            raise ValueError(
                f"sdatas[{section.sample!r}]: several names mean one gene ({listing(duplicates(names))}), and values "
                "on a log scale cannot be added up. Give counts with `layer=`."
            )
        section.expression, section.names = section.expression[:, has_name], {naming: names}
    return naming


def check_one_species_of(species: Mapping[str, str], what: str) -> None:
    """Refuse parts of a reference that are of two species by name; those of unknown species go with either."""
    known: dict[str, list[str]] = {}
    for name, kind in species.items():
        if kind != UNKNOWN:
            known.setdefault(kind, []).append(name)
    if len(known) > 1:
        parts = "; ".join(f"{kind}: {listing(names)}" for kind, names in sorted(known.items()))
        largest = max(known, key=lambda kind: len(known[kind]))
        raise ValueError(
            f"{what} are of two species ({parts}), whose genes differ even if their names are the same. Build one "
            "reference for each, or convert all to one species by one-to-one orthologues: "
            f"`rg.tl.build_reference(..., orthologues_to={largest!r})`."
        )


def is_rna(table: AnnData) -> np.ndarray:
    """(features,) mask of the genes: antibodies, guides and control probes, which are counted beside RNA, are none.

    The column `var["feature_types"]` tells; without it, control probes are recognised by their names.

    Raises
    ------
    ValueError
        If no feature is RNA by that column.
    """
    if _FEATURE_TYPES not in table.var:
        controls = table.var_names.astype(str).str.match(_CONTROLS, case=False)
        if controls.any():
            logger.info("%d control probes are left out: %s.", controls.sum(), listing(table.var_names[controls]))
        return ~controls
    kinds = labels(table.var[_FEATURE_TYPES])
    rna = np.array([kind.casefold() == _RNA.casefold() for kind in kinds], dtype=bool)
    others = [f"{kind} ({n})" for kind, n in zip(*np.unique(kinds[~rna], return_counts=True), strict=True)]
    if len(kinds) and not rna.any():
        raise ValueError(
            f"No feature has {_RNA!r} in `var[{_FEATURE_TYPES!r}]`; found {listing(others)}. Write {_RNA!r} for "
            "features that are RNA, or drop the column if all of them are."
        )
    if others:
        logger.info("Features that are not of type %r are left out: %s.", _RNA, listing(others))
    return rna


def stored_expression(
    table: AnnData, layer: str | None, where: str, todo: str, *, counted: bool = True
) -> tuple[sp.csr_matrix, dict[str, list[str]]]:
    """Expression of the genes in X or a layer, and their names by naming: `symbol`, `ensembl` or both.

    A spot that is NaN in every gene was not measured, and comes back as zeros, like a spot without counts. If values
    are not `counted`, zero is a value like others, and NaN stays. A
    `ValueError` that ends with `todo` if there is no X.
    """
    rna = is_rna(table)
    if layer is not None:
        require_key(layer, table.layers, f"{where}.layers", "Leave `layer` out to take X.")
    elif table.X is None or table.n_vars == 0:
        raise ValueError(f"`{where}` has no expression (X is empty). {todo}")
    # A view has lost the mask of a masked array, which is refused.
    whole: Any = table._adata_ref if table.is_view else table
    refuse_masked(whole.X if layer is None else whole.layers[layer])
    matrix = as_csr(table.X if layer is None else table.layers[layer])
    matrix = matrix if rna.all() else matrix[:, rna]
    missing = np.isnan(matrix.data)
    if counted and missing.any():
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        unmeasured = np.bincount(row[missing], minlength=matrix.shape[0]) == matrix.shape[1]
        matrix.data[unmeasured[row]] = 0
        matrix.eliminate_zeros()
    return matrix, available_names(*_names_of(table.var[rna]))


def offered_names(table: AnnData) -> dict[str, list[str]]:
    """Names of the genes by naming, as :func:`stored_expression` gives them."""
    return available_names(*_names_of(table.var[is_rna(table)]))


def _names_of(var: pd.DataFrame) -> tuple[list[str], dict[str, Any]]:
    """Names of genes, and columns in which they may have others."""
    return list(var.index), {name: var[name].astype(str) for name in var}


def normalization(
    given: str, naming: str, *, unit: str = _keys.UNIT, target: float = TARGET_SUM, genes: Sequence[str] = ()
) -> dict[str, Any]:
    """The entry `normalization` of a header; `genes` are those that size factors rest on, none if not known."""
    return {
        "unit": unit,
        "target_sum": target,
        "given": given,
        "naming": naming,
        "size_factor_genes": np.asarray(genes, dtype=str),
    }


@dataclass
class Expression:
    """Expression of cells on a log scale."""

    values: sp.csr_matrix
    genes: list[str]
    normalization: dict[str, Any]
    """Header: unit, target sum, what was given, naming, and the genes that size factors rest on (none if unknown)."""
    errors: sp.csr_matrix | None = None
    """Standard errors of responses, where they were given."""


def read_expression(
    adata: AnnData,
    *,
    layer: str | None,
    unit: str,
    target_sum: float | None = None,
    like: Mapping[str, Any] | None = None,
    where: str = "adata",
    todo: str = "",
    empty: bool = False,
) -> Expression:
    """Cells brought to log1p of counts per `target_sum`.

    Parameters
    ----------
    target_sum
        Sum that counts are scaled to; the median over the cells if left out.
    like
        Normalisation of a reference to follow: its target sum, its size-factor genes and its naming.
    todo
        What to do if they are no AnnData.
    empty
        Whether cells without counts stay, as zeros; otherwise they are refused.
    """
    require_type(adata, AnnData, where, todo)
    require_choice(unit, UNITS, "unit")
    if not adata.n_obs:
        raise ValueError(f"`{where}` has no cells.")
    # Controls that were used once are known by their names.
    advice = f"`{where}.obs_names_make_unique()` makes them unique."
    require_unique(adata.obs_names, f"names of cells of `{where}`", advice)
    matrix, offered = stored_expression(adata, layer, where, "Name the layer with `layer=`.")
    place = f"`{where}.X`" if layer is None else f"`{where}.layers[{layer!r}]`"
    naming = str(like["naming"]) if like else SYMBOL if SYMBOL in offered else next(iter(offered))
    names = names_in(naming, offered, "The reference", f"`{where}`")
    check_unit(matrix, unit, place, names)
    if unit != "counts":
        return Expression(matrix, names, normalization(unit, naming))
    matrix, names = sum_duplicates(matrix, names)
    wanted = [str(gene) for gene in like["size_factor_genes"]] if like else []
    # A reference that was given logs does not say what they were scaled by: then all genes of the cells, as is usual.
    shared = [gene for gene in names if gene in set(wanted)] if wanted else names
    if len(shared) < MIN_SHARED_GENES:
        raise ValueError(
            f"{place} holds {len(shared)} genes that size factors can rest on; at least {MIN_SHARED_GENES} are "
            "needed. Give all genes that were measured, or values that are log1p of normalised counts with "
            f"`unit='log1p_cp10k'`.{changed_capitals(wanted, names)}"
        )
    sums = np.asarray(take_genes(matrix, names, shared).sum(axis=1)).ravel().astype(np.float64)
    if not (empty or (sums > 0).all()):
        raise ValueError(f"{int((sums <= 0).sum())} cells of {place} have no counts. Remove them first.")
    target = float(like["target_sum"]) if like else float(np.median(sums) if target_sum is None else target_sum)
    scale = _keys.UNIT if target == TARGET_SUM else f"log1p(counts per {target:,.6g})"
    about = normalization(unit, naming, unit=scale, target=target, genes=shared)
    return Expression(log_normalize(matrix, sums / target), names, about)
