"""`rg.io.data_card`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._caveats import sentences
from ragst_sd._encoder_facts import encoder_table
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED, ranked, terms_of
from ragst_sd._page import Code, Page, Section, bears, plain, table_of_texts, to_markdown
from ragst_sd._reference import reference_header
from ragst_sd._replacing import replace_text, replaced_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    import pandas as pd
    from anndata import AnnData

    from ragst_sd._page import Picture

PAGE = "README.md"
_MADE_BY = "made by rg.io.data_card"
# Also at the top of cards of earlier versions.
_MARK = ".data_card -->"

_SECTION_COLUMNS = {
    "section": "section",
    _keys.DONOR: "donor",
    _keys.TISSUE: "organ",
    _keys.TECHNOLOGY: "technology",
    _keys.PANEL: "panel",
    "spots": "spots",
    "median_counts": "median counts",
    "image_mpp": "µm per pixel",
    "license": "licence",
}

# Below this, most genes of a whole transcriptome are seen in a minority of spots.
_SHALLOW = 1000
_FEW_SPOTS = 100
_LARGE_SHARE = 0.5
# ... and this many times what it were if all groups had the same number of spots.
_MUCH_LARGER = 1.5
_ENLARGED = 1.25
# A prediction warns from here on, too.
_DIFFERENT_RESOLUTION = 2.0


@dataclass(frozen=True)
class CardFacts:
    """A reference in tables."""

    header: dict[str, Any]
    rows: pd.DataFrame
    """One line per spot: donor, sample, tissue, technology, panel."""
    sections: pd.DataFrame
    """One line per section: donor, tissue, technology, panel, spots, median_counts, image_mpp, upsampling, license, citation."""
    counts: pd.Series | None
    """Counts of each spot in the genes that were kept, `None` if there are no counts."""
    panels: pd.DataFrame
    """One line per panel: genes, spots."""
    n_genes: int
    n_shared_genes: int
    """Genes that every panel measured."""

    def composition(self, column: str) -> pd.DataFrame:
        """Spots, sections and donors of each value of a column, the most spots first."""
        samples, donors = (_keys.SAMPLE, "nunique"), (_keys.DONOR, "nunique")
        table = self.rows.groupby(column).agg(spots=(column, "size"), sections=samples, donors=donors)
        return table.sort_values("spots", ascending=False, kind="stable")


def data_card(reference: AnnData, *, path: str | PathLike[str] | None = None, name: str | None = None) -> str:
    """Describe a reference: what is in it, under which terms, whom to cite, and what is missing.

    Everything is read from the reference itself; nothing is asked of the data it was built from.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`build_recipe`.
    path
        Folder to write the card and its pictures into; made if it does not exist. An earlier card in it is replaced, other
        files stay.
    name
        Title; that of the recipe if left out.

    Returns
    -------
    The card as Markdown. With `path`, `README.md`, `composition.png` (spots by organ, technology and donor) and `depth.png`
    (counts per spot by section, where the reference has counts) are written, and the card shows the pictures.

    The card tells first the most restrictive licence among the sources; then numbers, encoder, composition by organ,
    technology, donor and section, genes and panels, all licences, citations as BibTeX, and gaps and biases that the facts
    show. A citation is turned into the BibTeX of the catalogue where it is one of the catalogue's.

    Raises
    ------
    TypeError, ValueError
        If `reference` is not a reference.
    FileExistsError
        If `path` is a file, or holds a `README.md` that is not a data card.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> print(rg.io.data_card(reference, name="Synthetic tissue").splitlines()[2])
    # Synthetic tissue
    """
    facts = gather_facts(reference)
    pictures: list[Picture] = []
    folder = None if path is None else Path(path)
    if folder is not None:
        from ragst_sd.io._card_pictures import draw_pictures

        check_card_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw_pictures(facts)
        for picture in pictures:
            with replaced_file(folder / picture.file) as beside:
                beside.write_bytes(picture.png)
    text = to_markdown(_page(facts, name, pictures))
    if folder is not None:
        # Last, so that a page never names pictures that are not there.
        replace_text(folder / PAGE, text)
    return text


def check_card_folder(folder: Path) -> None:
    """Raise a `FileExistsError` if a card cannot be written here without replacing something else."""
    page = folder / PAGE
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; the data card needs a folder of this name. Move it away."
        raise FileExistsError(msg)
    if page.exists() and not bears(page, _MARK):
        msg = f"{page} exists and is not a data card; it is not replaced. Move it away, or choose another folder."
        raise FileExistsError(msg)


def gather_facts(reference: AnnData) -> CardFacts:
    """Read the facts from a reference."""
    import pandas as pd

    header = reference_header(reference)
    columns = [_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL]
    rows = reference.obs[columns].astype(str).reset_index(drop=True)
    counts = None
    if _keys.COUNTS in reference.layers:
        counts = pd.Series(np.asarray(reference.layers[_keys.COUNTS].sum(axis=1), dtype=float).ravel())
    grouped = rows.groupby(_keys.SAMPLE)
    sections = grouped.agg(_joined)
    sections["spots"] = grouped.size()
    sections["median_counts"] = np.nan if counts is None else counts.groupby(rows[_keys.SAMPLE]).median()
    statistics = {name: header["sections"][name] for name in ("sample", "image_mpp", "upsampling", "image_hash")}
    known = pd.DataFrame(statistics).astype({"sample": str}).drop_duplicates("sample").set_index("sample")
    sources = header["sources"][["license", "citation"]].astype(str)
    sections = sections.join(known).join(sources.set_axis(sources.index.astype(str)))
    sections[["license", "citation"]] = sections[["license", "citation"]].fillna(_keys.UNKNOWN)
    measured = np.asarray(reference.varm[_keys.MEASURED], dtype=bool)
    panels = pd.DataFrame(
        {"genes": measured.sum(axis=0)}, index=[str(panel) for panel in np.atleast_1d(header["panels"])]
    )
    panels["spots"] = rows[_keys.PANEL].value_counts().reindex(panels.index, fill_value=0)
    return CardFacts(
        header=header,
        rows=rows,
        sections=sections,
        counts=counts,
        panels=panels,
        n_genes=reference.n_vars,
        n_shared_genes=int(measured.all(axis=1).sum()),
    )


def gaps(facts: CardFacts) -> list[str]:
    """The sentences of `_caveats.yaml` that hold for a reference."""
    sections, resolution = facts.sections, facts.sections["upsampling"]
    tables = {column: facts.composition(column) for column in (_keys.DONOR, _keys.TISSUE, _keys.TECHNOLOGY)}
    tissues, terms, cited = tables[_keys.TISSUE], sections["license"].map(terms_of), sections["citation"]
    pictured = sections[sections["image_hash"].fillna("").astype(str) != ""]
    by_picture = [list(group.index) for _, group in pictured.groupby("image_hash")]

    def where(mask: Any) -> list[str]:
        return list(sections.index[mask])

    found = {
        "n_donors": len(tables[_keys.DONOR]),
        "lone_tissues": list(tissues.index[tissues["donors"] == 1]),
        "most": {column: _dominant(table) for column, table in tables.items()},
        "only": {column: table.index[0] if len(table) == 1 else "" for column, table in tables.items()},
        "unknown": {column: table["spots"].get(_keys.UNKNOWN, 0) for column, table in tables.items()},
        "one_publication": cited.nunique() == 1 and cited.iloc[0] != _keys.UNKNOWN,
        "has_counts": facts.counts is not None,
        "shallow_counts": _SHALLOW,
        "shallow": where(sections["median_counts"] < _SHALLOW),
        "few_spots": _FEW_SPOTS,
        "small": where(sections["spots"] < _FEW_SPOTS),
        "largest_upsampling": resolution.max(),
        "enlarged": where(resolution > _ENLARGED),
        "resolutions_differ": resolution.max() / resolution.min() > _DIFFERENT_RESOLUTION,
        "without_mpp": where(sections["image_mpp"].isna()),
        "same_pictures": [names for names in by_picture if len(names) > 1],
        "n_genes": facts.n_genes,
        "n_partial_genes": facts.n_genes - facts.n_shared_genes,
        "unlicensed": where(terms == UNKNOWN),
        "unrecognised_terms": UNRECOGNISED in set(terms),
        "restricted_terms": bool({NON_COMMERCIAL, NO_DERIVATIVES} & set(terms)),
        "uncited": where(cited == _keys.UNKNOWN),
    }
    return sentences("gaps", found)


def _dominant(groups: pd.DataFrame) -> tuple[str, float] | None:
    """The largest of several groups and its share of the spots, if that is far more than an equal one."""
    share = groups["spots"].iloc[0] / groups["spots"].sum()
    large = len(groups) > 1 and share > max(_LARGE_SHARE, _MUCH_LARGER / len(groups))
    return (groups.index[0], share) if large else None


def _page(facts: CardFacts, name: str | None, pictures: Sequence[Picture]) -> Page:
    import pandas as pd

    header, recipe = facts.header, facts.header.get("recipe", {})
    licenses = ranked(facts.sections["license"])
    worst, worst_name, _ = licenses[0]
    several = len(licenses) > 1
    which = f"the most restrictive of the {len(licenses):,} licences of its" if several else "that of all"
    unclear = " Unclear terms come first." if several and worst in (UNKNOWN, UNRECOGNISED) else ""
    spots = facts.sections.groupby("license")["spots"].sum()
    bibtex = "\n\n".join(bibtex_of(facts.sections["citation"]))
    size_factor_genes = len(np.atleast_1d(header["normalization"]["size_factor_genes"]))
    encoder = [
        *encoder_table(header["encoder"]),
        ("embedding", f'`obsm["{plain(header["use_rep"])}"]`'),
        ("standardised by section", "yes" if header["standardize"] else "no"),
    ]
    compositions = {
        "organ": facts.composition(_keys.TISSUE),
        "technology": facts.composition(_keys.TECHNOLOGY),
        "donor": facts.composition(_keys.DONOR).drop(columns="donors"),
    }
    terms = [(_license_name(name), meant.meaning, n, spots[name]) for meant, name, n in licenses]
    sections = [
        Section("Known gaps and biases", [gaps(facts)]),
        Section("Composition", pictures),
        *(Section(f"By {what}", [table_of_texts(table, what)], level=3) for what, table in compositions.items()),
        Section("By section", [_by_section(facts.sections)], level=3),
        Section(
            "Genes",
            [
                f"{facts.n_genes:,} genes, {facts.n_shared_genes:,} of them measured by every panel. Size factors rest on the "
                f"{size_factor_genes:,} genes that all panels share.",
                table_of_texts(facts.panels, "panel"),
            ],
        ),
        Section("Encoder", [pd.DataFrame(encoder, columns=["", ""])]),
        Section(
            "Licences",
            [
                pd.DataFrame(terms, columns=["licence", "meaning", "sections", "spots"]),
                "The meanings are a summary and no legal advice.",
            ],
        ),
        Section("Citations", [Code(bibtex, "bibtex") if bibtex else "No citation is known."]),
    ]
    if recipe.get("text"):
        sections.append(Section("Recipe", [Code(str(recipe["text"]).strip(), "yaml")]))
    return Page(
        generator=_MADE_BY,
        title=plain(name or recipe.get("name") or "Reference"),
        lead=f"Licence: {_license_name(worst_name)}",
        subtitle=f", {which} sections. It binds the reference as a whole: {worst.meaning}.{unclear}",
        glance=_glance(facts, recipe),
        sections=sections,
    )


def _glance(facts: CardFacts, recipe: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows, header = facts.rows, facts.header
    lines = {
        "Spots": f"{len(rows):,}",
        "Sections": f"{len(facts.sections):,}",
        "Donors": f"{rows[_keys.DONOR].nunique():,}",
        "Genes": f"{facts.n_genes:,}",
        "Organs": plain(_joined(rows[_keys.TISSUE])),
        "Technologies": plain(_joined(rows[_keys.TECHNOLOGY])),
        "Unit": plain(header["normalization"]["unit"]),
        "Content hash": f"`{header['content_hash']}`",
        "Recipe key": f"`{recipe['key']}`" if "key" in recipe else "",
        "Schema version": str(header["schema_version"]),
    }
    return [(label, value, "") for label, value in lines.items() if value]


def _by_section(sections: pd.DataFrame) -> pd.DataFrame:
    known = sections.assign(
        median_counts=[f"{counts:,.0f}" if counts == counts else "not known" for counts in sections["median_counts"]],
        image_mpp=[f"{mpp:.3g}" if mpp == mpp else "not known" for mpp in sections["image_mpp"]],
        license=sections["license"].map(_license_name),
    )
    return table_of_texts(known, "section")[list(_SECTION_COLUMNS)].rename(columns=_SECTION_COLUMNS)


def _joined(values: pd.Series) -> str:
    return ", ".join(sorted(set(values)))


def _license_name(name: str) -> str:
    return "not known" if name == _keys.UNKNOWN else plain(name)


def bibtex_of(citations: Iterable[str]) -> list[str]:
    """Each citation as BibTeX: the entry of the catalogue that is cited so, else what was written, as a note."""
    from ragst_sd.datasets._catalog_entries import catalog_entries, citation_bibtex, citation_text

    known = {citation_text(entry): citation_bibtex(entry) for entry in catalog_entries().values()}
    entries, n_notes = [], 0
    for citation in sorted(set(citations) - {_keys.UNKNOWN}):
        if citation in known:
            entries.append(known[citation])
        elif citation.lstrip().startswith("@"):
            entries.append(citation.strip())
        else:
            n_notes += 1
            # Braces of its own would end the field.
            text = " ".join(citation.replace("{", "(").replace("}", ")").split())
            entries.append(f"@misc{{source{n_notes},\n  note = {{{text}}},\n}}")
    return entries
