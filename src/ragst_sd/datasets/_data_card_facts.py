"""What a data card tells of a reference, read from the reference alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import Terms, terms_of
from ragst_sd._reference import reference_header
from ragst_sd.datasets._catalog_entries import catalog_entries, citation_bibtex, citation_text

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

DONORS, SPOTS, SECTIONS = "donors", "spots", "sections"


@dataclass(frozen=True)
class CardFacts:
    """A reference in tables."""

    header: dict[str, Any]
    recipe: dict[str, Any]
    """Name, text and key of the recipe, empty if there was none."""
    sections: pd.DataFrame
    """One line per section: donor, tissue, technology, panel, spots, median counts, image_mpp, upsampling, license, citation."""
    rows: pd.DataFrame
    """One line per spot: donor, sample, tissue, technology, panel."""
    counts: np.ndarray | None
    """(spots,) counts in the genes that were kept, `None` if there are no counts."""
    n_genes: int
    genes_by_panel: dict[str, int]
    n_shared_genes: int
    """Genes that every panel measured."""

    @property
    def n_spots(self) -> int:
        """Rows of the reference."""
        return len(self.rows)

    def composition(self, column: str) -> pd.DataFrame:
        """Spots, sections and donors of each value of a column, the most spots first."""
        grouped = self.rows.groupby(column, observed=True)
        table = grouped.agg(
            **{
                SPOTS: (_keys.SAMPLE, "size"),
                SECTIONS: (_keys.SAMPLE, "nunique"),
                DONORS: (_keys.DONOR, "nunique"),
            }
        )
        return table.sort_index().sort_values(SPOTS, ascending=False, kind="stable")

    @property
    def licenses(self) -> list[tuple[Terms, str, pd.DataFrame]]:
        """Terms, name and sections of each licence, the most restrictive first."""
        found = [(terms_of(str(name)), str(name), group) for name, group in self.sections.groupby("license")]
        return sorted(found, key=lambda one: (-one[0].rank, one[1]))


def gather_facts(reference: AnnData) -> CardFacts:
    """Read the facts from a reference."""
    import pandas as pd

    header = reference_header(reference)
    columns = [_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL]
    rows = reference.obs[columns].astype(str).reset_index(drop=True)
    counts = None
    if _keys.COUNTS in reference.layers:
        counts = np.asarray(reference.layers[_keys.COUNTS].sum(axis=1), dtype=float).ravel()
    measured = np.asarray(reference.varm[_keys.MEASURED], dtype=bool)
    panels = [str(panel) for panel in np.atleast_1d(header["panels"])]

    def joined(values: pd.Series) -> str:
        return ", ".join(sorted(values.unique()))

    sections = rows.groupby(_keys.SAMPLE).agg(
        **{name: (name, joined) for name in (_keys.DONOR, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL)},
        spots=(_keys.SAMPLE, "size"),
    )
    sections["median_counts"] = np.nan if counts is None else pd.Series(counts).groupby(rows[_keys.SAMPLE]).median()
    statistics = header["sections"]
    known = pd.DataFrame(
        {name: np.asarray(statistics[name], dtype=float) for name in ("image_mpp", "upsampling")},
        index=[str(name) for name in statistics["sample"]],
    )
    sources = header["sources"].astype(str)
    sources.index = sources.index.astype(str)
    sections = sections.join(known[~known.index.duplicated()]).join(sources[["license", "citation"]])
    sections[["license", "citation"]] = sections[["license", "citation"]].fillna(_keys.UNKNOWN)
    recipe = header.get("recipe", {})
    return CardFacts(
        header=header,
        recipe={name: str(recipe[name]) for name in ("name", "text", "key") if name in recipe},
        sections=sections,
        rows=rows,
        counts=counts,
        n_genes=reference.n_vars,
        genes_by_panel={panel: int(measured[:, i].sum()) for i, panel in enumerate(panels)},
        n_shared_genes=int(measured.all(axis=1).sum()),
    )


def bibtex_of(citations: list[str]) -> list[str]:
    """Each citation as BibTeX: the entry of the catalogue that is cited so, else what was written, as a note."""
    known = {citation_text(entry): citation_bibtex(entry) for entry in catalog_entries().values()}
    out, number = [], 0
    for citation in sorted(set(citations)):
        if citation in known:
            out.append(known[citation])
        elif citation.lstrip().startswith("@"):
            out.append(citation.strip())
        elif citation != _keys.UNKNOWN:
            number += 1
            # Braces of its own would end the field.
            text = " ".join(citation.replace("{", "(").replace("}", ")").split())
            out.append(f"@misc{{source{number},\n  note = {{{text}}},\n}}")
    return out
