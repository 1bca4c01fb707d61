"""One naming for tables of several years and species: the current symbols of one of the two species."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ragst_sd.reference.genes import ENSEMBL, SYMBOL
from ragst_sd.reference.symbols import (
    KNOWN_BY,
    SPECIES,
    UNKNOWN,
    check_one_species,
    current_shares,
    guess_species,
    load_table,
    look_up,
    one_to_one,
)

CURRENT = {species: f"current {species} symbol" for species in SPECIES}
"""Naming by species, beside `symbol` and `ensembl`, which are names as they came."""
_KNOWN_SHARE, _SHOWN = 0.5, 3


class Current(NamedTuple):
    """Genes of a table by their current symbols."""

    names: list[str]
    """Current symbol of each gene, empty without a one-to-one orthologue."""
    species: str
    """Species of the table itself."""
    how: dict[str, int]
    """Genes `kept`, `renamed`, `merged` with another name of the gene, `dropped`, and `unknown` (kept as they came)."""


def species_of(offered: Mapping[str, Sequence[str]]) -> str:
    """`human`, `mouse`, or `unknown` if fewer than half of the names are current ones of either.

    Raises
    ------
    ValueError
        If names of both species are mixed.
    """
    names = _leading(offered)
    species, share = next(iter(current_shares(names).items()))
    if share < _KNOWN_SHARE:
        return UNKNOWN
    check_one_species(names, species)
    return species


def current_names(offered: Mapping[str, Sequence[str]], *, orthologues_to: str | None = None) -> Current:
    """Bring the genes of a table to current symbols, by Ensembl id where there is one that is known, else by symbol.

    Parameters
    ----------
    offered
        Names of the genes, by naming (`symbol`, `ensembl`), as :func:`ragst_sd.reference.genes.available_names` finds
        them.
    orthologues_to
        Species to which genes of the other one are brought by one-to-one orthologues; others are dropped.

    Raises
    ------
    ValueError
        If the species cannot be told, or species are mixed.
    """
    species, _ = guess_species(_leading(offered))
    table, genes = load_table(species), []
    lists = [offered[kind] for kind in (ENSEMBL, SYMBOL) if kind in offered]
    for given in zip(*lists, strict=True):
        hits = (look_up(name, table)[:2] for name in given)
        genes.append(next((gene for gene, how in hits if how in KNOWN_BY), ""))
    given_names = list(_leading(offered))
    if orthologues_to not in (None, species):
        partner = one_to_one(species, orthologues_to)
        names, unknown = [partner.get(gene, "") for gene in genes], 0
    else:
        names = [gene or name for gene, name in zip(genes, given_names, strict=True)]
        unknown = genes.count("")
    times = Counter(names)
    dropped = times.pop("", 0)
    merged = sum(n for n in times.values() if n > 1)
    same = sum(name == before and times[name] == 1 for name, before in zip(names, given_names, strict=True)) - unknown
    how = {"kept": max(same, 0), "renamed": 0, "merged": merged, "dropped": dropped, "unknown": unknown}
    how["renamed"] = len(names) - sum(how.values())
    return Current(names, species, how)


def names_in(naming: str, offered: Mapping[str, Sequence[str]], owner: str, where: str) -> list[str]:
    """Names of a table's genes in the naming of its `owner`.

    Raises
    ------
    ValueError
        If the table offers other names only.
    """
    if naming in CURRENT.values():
        target = next(species for species, current in CURRENT.items() if current == naming)
        names, species, _ = current_names(offered, orthologues_to=target)
        # A gene without an orthologue must not meet one that happens to be written alike.
        return [name or f"{before} ({species})" for name, before in zip(names, _leading(offered), strict=True)]
    if naming in offered:
        return list(offered[naming])
    asked, has, column = "symbols", "Ensembl ids", "gene_symbols"
    if naming == ENSEMBL:
        asked, has, column = "Ensembl ids", "symbols", "gene_ids"
    examples = ", ".join(map(repr, next(iter(offered.values()))[:_SHOWN]))
    raise ValueError(
        f"{owner} names its genes by {asked}, {where} by {has} (for instance {examples}). Add the missing names as a "
        f"column of its `var` (`{column}`), or run `rg.pp.harmonize_genes` on it."
    )


def _leading(offered: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The symbols, or the Ensembl ids of a table without symbols."""
    return offered[SYMBOL] if SYMBOL in offered else offered[ENSEMBL]
