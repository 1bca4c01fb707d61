"""Directive `catalogue`: the data sets of the package as an HTML table, made from its YAML file when the docs are built."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import Directive

from ragst_sd.datasets._catalog import CATALOG, as_list, catalog_entries, citation_bibtex, citation_text

if TYPE_CHECKING:
    from sphinx.application import Sphinx

COLUMNS = (
    ("Data set", "text"),
    ("Organ", "text"),
    ("Species", "text"),
    ("Technology", "text"),
    ("Licence", "text"),
    ("Pass on", "text"),
    ("Commercial", "text"),
    ("Loader", "text"),
    ("Donors", "number"),
    ("Sections", "number"),
    ("Spots", "number"),
    ("Genes", "number"),
    ("µm/px", "number"),
)
KINDS = ("spatial", "collection", "slide", "scrna", "screen")
SHORT = {"Homo sapiens": "H. sapiens", "Mus musculus": "M. musculus"}
FLAGS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("open", "?")}


class Catalogue(Directive):
    """Put the table here."""

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        for made_of in (str(CATALOG), __file__):
            self.state.document.settings.env.note_dependency(made_of)
        return [nodes.raw("", table(catalog_entries()), format="html")]


def table(entries: dict[str, dict[str, Any]]) -> str:
    """All entries as one table, readable without the script that filters and sorts it."""
    head = "".join(f'<th scope="col" data-kind="{kind}">{name}</th>' for name, kind in COLUMNS)
    body = "\n".join(row(entry) for entry in sorted(entries.values(), key=lambda entry: KINDS.index(entry["kind"])))
    return (
        '<link rel="stylesheet" href="_static/catalogue.css">\n'
        '<div class="catalogue"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
        '<script src="_static/catalogue.js" defer></script>\n'
    )


def row(entry: dict[str, Any]) -> str:
    """One entry; what does not fit into columns is folded under its title."""
    cells = [
        f'<th scope="row"><code>{escape(entry["name"])}</code>{details(entry)}</th>',
        f"<td>{words(entry, 'organ')}</td>",
        *(f'<td class="nowrap">{words(entry, field)}</td>' for field in ("species", "technology", "license")),
        *(flag(entry, field) for field in ("redistribution", "commercial_use")),
        f"<td>{escape(entry['loader'] or '')}{' <em>tested</em>' if entry['status'] == 'tested' else ''}</td>",
        *(number(entry, field) for field in ("donors", "sections", "spots", "genes", "image_mpp")),
    ]
    # The script filters by these, so that a word of the folded text does not count as an organ.
    data = {
        "organ": "|".join(as_list(entry["organ"])),
        "species": "|".join(as_list(entry["species"])),
        "technology": "|".join(as_list(entry["technology"])),
        "kind": entry["kind"],
        "commercial": FLAGS[entry["commercial_use"]][0],
        "loader": "yes" if entry["loader"] else "no",
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    return f"<tr {attributes}>{''.join(cells)}</tr>"


def details(entry: dict[str, Any]) -> str:
    """Title, and everything else folded under it."""
    doi = entry["doi"] and link(f"https://doi.org/{entry['doi']}", entry["doi"])
    size = [file["size"] for file in entry["files"]]
    hashed = sum(file["sha256"] is not None for file in entry["files"])
    files = f"{len(size)}, {hashed} with a sha256" if size else ""
    lines = {
        "Kind": entry["kind"],
        "Disease": words(entry, "disease"),
        "Page": entry["url"] and link(entry["url"], entry["url"]),
        "Accession": words(entry, "accession"),
        "DOI": doi,
        "Query": entry["query"] and f"<code>{escape(entry['query'])}</code>",
        "Files": files + (", after accepting terms" if entry["gated"] else ""),
        "Cite": escape(citation_text(entry)),
        "Notes": escape(entry["notes"] or ""),
        "Read": escape(entry["checked"]),
        "Open": escape(", ".join(entry["unverified"])),
    }
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines.items() if value)
    bibtex = f"<pre>{escape(citation_bibtex(entry))}</pre>"
    return f"<details><summary>{escape(entry['title'])}</summary><dl>{items}</dl>{bibtex}</details>"


def words(entry: dict[str, Any], field: str) -> str:
    """A field with one or several texts."""
    text = escape(",\n".join(SHORT.get(value, value) for value in as_list(entry[field])))
    return text + mark(entry, field) if text else ""


def number(entry: dict[str, Any], field: str) -> str:
    """A cell with a count or a size, and its plain value for sorting."""
    value = entry[field]
    if value is None:
        return '<td class="number"></td>'
    text = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f'<td class="number" data-value="{value}">{text}{mark(entry, field)}</td>'


def flag(entry: dict[str, Any], field: str) -> str:
    """A cell that says whether something is allowed."""
    word, sign = FLAGS[entry[field]]
    label = {"yes": "allowed", "no": "not allowed", "open": "not confirmed"}[word]
    return f'<td class="flag {word}" data-value="{word}"><span title="{label}" aria-label="{label}">{sign}</span></td>'


def mark(entry: dict[str, Any], field: str) -> str:
    """A dagger behind what could not be confirmed."""
    return '<sup title="not confirmed">†</sup>' if field in entry["unverified"] else ""


def link(url: str, text: str) -> str:
    """A link out of the documentation."""
    return f'<a class="reference external" href="{escape(url)}">{escape(text)}</a>'


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("catalogue", Catalogue)
    return {"parallel_read_safe": True}
