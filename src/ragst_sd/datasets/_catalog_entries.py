"""The catalogue that ships with the package, entry by entry, and how to cite an entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ragst_sd._validate import require_key

# Fields that hold nothing, one text or several, and those that hold a number.
LABELS = ("organ", "species", "disease", "technology")
COUNTS = ("donors", "sections", "spots", "genes")
CATALOG = Path(__file__).with_name("catalog.yaml")


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
