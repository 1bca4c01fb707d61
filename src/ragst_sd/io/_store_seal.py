"""The checksums of a store: every file that was written is the file that is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = "zarr.json"
_SEAL = "ragst_sd_sha256"
# What a lazy reference holds in memory; its other arrays stay on disk, and each of their chunks has a checksum of its own.
SMALL = ("obs", "var", "varm", "uns")


def seal(folder: Path) -> None:
    """Write a checksum of each part of a store into its root."""
    root = json.loads((folder / ROOT).read_text(encoding="utf-8"))
    root["attributes"].pop(_SEAL, None)
    parts = {part.name: _digest(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    root["attributes"][_SEAL] = {**parts, "": _root_digest(root)}
    (folder / ROOT).write_text(json.dumps(root, indent=2), encoding="utf-8")


def broken_parts(folder: Path, *, only: Collection[str] | None = None) -> list[str]:
    """Parts of a store that are not as they were written; none for a store without checksums.

    Parameters
    ----------
    folder
        The store.
    only
        Parts to read through; of the others only the metadata, and names and sizes of files, are looked at.
    """
    if not (folder / ROOT).is_file():
        return []
    root = json.loads((folder / ROOT).read_text(encoding="utf-8"))
    attributes = root.get("attributes")
    sealed = attributes.pop(_SEAL, None) if isinstance(attributes, dict) else {}
    if sealed is None:
        return []
    if not isinstance(sealed, dict):
        return [ROOT]
    broken = [] if sealed.get("") == _root_digest(root) else [ROOT]
    present = {part.name for part in folder.iterdir() if part.is_dir()}
    names = sorted(present | (set(sealed) - {""}))
    for name in names:
        found = _digest(folder / name, whole=only is None or name in only) if name in present else {}
        expected = sealed.get(name)
        if not found or not isinstance(expected, dict) or any(expected.get(key) != found[key] for key in found):
            broken.append(name)
    return broken


def _root_digest(root: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(root, sort_keys=True).encode()).hexdigest()


def _digest(folder: Path, *, whole: bool = True) -> dict[str, str]:
    """Checksum of the metadata below a folder, of which files of which size lie there, and of all that they hold."""
    metadata, files, content = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = file.relative_to(folder).as_posix().encode() + b"\x1f"
        # A chunk that is gone reads as zeros, without an error.
        files.update(name + str(file.stat().st_size).encode() + b"\x1f")
        is_metadata = file.name == ROOT
        if not (whole or is_metadata):
            continue
        with file.open("rb") as handle:
            line = name + hashlib.file_digest(handle, "sha256").digest()
        content.update(line)
        if is_metadata:
            metadata.update(line)
    found = {"metadata": metadata.hexdigest(), "files": files.hexdigest()}
    return found | {"content": content.hexdigest()} if whole else found
