"""What a reference is on disk: one zip file, or a folder that an earlier release wrote."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from ragst_sd import _keys

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".zarr.zip"
_SEAL = b"ragst_sd_sha256"


def is_reference(path: Path) -> bool:
    """Whether a file or folder is the whole of a reference, as far as its list of parts tells."""
    if path.is_dir():
        return (path / "uns" / _keys.ATTRS).is_dir()
    try:
        with ZipFile(path) as archive:
            return f"uns/{_keys.ATTRS}/zarr.json" in archive.namelist()
    except (BadZipFile, NotImplementedError):
        # The second where damaged bytes ask for a later version of the format.
        return False


def require_complete(path: Path) -> None:
    """Raise a `ValueError` if parts are missing, which zarr would read as zeros.

    The comment of a zip file holds a digest of its list of parts; the root of a folder, digests of names and sizes of
    files.
    """
    broken: list[str] = []
    if path.is_file():
        with ZipFile(path) as archive:
            if archive.comment.startswith(_SEAL) and archive.comment != parts_digest(archive):
                broken = ["the list of parts"]
    elif (path / "zarr.json").is_file():
        noted = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"].get(_SEAL.decode(), {})
        broken = [part for part in noted if part and noted[part]["files"] != _files_digest(path / part)]
    if broken:
        msg = f"{', '.join(broken)} does not match what was written"
        raise ValueError(msg)


def parts_digest(archive: ZipFile) -> bytes:
    """Digest of the names, sizes and checksums of all parts of a zip file."""
    parts = sorted((part.filename, part.file_size, part.CRC) for part in archive.infolist())
    return _SEAL + b":" + hashlib.sha256(repr(parts).encode()).hexdigest().encode()


def _files_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\x1f{file.stat().st_size}\x1f".encode())
    return digest.hexdigest()
