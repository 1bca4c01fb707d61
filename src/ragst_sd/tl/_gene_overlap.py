"""Genes that a screen and a tissue share, and why there are few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._validate import listing
from ragst_sd.reference.genes import ENSEMBL
from ragst_sd.tl._stored_expression import offered_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

# Fewer genes than this, in number or as a share of those of the screen, do not show what the cells are like.
_FEWEST, _LEAST = 20, 0.05
_SHOWN = 3


def genes_by_naming(table: AnnData, naming: str, where: str) -> list[str]:
    """Names of the genes of a table in the naming of the screen.

    Raises
    ------
    ValueError
        If the table offers another naming only.
    """
    offered = offered_names(table)
    if naming not in offered:
        has = next(iter(offered))
        msg = (
            f"The screen names its genes by {_word(naming)}, {where} by {_word(has)} (for instance "
            f"{listing(offered[has][:_SHOWN])}). Add the missing names as a column of its `var` ("
            f"`{'gene_symbols' if has == ENSEMBL else 'gene_ids'}`), or run `rg.pp.harmonize_genes` on it."
        )
        raise ValueError(msg)
    return offered[naming]


def shared_genes(of_screen: Sequence[str], of_tissue: Sequence[str], where: str) -> list[str]:
    """Genes of both, in the order of the screen.

    Raises
    ------
    ValueError
        If these are far too few; the message says how many, and what sets the names apart.
    """
    available = set(of_tissue)
    shared = [gene for gene in of_screen if gene in available]
    needed = max(_FEWEST, round(_LEAST * len(of_screen)))
    if len(shared) >= min(needed, len(of_screen)):
        return shared
    msg = (
        f"{where} has {len(shared)} of the {len(of_screen)} genes of the screen ({len(shared) / len(of_screen):.1%}); at least "
        f"{needed} are needed to say what its cells are like. {_reason(of_screen, of_tissue, set(shared))}"
    )
    raise ValueError(msg)


def _reason(of_screen: Sequence[str], of_tissue: Sequence[str], shared: set[str]) -> str:
    by_letters = {gene.upper(): gene for gene in of_tissue}
    alike = [
        (gene, by_letters[gene.upper()]) for gene in of_screen if gene not in shared and gene.upper() in by_letters
    ]
    if len(alike) > len(shared):
        return (
            f"{len(alike)} more differ in capitals only (for instance {alike[0][0]!r} and {alike[0][1]!r}), as symbols of "
            "human and mouse do. Bring one of them to the species of the other: "
            "`rg.pp.harmonize_genes(sdata, orthologues_to='human')`."
        )
    if (
        all(one[:4] in ("ENSG", "ENSM") for one in (of_screen[0], of_tissue[0]))
        and of_screen[0][:4] != of_tissue[0][:4]
    ):
        return (
            f"They are Ensembl ids of two species ({of_screen[0]!r} and {of_tissue[0]!r}): "
            "`rg.pp.harmonize_genes(sdata, orthologues_to='human')` brings one to the other."
        )
    return (
        f"Its genes are {listing(list(of_tissue)[:_SHOWN])}, those of the screen {listing(list(of_screen)[:_SHOWN])}."
    )


def _word(naming: str) -> str:
    return "Ensembl ids" if naming == ENSEMBL else "symbols"
