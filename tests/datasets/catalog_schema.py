"""What an entry of the catalogue must hold: the catalogue ships with the package, so it is checked here and not when it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from ragst_sd._validate import hint, listing
from ragst_sd.datasets._catalog import COUNTS, LABELS, as_list

KINDS = ("spatial", "collection", "scrna", "slide", "screen")
LAYOUTS = ("st_tsv", "st_h5ad", "visium", "visium_hd", "xenium", "hest", "slide", "h5ad", "census", "screen", "other")
LOADERS = LAYOUTS[:-1]
STATUSES = ("tested", "listed")
SPECIES = ("Homo sapiens", "Mus musculus")
ARCHIVES = ("zip", "tar", "tar.gz")
NONE_STATED, UNKNOWN = "none stated", "unknown"

FIELDS = (
    *("name", "title", "kind", *LABELS, "accession", "doi", "url", *COUNTS, "image_mpp"),
    *("license", "redistribution", "commercial_use", "gated", "citation", "layout", "loader", "um_between_centers"),
    *("query", "files", "samples", "status", "unverified", "checked", "notes"),
)
FILE_FIELDS = ("name", "url", "size", "sha256", "archive", "password_published_at")
CITATION_FIELDS = ("author", "title", "journal", "year", "doi", "url")

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_DOI = re.compile(r"10\.\d{4,9}/\S+")
_URL = re.compile(r"https?://\S+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_catalog(entries: Any) -> None:
    """Raise a `ValueError` that names entry and field of every fault."""
    found = catalog_faults(entries)
    if found:
        msg = f"{len(found)} fault(s) in the catalogue:\n" + "\n".join(f"- {fault}" for fault in found)
        raise ValueError(msg)


def catalog_faults(entries: Any) -> list[str]:
    """Everything that is wrong with a list of entries, one sentence each."""
    if not isinstance(entries, list):
        return [f"A catalogue is a list of entries, not a {type(entries).__name__}."]
    found, names = [], []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            found.append(f"Entry number {i + 1} is a {type(entry).__name__}; it must be a mapping of fields.")
            continue
        name = entry.get("name")
        label = repr(name) if name else f"number {i + 1}"
        found += [f"Entry {label}: {fault}" for fault in _entry_faults(entry)]
        names.append(str(name))
    found += [
        f"Entry {name!r}: `name` is used {names.count(name)} times."
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    if not found and names != sorted(names):
        late = next(b for a, b in pairwise(names) if b < a)
        found.append(f"Entry {late!r}: entries are sorted by `name`; it stands too late.")
    return found


def _entry_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    if _empty(entry.get("license")):
        yield f"`license` is missing; write its SPDX identifier, {NONE_STATED!r} or {UNKNOWN!r}."
    missing = [field for field in FIELDS if field not in entry and field != "license"]
    if missing:
        yield f"{listing(missing)} missing; write null for what is not known."
    for field in entry:
        if field not in FIELDS:
            yield f"{field!r} is no field.{hint(str(field), FIELDS)}"
    if not missing and not _empty(entry.get("license")):
        yield from _value_faults(entry)
        yield from _right_faults(entry)
        yield from _citation_faults(entry["citation"])
        yield from _file_faults(entry)
        yield from _sample_faults(entry)
        yield from _unverified_faults(entry)


def _value_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    if not _matches(_NAME, entry["name"]):
        yield f"`name` is {entry['name']!r}; it must be lower-case words joined by '_'."
    for field in ("title", "checked"):
        if not isinstance(entry[field], str) or _empty(entry[field]):
            yield f"`{field}` is {entry[field]!r}; it must be a text."
    for field in ("accession", "query", "notes"):
        if entry[field] is not None and (not isinstance(entry[field], str) or _empty(entry[field])):
            yield f"`{field}` is {entry[field]!r}; it must be a text or null."
    for field, choices in (("kind", KINDS), ("layout", LAYOUTS), ("status", STATUSES)):
        if entry[field] not in choices:
            yield f"`{field}` is {entry[field]!r}; it must be one of {listing(choices)}.{hint(str(entry[field]), choices)}"
    if entry["loader"] is not None and entry["loader"] not in LOADERS:
        yield f"`loader` is {entry['loader']!r}; it must be null or one of {listing(LOADERS)}.{hint(str(entry['loader']), LOADERS)}"
    for field in LABELS:
        labels = as_list(entry[field])
        if any(not isinstance(label, str) or _empty(label) for label in labels) or len(set(map(str, labels))) < len(
            labels
        ):
            yield f"`{field}` is {entry[field]!r}; it must be null, a text or a list of different texts."
        elif field == "species" and set(labels) - set(SPECIES):
            yield f"`species` is {entry[field]!r}; known are {listing(SPECIES)}."
    for field in COUNTS:
        if entry[field] is not None and not _whole(entry[field]):
            yield f"`{field}` is {entry[field]!r}; it must be a whole number above zero or null."
    for field in ("image_mpp", "um_between_centers"):
        value = entry[field]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            yield f"`{field}` is {value!r}; it must be a number above zero or null."
    if entry["doi"] is not None and not _matches(_DOI, entry["doi"]):
        yield f"`doi` is {entry['doi']!r}; it must look like '10.1038/s41467-021-26271-2' or be null."
    if entry["url"] is not None and not _matches(_URL, entry["url"]):
        yield f"`url` is {entry['url']!r}; it must start with http:// or https:// or be null."
    if entry["status"] == "tested" and entry["loader"] is None:
        yield "`status` is 'tested', but `loader` is null: nothing can have been tested."
    if (entry["loader"] == "census") != (entry["query"] is not None):
        yield "`query` and the loader 'census' belong together; one of them is missing."


def _right_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    license = entry["license"]
    unconfirmed = license in (NONE_STATED, UNKNOWN) or "license" in as_list(entry["unverified"])
    if license not in (NONE_STATED, UNKNOWN) and not _matches(_SPDX, license):
        yield f"`license` is {license!r}; it must be an SPDX identifier, {NONE_STATED!r} or {UNKNOWN!r}."
    for field in ("redistribution", "commercial_use"):
        if entry[field] not in (None, True, False):
            yield f"`{field}` is {entry[field]!r}; it must be true, false or null."
        elif entry[field] and unconfirmed:
            yield f"`{field}` is true, but the licence {license!r} is not confirmed; write null."
    if entry["commercial_use"] and "-NC" in str(license):
        yield f"`commercial_use` is true, but {license} forbids it."
    if not isinstance(entry["gated"], bool):
        yield f"`gated` is {entry['gated']!r}; it must be true or false."
    if license == UNKNOWN and "license" not in as_list(entry["unverified"]):
        yield "`license` is 'unknown' and must be named in `unverified`."


def _citation_faults(citation: Any) -> Iterator[str]:
    if (
        not isinstance(citation, Mapping)
        or not citation.get("title")
        or not (citation.get("doi") or citation.get("url"))
    ):
        yield f"`citation` is {citation!r}; it must hold a title and a doi or url."
        return
    for field in citation:
        if field not in CITATION_FIELDS:
            yield f"`citation` has no field {field!r}.{hint(str(field), CITATION_FIELDS)}"
    if citation.get("year") is not None and not (_whole(citation["year"]) and 1990 < citation["year"] < 2100):
        yield f"`citation` has the year {citation['year']!r}."
    if citation.get("doi") is not None and not _matches(_DOI, citation["doi"]):
        yield f"`citation` has the doi {citation['doi']!r}."


def _file_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entry["files"], list) or not all(isinstance(file, Mapping) for file in entry["files"]):
        yield "`files` must be a list of mappings, empty if no address is known."
        return
    names = [file.get("name") for file in entry["files"]]
    for file in entry["files"]:
        name, label = file.get("name"), f"`files`, {file.get('name')!r}"
        for field in FILE_FIELDS[:4]:
            if field not in file:
                yield f"{label}: `{field}` is missing; write null if it is not known."
        for field in file:
            if field not in FILE_FIELDS:
                yield f"{label}: {field!r} is no field; known are {listing(FILE_FIELDS)}."
        if not isinstance(name, str) or not name or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            yield f"{label}: `name` must be a relative path without '..'."
        elif names.count(name) > 1:
            yield f"{label}: `name` is used {names.count(name)} times."
        if file.get("url") is not None and not _matches(_URL, file["url"]):
            yield f"{label}: `url` is {file['url']!r}; it must start with http:// or https:// or be null."
        if file.get("size") is not None and not _whole(file["size"]):
            yield f"{label}: `size` is {file['size']!r}; it must be a whole number of bytes or null."
        if file.get("sha256") is not None and not _matches(_SHA256, file["sha256"]):
            yield f"{label}: `sha256` is {file['sha256']!r}; it must be 64 lower-case hexadecimal digits or null."
        if file.get("archive") is not None and file["archive"] not in ARCHIVES:
            yield f"{label}: `archive` is {file['archive']!r}; it must be one of {listing(ARCHIVES)}."


def _sample_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    samples = entry["samples"]
    if not isinstance(samples, Mapping):
        yield "`samples` must be a mapping of section to donor and files, empty if nothing can be loaded."
        return
    if entry["loader"] not in (None, "census") and not samples:
        yield f"`samples` is empty, but the loader {entry['loader']!r} needs them."
    files = {file.get("name"): file.get("archive") for file in as_list(entry["files"]) if isinstance(file, Mapping)}
    for sample, details in samples.items():
        label = f"`samples`, {sample!r}"
        if (
            not isinstance(details, Mapping)
            or set(details) != {"donor", "files"}
            or not isinstance(details["files"], Mapping)
        ):
            yield f"{label}: it must hold `donor` and `files`, and nothing else."
            continue
        if not isinstance(details["donor"], str) or _empty(details["donor"]):
            yield f"{label}: `donor` is {details['donor']!r}; it must be a text."
        if not details["files"]:
            yield f"{label}: `files` is empty."
        for role, name in details["files"].items():
            inside = any(archive and str(name).startswith(f"{known}/") for known, archive in files.items())
            if name not in files and not inside:
                yield f"{label}: the file {name!r} ({role}) is neither in `files` nor a member of an archive there."


def _unverified_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entry["unverified"], list):
        yield f"`unverified` is {entry['unverified']!r}; it must be a list of fields."
        return
    for field in entry["unverified"]:
        if field not in FIELDS or field in ("name", "status", "unverified", "checked"):
            yield f"`unverified` names {field!r}, which is no field that can be.{hint(str(field), FIELDS)}"
        elif _empty(entry[field]):
            yield f"`unverified` names `{field}`, which is empty."


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
