"""Gene names of human and mouse brought to current symbols, by tables that ship with the package.

`tools/make_gene_table.py` makes the tables; their first lines name sources, dates and licences.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import pandas as pd

from ragst_sd.reference.genes import strip_version

SPECIES = ("human", "mouse")
# How a name was found, if it was.
KNOWN_BY = ("symbol", "ensembl", "ensembl_version", "previous", "alias", "repeated")
AMBIGUOUS, DATE, UNKNOWN = "ambiguous", "date", "unknown"

# A list of one species that is old or holds probes of its own still has most of its names in the table of that species.
_MOSTLY = 0.5
# Names that only the other species has are below 0.1 % in lists of one species.
_MIXED = 0.05
# Fewer names than this in the table mean that it is not the table of these genes.
_OVERLAP = 0.1
_SHOWN = 3
# Spreadsheets take names like MARCH1 and SEPT2 for dates; 1-Mar is both MARCH1 and MARC1.
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)"
# What R and anndata make of the second FTH1 of a list.
_REPEATED = re.compile(r"^(.+)[.-]\d+$")
_DATE = re.compile(rf"^(\d{{1,2}}-{_MONTH}|{_MONTH}-\d{{1,2}})$", re.IGNORECASE)


@dataclass(frozen=True)
class GeneTable:
    """Names of the genes of one species.

    A gene is called by its current symbol, or by its Ensembl id if it has none.
    """

    species: str
    sources: tuple[str, ...]
    """Source, date and licence of each part."""
    symbols: frozenset[str]
    by_ensembl: Mapping[str, str]
    """Gene by Ensembl id."""
    previous: Mapping[str, frozenset[str]]
    """Genes that had a name before."""
    alias: Mapping[str, frozenset[str]]
    """Genes that are also called by a name."""
    orthologues: Mapping[str, str]
    """Ensembl id of the mouse gene by that of the human gene, one to one; in the human table only."""

    def __contains__(self, name: str) -> bool:
        return name in self.symbols or name in self.by_ensembl


@lru_cache
def load_table(species: str) -> GeneTable:
    """The table of `"human"` or `"mouse"`."""
    about, lines = _table_lines(species)
    symbols: set[str] = set()
    by_ensembl: dict[str, str] = {}
    orthologues: dict[str, str] = {}
    previous: defaultdict[str, set[str]] = defaultdict(set)
    alias: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        symbol, identifier, *lists, orthologue = line.split("\t")
        gene = symbol or identifier
        if symbol:
            symbols.add(symbol)
        if identifier:
            by_ensembl[identifier] = gene
        for names, genes in zip(lists, (previous, alias), strict=True):
            for name in names.split("|") if names else ():
                genes[name].add(gene)
        if orthologue:
            orthologues[identifier] = orthologue
    return GeneTable(
        species=species,
        sources=tuple(about[1:]),
        symbols=frozenset(symbols),
        by_ensembl=by_ensembl,
        previous={name: frozenset(genes) for name, genes in previous.items()},
        alias={name: frozenset(genes) for name, genes in alias.items()},
        orthologues=orthologues,
    )


@lru_cache
def known_names(species: str) -> frozenset[str]:
    """Current symbols and Ensembl ids of `"human"` or `"mouse"`: enough to tell a species, faster than the table."""
    _, rows = _table_lines(species)
    names: set[str] = set()
    for line in rows:
        names.update(line.split("\t", 2)[:2])
    return frozenset(names - {""})


def _table_lines(species: str) -> tuple[list[str], list[str]]:
    """What the table says of itself, and its rows."""
    if species not in SPECIES:
        raise ValueError(f"There is no gene table of species {species!r}; there are those of {' and '.join(SPECIES)}.")
    path = files("ragst_sd.reference") / f"genes_{species}.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    about = [line[2:] for line in lines if line.startswith("#")]
    return about, lines[len(about) + 1 :]


def guess_species(names: Sequence[str]) -> tuple[str, float]:
    """The species whose current symbols and Ensembl ids most of the names are, and the share of names that are these.

    Raises
    ------
    ValueError
        If fewer than half of the names are known in either species, or if names of both are mixed.
    """
    share = current_shares(names)
    species = next(iter(share))
    check_one_species(names, species)
    if share[species] < _MOSTLY:
        plain = _known(names)[0]
        shares = ", ".join(f"{name} {value:.0%}" for name, value in share.items())
        raise ValueError(
            f"The species cannot be told from {len(plain)} gene names (for instance {plain[:_SHOWN]}): too few are "
            f"current symbols or Ensembl ids ({shares}). Give `rg.pp.harmonize_genes(..., species=...)`, or a column "
            "of `var` with gene names."
        )
    return species, share[species]


def check_one_species(names: Sequence[str], species: str) -> float:
    """Share of names that only the other species has; a `ValueError` if species are mixed, or `species` is mistaken."""
    plain, known = _known(names)
    (other,) = set(SPECIES) - {species}
    expected_names = set(known[species])
    foreign = [name for name in known[other] if name not in expected_names]
    share = len(foreign) / max(1, len(plain))
    if share >= _MIXED:
        expected = len(known[species]) / len(plain)
        what, todo = f"are not those of {species}", f"Is `rg.pp.harmonize_genes(..., species={other!r})` meant?"
        if expected >= _MIXED:
            what = "mix species"
            todo = (
                "Split the table by species, and bring one to the other with `rg.pp.harmonize_genes(..., "
                f"orthologues_to={species!r})`."
            )
        raise ValueError(
            f"Gene names {what}: {expected:.0%} are names of {species}, and {share:.0%} are names of {other} only (for "
            f"instance {foreign[:_SHOWN]}). {todo}"
        )
    return share


def current_shares(names: Sequence[str]) -> dict[str, float]:
    """Share of the names that are current symbols or Ensembl ids, by species, the largest first."""
    share = {species: len(known) / max(1, len(names)) for species, known in _known(names)[1].items()}
    return dict(sorted(share.items(), key=lambda item: -item[1]))


def _known(names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Names without version, and those that are current symbols or Ensembl ids, by species."""
    plain = strip_version([str(name) for name in names])
    return plain, {species: [name for name in plain if name in known_names(species)] for species in SPECIES}


def resolve(names: Sequence[str], species: str) -> pd.DataFrame:
    """The gene that each name means.

    A current symbol is that gene, whatever else the name stood for earlier; then Ensembl ids, with or without version;
    then symbols that one gene had before; then aliases of one gene. Symbols go before aliases, because counting writes
    the symbols of its time and never aliases. Nothing is guessed: a name that stands for several genes is ambiguous.
    What a name means does not depend on the rest of the list, so that it means the same in every section.

    Parameters
    ----------
    names
        Gene names, in any mixture of symbols and ids.
    species
        `"human"` or `"mouse"`.

    Returns
    -------
    One row per name, in order: `name`, `gene` (current symbol, or Ensembl id of a gene without one; empty where there
    is none), `how` (`symbol`, `ensembl`, `ensembl_version`, `previous`, `alias`, `repeated` for the second one of a
    symbol with a number added to make it unique, `ambiguous`, `date` for names that a spreadsheet has turned into
    dates, `unknown`) and `candidates` (all genes that the name has stood for, separated by `|`, where there are
    several).

    Raises
    ------
    ValueError
        If fewer than a tenth of the names are in the table.
    """
    table = load_table(species)
    listed = [str(name) for name in names]
    rows = []
    for name in listed:
        gene, how, candidates = look_up(name, table)
        rows.append((name, gene, how, "|".join(sorted(candidates)) if len(candidates) > 1 else ""))
    out = pd.DataFrame(rows, columns=["name", "gene", "how", "candidates"], dtype=object)
    if len(out) and out["how"].isin(KNOWN_BY).mean() < _OVERLAP:
        raise ValueError(
            f"{int(out['how'].isin(KNOWN_BY).sum())} of {len(out)} gene names are in the table of {species} (for "
            f"instance {listed[:_SHOWN]} are looked for). Are they of another species, or is another column of `var` "
            "meant?"
        )
    return out


def look_up(name: str, table: GeneTable) -> tuple[str, str, frozenset[str]]:
    """The gene that a name means (empty if none or several), how it was found, and the genes it has stood for."""
    nothing: frozenset[str] = frozenset()
    if name in table.symbols:
        return name, "symbol", nothing
    if name in table.by_ensembl:
        return table.by_ensembl[name], "ensembl", nothing
    bare = strip_version([name])[0]
    if bare in table.by_ensembl:
        return table.by_ensembl[bare], "ensembl_version", nothing
    previous, alias = table.previous.get(name, nothing), table.alias.get(name, nothing)
    for how, genes in (("previous", previous), ("alias", alias)):
        if genes:
            gene = next(iter(genes)) if len(genes) == 1 else ""
            return gene, how if gene else AMBIGUOUS, previous | alias
    repeated = _REPEATED.match(name)
    if repeated and repeated[1] in table.symbols:
        return repeated[1], "repeated", nothing
    return "", DATE if _DATE.match(name) else UNKNOWN, nothing


def one_to_one(species: str, target: str) -> dict[str, str]:
    """Gene of `target` by gene of `species`, where each is the only orthologue of the other."""
    human, mouse = load_table("human"), load_table("mouse")
    pairs = {(human.by_ensembl[a], mouse.by_ensembl[b]) for a, b in human.orthologues.items()}
    # Two ids with one symbol would make one name of two genes.
    humans, mice = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    forward = {a: b for a, b in pairs if humans[a] == 1 and mice[b] == 1}
    return forward if species == "human" else {b: a for a, b in forward.items()}
