"""Members of archives, taken out safely: only what is asked for, never outside of the folder, never half."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from ragst_sd._replacing import replace_text, replaced_file

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
_INDEX = ".members.json"


def extract(
    archive: Path,
    patterns: Sequence[str],
    folder: Path,
    *,
    password: str | None = None,
    published_at: str | None = None,
) -> list[Path]:
    """Take the members that match out of a zip or tar archive, unless they have been.

    Parameters
    ----------
    archive
        The archive.
    patterns
        Names of members, or patterns with `*`; each is matched against the end of a member's path as well.
    folder
        Where they go, under their paths in the archive.
    password
        For an encrypted archive.
    published_at
        Where the owner tells the password, for the message.

    Returns
    -------
    Files below `folder`, in the order of the archive; empty if none matches.

    Raises
    ------
    PermissionError
        If the archive is encrypted and the password is missing or wrong.
    ValueError
        If the archive is damaged, or a member would land outside of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / _INDEX
    with FileLock(folder.with_name(f".{folder.name}.lock")), _archive_errors(archive, password, published_at):
        known = dict(json.loads(index.read_text())) if index.is_file() else {}
        asked = " | ".join(patterns)
        # Finding out what a compressed tar holds means to read all of it.
        if asked in known and all((folder / name).is_file() for name in known[asked]):
            return [folder / name for name in known[asked]]
        found = []
        members = _tar_members if tarfile.is_tarfile(archive) else _zip_members
        for name, content in members(archive, patterns, password):
            target = _inside(folder, name, archive)
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                with replaced_file(target) as unfinished, unfinished.open("wb") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
            found.append(target)
        known[asked] = [str(path.relative_to(folder)) for path in found]
        replace_text(index, json.dumps(known))
        return found


def matching(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or its end, is one of the names or patterns."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}") for pattern in patterns)


def _zip_members(archive: Path, patterns: Sequence[str], password: str | None) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir() and matching(member.filename, patterns):
                with file.open(member, pwd=None if password is None else password.encode()) as content:
                    yield member.filename, content


def _tar_members(archive: Path, patterns: Sequence[str], password: str | None) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            # Links could point anywhere; devices are no data.
            content = file.extractfile(member) if member.isreg() and matching(member.name, patterns) else None
            if content is not None:
                yield member.name, content


def _inside(folder: Path, name: str, archive: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    target = folder.joinpath(*parts)
    if not parts or ".." in parts or not target.resolve().is_relative_to(folder.resolve()):
        msg = (
            f"Archive {archive.name!r} holds {name!r}, which would be written outside of its folder. It was not "
            "unpacked."
        )
        raise ValueError(msg)
    return target


@contextmanager
def _archive_errors(archive: Path, password: str | None, published_at: str | None) -> Iterator[None]:
    where = f" Its owners tell how to open it at {published_at}." if published_at else ""
    try:
        yield
    except NotImplementedError as error:
        msg = (
            f"Archive {archive.name!r} is packed in a way that cannot be read here ({error}).{where} Unpack it "
            "yourself and pass the folder with `path=`."
        )
        raise ValueError(msg) from error
    except RuntimeError as error:
        # zipfile has no class of its own for this.
        if "password" not in str(error).lower():
            raise
        msg = f"Archive {archive.name!r} is encrypted, and `password=` is missing or wrong.{where}"
        raise PermissionError(msg) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        todo = "Delete it to have it downloaded again." if password is None else "The password may be wrong."
        msg = f"Archive {str(archive)!r} is damaged or incomplete ({error}). {todo}"
        raise ValueError(msg) from error
