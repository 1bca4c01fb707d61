"""`rg.datasets.data_card`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import UNKNOWN, UNRECOGNISED, terms_of
from ragst_sd.datasets._data_card_facts import bibtex_of, gather_facts
from ragst_sd.datasets._data_card_gaps import gaps
from ragst_sd.datasets._data_card_pictures import draw_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from anndata import AnnData

    from ragst_sd.datasets._data_card_facts import CardFacts

_MADE_BY = "<!-- made by rg.datasets.data_card -->"
_PAGE = "README.md"
_SHORTEST_HASH = 16


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
    >>> print(rg.datasets.data_card(reference, name="Synthetic tissue").splitlines()[2])
    # Synthetic tissue
    """
    facts = gather_facts(reference)
    pictures: list[tuple[str, str]] = []
    folder = None
    if path is not None:
        folder = Path(path)
        check_card_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file, caption, figure in draw_pictures(facts):
            fresh = folder / f".{file}"
            figure.savefig(fresh, format="png")
            fresh.replace(folder / file)
            pictures.append((file, caption))
    text = _markdown(facts, name or facts.recipe.get("name") or "Reference", pictures)
    if folder is not None:
        # Last, so that a page never names pictures that are not there.
        fresh = folder / f".{_PAGE}"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / _PAGE)
    return text


def card_folder(path: Path) -> Path:
    """Where the card of the reference at `path` is written."""
    return path.with_name(f"{path.stem}.card")


def check_card_folder(folder: Path) -> None:
    """Raise a `FileExistsError` if a card cannot be written here without replacing something else."""
    page = folder / _PAGE
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; the data card needs a folder of this name. Move it away."
        raise FileExistsError(msg)
    if page.exists() and not page.read_text(encoding="utf-8", errors="replace").startswith(_MADE_BY):
        msg = f"{page} exists and is not a data card; it is not replaced. Move it away, or choose another folder."
        raise FileExistsError(msg)


def _markdown(facts: CardFacts, title: str, pictures: Sequence[tuple[str, str]]) -> str:
    encoder, header = facts.header["encoder"], facts.header
    worst, worst_name, _ = facts.licenses[0]
    n = len(facts.licenses)
    which = f"the most restrictive of the {n:,} licences of its sections" if n > 1 else "that of all sections"
    bibtex = _fenced("\n\n".join(bibtex_of(list(facts.sections["citation"]))))
    blocks = [
        _MADE_BY,
        f"# {_prose(title)}",
        f"**Licence: {_prose(_license_name(worst_name))}**, {which}. "
        f"It binds the reference as a whole: {worst.meaning}."
        + (" Unclear terms come first." if worst in (UNKNOWN, UNRECOGNISED) and len(facts.licenses) > 1 else ""),
        _table(
            ["", ""],
            [
                ["Spots", f"{facts.n_spots:,}"],
                ["Sections", f"{len(facts.sections):,}"],
                ["Donors", f"{facts.rows[_keys.DONOR].nunique():,}"],
                ["Genes", f"{facts.n_genes:,}"],
                ["Organs", _names(facts.rows[_keys.TISSUE])],
                ["Technologies", _names(facts.rows[_keys.TECHNOLOGY])],
                ["Unit", str(header["normalization"]["unit"])],
                ["Content hash", f"`{header['content_hash']}`"],
                *([["Recipe key", f"`{facts.recipe['key']}`"]] if "key" in facts.recipe else []),
                ["Schema version", str(header["schema_version"])],
            ],
        ),
        "## Known gaps and biases",
        "\n".join(f"- {_prose(line)}" for line in gaps(facts)),
        "## Composition",
        *[f"![{_prose(caption)}]({file})\n\n*{_prose(caption)}*" for file, caption in pictures],
        *_compositions(facts),
        "## Genes",
        *_genes(facts),
        "## Encoder",
        _encoder(encoder, header),
        "## Licences",
        _table(
            ["licence", "meaning", "sections", "spots"],
            [
                [_license_name(name), terms.meaning, f"{len(own):,}", f"{int(own['spots'].sum()):,}"]
                for terms, name, own in facts.licenses
            ],
            numbers=("sections", "spots"),
        ),
        "The meanings are a summary and no legal advice.",
        "## Citations",
        f"```bibtex\n{bibtex}\n```" if bibtex else "No citation is known.",
    ]
    if facts.recipe.get("text"):
        blocks += ["## Recipe", f"```yaml\n{_fenced(facts.recipe['text'].strip())}\n```"]
    return "\n\n".join(blocks) + "\n"


def _compositions(facts: CardFacts) -> list[str]:
    out = []
    for column, what in ((_keys.TISSUE, "organ"), (_keys.TECHNOLOGY, "technology"), (_keys.DONOR, "donor")):
        table = facts.composition(column)
        columns = [name for name in table if not (column == _keys.DONOR and name == "donors")]
        rows = [[str(value), *(f"{int(line[name]):,}" for name in columns)] for value, line in table.iterrows()]
        out += [f"### By {what}", _table([what, *columns], rows, numbers=tuple(columns))]
    return [*out, "### By section", _by_section(facts.sections)]


def _by_section(sections: pd.DataFrame) -> str:
    columns = [
        "section",
        "donor",
        "organ",
        "technology",
        "panel",
        "spots",
        "median counts",
        "microns per pixel",
        "licence",
    ]
    rows = [
        [
            str(name), line[_keys.DONOR], line[_keys.TISSUE], line[_keys.TECHNOLOGY], line[_keys.PANEL], f"{line['spots']:,}",
            _figure(line["median_counts"], ",.0f"), _figure(line["image_mpp"], ".3g"), _license_name(line["license"]),
        ]
        for name, line in sections.iterrows()
    ]  # fmt: skip
    return _table(columns, rows, numbers=("spots", "median counts", "microns per pixel"))


def _genes(facts: CardFacts) -> list[str]:
    spots = facts.rows[_keys.PANEL].value_counts()
    rows = [[panel, f"{n:,}", f"{int(spots.get(panel, 0)):,}"] for panel, n in facts.genes_by_panel.items()]
    shared = len(np.atleast_1d(facts.header["normalization"]["size_factor_genes"]))
    return [
        f"{facts.n_genes:,} genes, {facts.n_shared_genes:,} of them measured by every panel. Size factors rest on the {shared:,} "
        "genes that all panels share.",
        _table(["panel", "genes", "spots"], rows, numbers=("genes", "spots")),
    ]


def _encoder(encoder: dict[str, Any], header: dict[str, Any]) -> str:
    from ragst_sd.pp import encoders

    known = encoders()
    name = str(encoder["encoder"])
    line = known[(known.index == name) | (known["source"] == name)]
    license = str(line["license"].iloc[0]) if len(line) else _keys.UNKNOWN
    mpp = float(encoder["mpp"])
    context = ", ".join(f"{value:g}" for value in np.atleast_1d(encoder["context"]))
    rows = [
        ["Name", name or "without a name"],
        ["Licence", license if terms_of(license) is UNKNOWN else f"{license}: {terms_of(license).meaning}"],
        ["Weights", f"`{str(encoder['weights_hash'])[:_SHORTEST_HASH]}`" if encoder["weights_hash"] else "none"],
        ["Tile", f"{int(encoder['tile_px'])} px" + ("" if np.isnan(mpp) else f" at {mpp:g} microns per pixel")],
        ["Fields of view", f"{context} times the tile"],
        ["Embedding", f'`obsm["{header["use_rep"]}"]`'],
        ["Standardised by section", "yes" if header["standardize"] else "no"],
    ]
    if len(line) and str(line["citation"].iloc[0]):
        rows.append(["Citation", str(line["citation"].iloc[0])])
    return _table(["", ""], rows)


def _license_name(name: str) -> str:
    return "not known" if name == _keys.UNKNOWN else name


def _names(values: pd.Series) -> str:
    return ", ".join(sorted(values.unique()))


def _figure(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "not known"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    rule = ["---:" if name in numbers else "---" for name in columns]
    lines = [columns, *rows]
    shown = [f"| {' | '.join(_cell(str(cell)) for cell in line)} |" for line in lines]
    return "\n".join([shown[0], f"|{'|'.join(rule)}|", *shown[1:]])


def _cell(text: str) -> str:
    """Text for a table; what stands in backticks as a whole is code of our own."""
    return text if re.fullmatch(r"`[^`|\n]+`", text) else _prose(text)


def _prose(text: str) -> str:
    """Text taken letter by letter: names and citations of users cannot change the page."""
    return " ".join(re.sub(r"([\\*_\[\]<>|#`~&])", r"\\\1", str(text)).split())


def _fenced(text: str) -> str:
    """Text that cannot end the block of code that it stands in."""
    return text.replace("```", "'''")
