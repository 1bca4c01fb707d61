"""Whether a file is the one it should be: by the catalogue's checksum, or by the one it had when it first came."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Hash of the content; read again only if size or time of change differ."""
    status = path.stat()
    return _hashed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hashed(path: Path, size: int, changed: int) -> str:  # the last two tell a file that was replaced from what it was
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whats_wrong(path: Path, *, size: int | None, sha256: str | None) -> str | None:
    """What distinguishes a file from the one it should be, `None` if nothing does.

    A note beside the file keeps its hash, so that a file of many gigabytes that nobody has touched is not hashed at every
    call, and one that the catalogue knows no checksum of is held to what it was at first.
    """
    status = path.stat()
    if size is not None and status.st_size != size:
        return f"{status.st_size} bytes, expected {size}"
    noted = _note(path)
    untouched = (noted.get("size"), noted.get("changed")) == (status.st_size, status.st_mtime_ns)
    expected = sha256 or noted.get("sha256")
    if untouched and noted.get("sha256") == expected:
        return None
    found = sha256_of(path)
    if expected is not None and found != expected:
        return f"sha256 {found}, expected {expected}"
    _write_note(path, found)
    return None


def matches(part: Path, target: Path, *, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a download before it takes the name of `target`, `None` if nothing is."""
    found = part.stat().st_size
    if size is not None and found != size:
        return f"{found} bytes, expected {size}"
    first = _note(target).get("sha256")
    if sha256 is None and first is not None:
        digest = sha256_of(part)
        if digest != first:
            return (
                f"sha256 {digest}, but {first} when it was first downloaded (delete {_note_path(target)} to accept it)"
            )
    elif sha256 is not None:
        digest = sha256_of(part)
        if digest != sha256:
            return f"sha256 {digest}, expected {sha256}"
    return None


def note_new(path: Path, *, known: bool) -> None:
    """Keep the hash of a file that has just come."""
    found = sha256_of(path)
    if not known:
        logger.info(
            "The catalogue knows no checksum of %s: sha256 %s is noted and compared from now on.", path.name, found
        )
    _write_note(path, found)


def _write_note(path: Path, sha256: str) -> None:
    status = path.stat()
    content = {"sha256": sha256, "size": status.st_size, "changed": status.st_mtime_ns}
    temporary = _note_path(path).with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(_note_path(path))


def _note(path: Path) -> dict[str, Any]:
    file = _note_path(path)
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except ValueError:
        return {}


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")
