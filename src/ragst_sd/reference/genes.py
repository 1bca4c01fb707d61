"""Gene names: symbols or Ensembl ids, duplicates, and one naming for several sections."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse as sp

_ENSEMBL = re.compile(r"^ENS[A-Z]{0,4}G\d{11}(\.\d+)?$")
# Above this share of Ensembl ids a list is taken as ids: real lists of symbols hold none, real lists of ids hold
# little else (spike-ins, custom probes).
_MOSTLY = 0.9

_SHOWN = 3
_TO_ONE_SPECIES = "Bring one of them to the species of the other: `rg.pp.harmonize_genes(..., orthologues_to='human')`."

_MISSING = {"", "nan", "NaN", "None", "<NA>", "NA"}

SYMBOL, ENSEMBL = "symbol", "ensembl"
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "feature_name")
ENSEMBL_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "ensembl_gene_id")


def naming(names: Sequence[str]) -> str:
    """How names are given, `"symbol"` or `"ensembl"`.

    Raises
    ------
    ValueError
        If the list mixes both.
    """
    matches = [bool(_ENSEMBL.match(name)) for name in names]
    share = sum(matches) / max(1, len(matches))
    if share >= _MOSTLY:
        return ENSEMBL
    if share <= 1 - _MOSTLY:
        return SYMBOL
    ids = [name for name, match in zip(names, matches, strict=True) if match][:3]
    symbols = [name for name, match in zip(names, matches, strict=True) if not match][:3]
    raise ValueError(
        f"Gene names mix Ensembl ids (for instance {ids}, {share:.0%}) and symbols (for instance {symbols}). "
        f"Use one naming in `var_names`, or add a column with the other: {list(SYMBOL_COLUMNS)} or "
        f"{list(ENSEMBL_COLUMNS)}."
    )


def strip_version(names: Sequence[str]) -> list[str]:
    """Ensembl ids without their version suffix; other names unchanged."""
    return [name.split(".")[0] if _ENSEMBL.match(name) else name for name in names]


def filled_names(names: Sequence[str], column: Sequence[str]) -> list[str]:
    """Names of a column of `var`; where it leaves a gene without one, the name in `var_names` stands for it."""
    pairs = zip(names, column, strict=True)
    return [str(default) if str(name).strip() in _MISSING else str(name) for default, name in pairs]


def available_names(names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Gene names of a section by naming (`symbol`, `ensembl`): from `var_names`, or a column of `var` that is known."""
    by_naming: dict[str, list[str]] = {}
    names = [str(name) for name in names]
    candidates = [*SYMBOL_COLUMNS, *ENSEMBL_COLUMNS]
    listed = [filled_names(names, columns[column]) for column in candidates if column in columns]
    for values in [names, *listed]:
        try:
            kind = naming(values)
        except ValueError:
            continue
        by_naming.setdefault(kind, strip_version(values) if kind == ENSEMBL else values)
    if not by_naming:
        # No list is of one kind: this raises the error that says so.
        naming(names)
    return by_naming


def common_naming(available: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The naming that all sections offer, symbols preferred.

    Raises
    ------
    ValueError
        If no naming is offered by all; sections are listed with what they offer.
    """
    for kind in (SYMBOL, ENSEMBL):
        if all(kind in offered for offered in available.values()):
            return kind
    by_sample = "; ".join(f"{sample}: {' and '.join(offered)}" for sample, offered in available.items())
    raise ValueError(
        f"Sections name their genes differently and share no naming ({by_sample}). Add the missing names as a column "
        f"of `var` ({list(SYMBOL_COLUMNS)[:3]} for symbols, {list(ENSEMBL_COLUMNS)[:3]} for Ensembl ids)."
    )


def changed_capitals(expected: Iterable[str], names: Iterable[str]) -> str:
    """A sentence where names are the expected ones but for capitals that another tool has changed; empty otherwise."""
    letters = {gene.casefold(): gene for gene in expected}
    pairs = [(letters[gene.casefold()], gene) for gene in names if letters.get(gene.casefold(), gene) != gene]
    # Symbols of human and mouse differ like this as well, and are other genes.
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.capitalize() not in (ours, theirs) or theirs.islower()]
    if not pairs:
        return ""
    ours, theirs = pairs[0]
    return (
        f" {len(pairs)} names differ in capitals only, which another tool has changed. Did you mean {ours!r} for "
        f"{theirs!r}? Give the genes their names back."
    )


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
    """A sentence on why two lists share few genes: capitals, another species, or names of another kind."""
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
    ours, theirs = (", ".join(map(repr, names[:_SHOWN])) or "none" for names in (first, second))
    return f"Names are {ours} on one side, and {theirs} on the other."


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def sum_duplicates(matrix: sp.csr_matrix, names: Sequence[str]) -> tuple[sp.csr_matrix, list[str]]:
    """Add up the columns that share a name; the order of first occurrence is kept."""
    unique = list(dict.fromkeys(names))
    return matrix if len(unique) == len(names) else take_genes(matrix, names, unique), unique


def take_genes(matrix: sp.csr_matrix, names: Sequence[str], wanted: Sequence[str]) -> sp.csr_matrix:
    """Columns in the order of `wanted`: absent genes are empty columns, and those that share a name are added up."""
    place = {name: i for i, name in enumerate(wanted)}
    rows = [i for i, name in enumerate(names) if name in place]
    columns = [place[names[i]] for i in rows]
    onto = sp.csr_matrix((np.ones(len(rows), dtype=matrix.dtype), (rows, columns)), shape=(len(names), len(wanted)))
    return sp.csr_matrix(matrix @ onto)
