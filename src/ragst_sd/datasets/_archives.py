"""Members of archives, taken out safely: only what is asked for, never outside of the folder, never half."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ragst_sd._replacing import replace_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES = {".zip": "zip", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar": "tar", ".7z": "7z"}

_ENCRYPTED = 0x1
_INDEX = ".members.json"


def archive_kind(name: str) -> str | None:
    """Kind of an archive by its name, `None` if it is none."""
    return next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None)


def extract(
    archive: Path,
    patterns: Sequence[str],
    folder: Path,
    *,
    kind: str,
    password: str | None = None,
    published_at: str | None = None,
) -> list[Path]:
    """Take the members that match out of an archive, unless they have been.

    Parameters
    ----------
    archive
        The archive.
    patterns
        Names of members, or patterns with `*`; each is matched against the end of a member's path as well.
    folder
        Where they go, under their paths in the archive.
    kind
        `zip`, `tar`, `tar.gz` or `7z`.
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
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")), _retold(archive, password, published_at):
        index = folder / _INDEX
        known = dict(json.loads(index.read_text())) if index.is_file() else {}
        asked = " | ".join(patterns)
        # Finding out what a compressed tar holds means to read all of it.
        if asked in known and all((folder / name).is_file() for name in known[asked]):
            return [folder / name for name in known[asked]]
        take = {"zip": _from_zip, "7z": _from_7z}.get(kind, _from_tar)
        found = take(archive, patterns, folder, password)
        known[asked] = [str(path.relative_to(folder)) for path in found]
        replace_text(index, json.dumps(known))
        return found


def matching(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or its end, is one of the names or patterns."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}") for pattern in patterns)


def _from_zip(archive: Path, patterns: Sequence[str], folder: Path, password: str | None) -> list[Path]:
    found = []
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.is_dir() or not matching(member.filename, patterns):
                continue
            target = _inside(folder, member.filename, archive)
            if not target.is_file():
                if member.flag_bits & _ENCRYPTED and password is None:
                    msg = "encrypted"
                    raise _PasswordError(msg)
                with file.open(member, pwd=None if password is None else password.encode()) as source:
                    _copy(source, target)
            found.append(target)
    return found


def _from_tar(archive: Path, patterns: Sequence[str], folder: Path, password: str | None) -> list[Path]:
    found = []
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            # Links could point anywhere; devices are no data.
            if not member.isreg() or not matching(member.name, patterns):
                continue
            target = _inside(folder, member.name, archive)
            source = file.extractfile(member)
            if not target.is_file() and source is not None:
                _copy(source, target)
            found.append(target)
    return found


def _from_7z(archive: Path, patterns: Sequence[str], folder: Path, password: str | None) -> list[Path]:
    try:
        import py7zr
    except ImportError as error:
        msg = (
            f"{archive.name!r} is a 7z archive; the package py7zr reads it: `pip install 'ragst-sd[archives]'`. Or unpack it "
            "yourself and pass the folder with `path=`."
        )
        raise ImportError(msg) from error
    try:
        with py7zr.SevenZipFile(archive, password=password) as file:
            names = [one.filename for one in file.list() if not one.is_directory and matching(one.filename, patterns)]
            targets = [_inside(folder, name, archive) for name in names]
            wanted = [name for name, target in zip(names, targets, strict=True) if not target.is_file()]
            if wanted:
                with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
                    file.extract(path=temporary, targets=wanted)
                    for name in wanted:
                        target = _inside(folder, name, archive)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        (Path(temporary) / name).replace(target)
    except py7zr.exceptions.PasswordRequired as error:
        msg = "encrypted"
        raise _PasswordError(msg) from error
    except (py7zr.exceptions.ArchiveError, _lzma_error(), zlib.error, EOFError) as error:
        # A wrong password shows as content that cannot be decoded, in one way or another.
        if password is not None:
            msg = "wrong"
            raise _PasswordError(msg) from error
        raise _DamagedError(str(error)) from error
    return targets


class _PasswordError(Exception):
    """Missing or wrong."""


class _DamagedError(Exception):
    """The archive cannot be read."""


def _lzma_error() -> type[Exception]:
    import lzma

    return lzma.LZMAError


def _inside(folder: Path, name: str, archive: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    target = folder.joinpath(*parts)
    if not parts or ".." in parts or not target.resolve().is_relative_to(folder.resolve()):
        msg = f"Archive {archive.name!r} holds {name!r}, which would be written outside of its folder. It was not unpacked."
        raise ValueError(msg)
    return target


def _copy(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(target)


@contextmanager
def _retold(archive: Path, password: str | None, published_at: str | None) -> Iterator[None]:
    where = f" Its owners tell how to open it at {published_at}." if published_at else ""
    try:
        yield
    except _PasswordError:
        msg = f"Archive {archive.name!r} is encrypted, and `password=` is missing or wrong.{where}"
        raise PermissionError(msg) from None
    except RuntimeError as error:
        # zipfile has no class of its own for this.
        if "password" not in str(error).lower():
            raise
        msg = f"Archive {archive.name!r} is encrypted, and `password=` is wrong.{where}"
        raise PermissionError(msg) from error
    except NotImplementedError as error:
        msg = f"Archive {archive.name!r} is packed in a way that cannot be read here ({error}).{where} Unpack it yourself and pass the folder with `path=`."
        raise ValueError(msg) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, _DamagedError) as error:
        todo = "Delete it to have it downloaded again." if password is None else "The password may be wrong."
        msg = f"Archive {str(archive)!r} is damaged or incomplete ({error}). {todo}"
        raise ValueError(msg) from error
