"""The catalogue of public data sets: as a table, entry by entry, and how to cite an entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ragst_sd._validate import require_choice, require_key

# Fields that hold nothing, one text or several, and those that hold a number.
LABELS = ("organ", "species", "disease", "technology")
COUNTS = ("donors", "sections", "spots", "genes")
CATALOG = Path(__file__).with_name("catalog.yaml")

_COLUMNS = (
    *("title", "kind", *LABELS, *COUNTS, "image_mpp", "license", "redistribution", "commercial_use", "gated"),
    *("status", "loader", "layout", "samples", "files", "size", "accession", "doi", "url", "query"),
    *("citation", "bibtex", "unverified", "checked", "notes"),
)
_COUNTED = (*COUNTS, "samples", "files", "size")
_FLAGS = ("redistribution", "commercial_use", "gated")


def catalog(
    *,
    organ: str | Sequence[str] | None = None,
    species: str | Sequence[str] | None = None,
    technology: str | Sequence[str] | None = None,
    kind: str | Sequence[str] | None = None,
    license: str | Sequence[str] | None = None,
    status: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """List public data sets of H&E with spatial expression, and scRNA-seq that matches them.

    Nothing is downloaded. Each filter takes one value or several; an entry with several organs (species, technologies)
    is kept if one of them matches. Collections over many organs have the organ "multiple".

    Parameters
    ----------
    organ
        Organs. They are named alike in spatial and in single-cell entries.
    species
        "Homo sapiens", "Mus musculus".
    technology
        "ST", "Visium", "Visium HD", "Xenium", "scRNA-seq".
    kind
        "spatial", "collection" (many studies in one), "scrna", "slide" (a picture without expression),
        "screen" (of perturbations, :func:`ragst_sd.datasets.load_screen`).
    license
        SPDX identifiers, "none stated" or "unknown".
    status
        "tested": :func:`ragst_sd.datasets.load` is run on the entry by the tests of the package, on small made files
        in the layout, under the names and at the addresses that the entry gives; "listed": nothing is run. Neither
        says that an address still answers.

    Returns
    -------
    One row per data set (the index `name`, sorted):

    - `title`, `kind`, `organ`, `species`, `disease`, `technology`: several values are joined by ", ";
    - `donors`, `sections`, `spots`, `genes`: of the whole data set, missing where not known;
    - `image_mpp`: microns per pixel of the picture;
    - `license`, `redistribution`, `commercial_use`: what the licence is and allows. A flag is missing where the licence
      could not be confirmed: ask the owner;
    - `gated`: terms have to be accepted with an account before a download;
    - `status`, `loader`, `layout`: which loader reads it, and how its files are laid out;
    - `samples`, `files`, `size`: how many sections can be loaded, from how many files, and the bytes of all files,
      missing unless all are known;
    - `accession`, `doi`, `url`, `query` (the filter of a CELLxGENE Census query);
    - `citation`, `bibtex`: what to cite;
    - `unverified`: which of the fields were written down without a source that was read; `checked`: what was read for
      the others; `notes`.

    Raises
    ------
    ValueError
        If no entry has a value that is asked for; the message lists those that exist.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> rg.datasets.catalog(organ="breast", technology="ST").loc["her2st", "license"]
    'CC-BY-4.0'
    """
    entries = everything = catalog_entries()
    filters = {"organ": organ, "species": species, "technology": technology}
    filters |= {"kind": kind, "license": license, "status": status}
    for field, wanted in filters.items():
        known = sorted({value for entry in everything.values() for value in as_list(entry[field])})
        for value in as_list(wanted):
            require_choice(value, known, field)
        if wanted is not None:
            entries = {name: e for name, e in entries.items() if set(as_list(e[field])) & set(as_list(wanted))}

    rows = []
    for entry in entries.values():
        sizes = [file["size"] for file in entry["files"]]
        row = {
            **entry,
            **{field: ", ".join(as_list(entry[field])) for field in (*LABELS, "unverified")},
            "samples": len(entry["samples"]),
            "files": len(sizes),
            "size": sum(sizes) if sizes and all(sizes) else None,
            "citation": citation_text(entry),
            "bibtex": citation_bibtex(entry),
        }
        rows.append(row)
    table = pd.DataFrame(rows, columns=["name", *_COLUMNS]).set_index("name")
    texts = [column for column in _COLUMNS if column not in (*_COUNTED, *_FLAGS, "image_mpp")]
    table[texts] = table[texts].fillna("")
    kinds = {**dict.fromkeys(_COUNTED, "Int64"), **dict.fromkeys(_FLAGS, "boolean"), **dict.fromkeys(texts, "str")}
    return table.astype({**kinds, "image_mpp": "float64"})


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in yaml.safe_load(CATALOG.read_text(encoding="utf-8"))}


def catalog_entries() -> dict[str, dict[str, Any]]:
    """All entries that ship with the package; changing them changes nothing for the next caller."""
    return deepcopy(_shipped())


def catalog_entry(name: str) -> dict[str, Any]:
    """One entry that ships with the package; a name that it does not know is a `KeyError` that lists them."""
    require_key(name, _shipped(), "rg.datasets.catalog()", "Look through `rg.datasets.catalog()`.")
    return deepcopy(_shipped()[name])


def require_loader(entry: Mapping[str, Any], function: str) -> None:
    """Raise a `ValueError` that names the right function unless this one of `rg.datasets` loads an entry."""
    name, loader = entry["name"], entry["loader"]
    if loader is None:
        raise ValueError(
            f"{name!r} is listed but cannot be loaded: its files have no known address or a layout of their own. See "
            f"{entry.get('url')}; `rg.io` and spatialdata-io have readers."
        )
    right = {"census": "load_census", "screen": "load_screen"}.get(loader, "load")
    if function != right:
        raise ValueError(
            f"{name!r} is of the kind {entry['kind']!r}: `rg.datasets.{right}({name!r})` loads it, and not "
            f"`rg.datasets.{function}`."
        )


def as_list(value: Any) -> list[Any]:
    """A field that holds nothing, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def citation_text(entry: Mapping[str, Any]) -> str:
    """Reference of an entry in one line."""
    fields = entry["citation"]
    author = str(fields.get("author") or "").replace("{", "").replace("}", "")
    # BibTeX joins authors by "and"; people write commas.
    author = author.replace(" and others", " et al.").replace(" and ", "; ")
    place = f"https://doi.org/{fields['doi']}" if fields.get("doi") else fields["url"]
    parts = [part for part in (author, fields["title"], fields.get("journal"), place) if part]
    if fields.get("year"):
        # Behind the author, or the title where there is none.
        parts[0] = f"{parts[0]} ({fields['year']})"
    return ". ".join(part.rstrip(".") for part in parts)


def citation_bibtex(entry: Mapping[str, Any]) -> str:
    """Reference of an entry as BibTeX, with its name as the key."""
    fields = dict(entry["citation"])
    journal = fields.pop("journal", None)
    kind = "article" if fields.get("doi") else "misc"
    if journal:
        fields["journal" if kind == "article" else "howpublished"] = journal
    lines = [f"  {field} = {{{value}}}," for field, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{entry['name']},", *lines, "}"])
