"""Whether a file is the one it should be: by the catalogue's checksum, or by the one it had when it first came."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ragst_sd._replacing import replace_text

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Hash of the content of a file; read again only if its size or its time of change differ."""
    status = path.stat()
    return _hashed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hashed(path: Path, size: int, changed: int) -> str:
    # Size and time are no more than part of the key: they tell a file that was replaced from what it was.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whats_wrong(path: Path, *, size: int | None, sha256: str | None, note: Path | None = None) -> str | None:
    """What distinguishes a file from the one it should be, `None` if nothing does.

    Parameters
    ----------
    path
        The file.
    size, sha256
        What the catalogue states, `None` where it does not.
    note
        A small file that keeps the hash. So a file of many gigabytes that nobody has touched is not hashed at every call, and one
        whose checksum the catalogue does not know is compared with what first came. It is written if nothing is wrong.
    """
    status = path.stat()
    if size is not None and status.st_size != size:
        return f"{status.st_size} bytes, expected {size}"
    noted = {} if note is None else _read_note(note)
    first = noted.get("sha256")
    untouched = (noted.get("size"), noted.get("changed")) == (status.st_size, status.st_mtime_ns)
    if (note is None and sha256 is None) or (untouched and first == (sha256 or first)):
        return None
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        return f"sha256 {found}, expected {sha256}"
    if sha256 is None and first is not None and found != first:
        return f"sha256 {found}, but {first} when it was first downloaded (delete {note} to accept it)"
    if note is not None:
        if sha256 is None and first is None:
            name = note.name.removeprefix(".").removesuffix(".json")
            logger.info(
                "The catalogue knows no checksum of %s: sha256 %s is noted and compared from now on.", name, found
            )
        replace_text(note, json.dumps({"sha256": found, "size": status.st_size, "changed": status.st_mtime_ns}))
    return None


def _read_note(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text())) if note.is_file() else {}
    except ValueError:
        return {}
