"""Expression of tables as it is stored; one naming of genes for several tables, their species, and shared genes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_key, require_unique
from ragst_sd.reference.current_names import CURRENT, current_names, names_by, species_of
from ragst_sd.reference.genes import ENSEMBL, available_names, changed_capitals, common_naming, duplicates
from ragst_sd.reference.normalize import OR_LOGS, TARGET_SUM, as_csr, check_counts, check_log_normalized, refuse_masked
from ragst_sd.reference.symbols import SPECIES, UNKNOWN

logger = logging.getLogger(__name__)

_SHOWN = 3
_FEATURE_TYPES, _RNA = "feature_types", "Gene Expression"
# Control probes and codewords of Xenium, CosMx and MERSCOPE, and spike-ins: no gene is named so.
_CONTROLS = (
    r"neg(?:ative)?[-_ ]?(?:control|prb|probe|\d)|blank[-_]?\d|systemcontrol|falsecode|"
    r"(?:unassigned|deprecated)codeword|antisense_|intergenic_region|ercc-\d"
)
_TO_ONE_SPECIES = "Bring one of them to the species of the other: `rg.pp.harmonize_genes(..., orthologues_to='human')`."


def check_unit(matrix: sp.csr_matrix, unit: str, place: str, *names: Sequence[str]) -> None:
    """Raise a `ValueError` unless values are what `unit` says; on a log scale, no list of names may hold one twice."""
    if unit == "counts":
        check_counts(matrix, place, OR_LOGS)
        return
    check_log_normalized(matrix, place)
    for listed in names:
        todo = "Values on a log scale cannot be added: give counts with `layer=`, or make the names unique."
        require_unique(listed, f"names of genes ({place})", todo)


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


def names_in(naming: str, table: AnnData, owner: str, where: str) -> list[str]:
    """Names of the genes of a table in the naming of its `owner`; a `ValueError` if the table has other ones only."""
    offered = offered_names(table)
    names = names_by(naming, offered)
    if names is None:
        asked, has, column = "symbols", "Ensembl ids", "gene_symbols"
        if naming == ENSEMBL:
            asked, has, column = "Ensembl ids", "symbols", "gene_ids"
        examples = next(iter(offered.values()))[:_SHOWN]
        raise ValueError(
            f"{owner} names its genes by {asked}, {where} by {has} (for instance {listing(examples)}). Add the missing "
            f"names as a column of its `var` (`{column}`), or run `rg.pp.harmonize_genes` on it."
        )
    return names


def shared_genes(
    first: Sequence[str], second: Sequence[str], whose: str, *, needed: int = 1, why: str = ""
) -> list[str]:
    """Genes of both lists, in the order of the first; a `ValueError` if they are fewer than `needed`."""
    available = set(second)
    shared = [gene for gene in first if gene in available]
    if len(shared) < needed:
        raise ValueError(
            f"{whose} share {len(shared)} genes; at least {needed} of {len(first)} are needed{why}. "
            f"{why_few_shared(first, second, len(shared))}"
        )
    return shared


def why_few_shared(first: Sequence[str], second: Sequence[str], n_shared: int) -> str:
    """A sentence on why two lists of genes share so few: capitals, their species, or names of another kind."""
    changed = changed_capitals(first, second)
    if changed:
        return changed.strip()
    by_letters = {gene.upper(): gene for gene in second}
    alike = {gene: by_letters[gene.upper()] for gene in first if gene.upper() in by_letters}
    differing = [(gene, other) for gene, other in alike.items() if gene != other]
    if len(differing) > n_shared:
        example, other = differing[0]
        return (
            f"{len(differing)} more differ in capitals only (for instance {example!r} and {other!r}), as symbols of "
            f"human and mouse do: the species differ. {_TO_ONE_SPECIES}"
        )
    prefixes = {gene.rstrip("0123456789") for gene in (*first[:1], *second[:1])}
    if len(prefixes) > 1 and all(prefix.startswith("ENS") for prefix in prefixes):
        return f"They are Ensembl ids of two species ({first[0]!r} and {second[0]!r}). {_TO_ONE_SPECIES}"
    return f"Names are {listing(first[:_SHOWN])} on one side, and {listing(second[:_SHOWN])} on the other."


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
) -> sp.csr_matrix:
    """Expression of the genes in X or a layer; a `ValueError` that ends with `todo` if there is no X.

    A spot that is NaN in every gene was not measured, and comes back as zeros, like a spot without counts. If values
    are not `counted`, zero is a value like others, and NaN stays.
    """
    if layer is not None:
        require_key(layer, table.layers, f"{where}.layers", "Leave `layer` out to take X.")
    elif table.X is None or table.n_vars == 0:
        raise ValueError(f"`{where}` has no expression (X is empty). {todo}")
    rna = is_rna(table)
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
    return matrix


def offered_names(table: AnnData) -> dict[str, list[str]]:
    """Names of the genes by naming: `symbol`, `ensembl` or both."""
    var = table.var[is_rna(table)]
    return available_names(list(var.index), {name: var[name].astype(str) for name in var})


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
