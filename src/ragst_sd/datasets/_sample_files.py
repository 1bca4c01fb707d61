"""Files of one section of a data set: given by the user, in a mirror, or downloaded into the cache."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from ragst_sd._replacing import fresh_folder, recover, replace_text, version_of
from ragst_sd._settings import settings
from ragst_sd._validate import listing, require_key
from ragst_sd.datasets._download import fetch, whats_wrong
from ragst_sd.io._check_downloaded import check_downloaded

logger = logging.getLogger(__name__)

MIRROR = "RAGST_SD_DATA_DIR"
Entry = Mapping[str, Any]

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


def mirror_folder() -> Path | None:
    """The folder of the user's own copies of data sets, whether or not it is there."""
    mirror = os.environ.get(MIRROR, "").strip()
    return Path(mirror).expanduser() if mirror else None


@dataclass(frozen=True)
class Shelf:
    """The files of a data set, wherever they are: in the user's folder, in the mirror, in the cache, or at a server."""

    dataset: str
    files: Mapping[str, Entry]
    """Entries of the catalogue by name of the file."""
    given: Path | None
    """The user's folder: nothing is downloaded if there is one."""
    cache: Path
    """Folder of this data set in the cache."""
    page: str | None = None
    """Where the data set is described."""
    password: str | None = None
    progress: bool = False

    def get(self, name: str) -> Path:
        """Path of a file (or of the folder that an archive was unpacked into), downloaded if need be.

        Raises
        ------
        FileNotFoundError
            If it is not in the user's folder, or no address is known.
        ValueError
            If a file of the mirror is not what the catalogue states, or one that was downloaded holds what
            :func:`check_downloaded` refuses.
        """
        about = self.files[name]
        if self.given is not None:
            path = _at(self.given, name)
            if path is None:
                raise FileNotFoundError(
                    f"{name!r} of data set {self.dataset!r} is not in `path={str(self.given)!r}`. It holds "
                    f"{listing(sorted(file.name for file in self.given.iterdir()))}."
                )
            return path
        mirror = mirror_folder()
        if mirror is not None and not mirror.is_dir():
            logger.warning("%s names %r, which is no folder: there is no mirror.", MIRROR, str(mirror))
        path = None if mirror is None else _at(mirror / self.dataset, name)
        if path is not None:
            wrong = whats_wrong(path, about) if path.is_file() else None
            if wrong is not None:
                raise ValueError(
                    f"{str(path)!r} in the mirror ({MIRROR}) is not the file of the catalogue: {wrong}. Replace "
                    "or remove it."
                )
            return path
        page = f" (see {self.page})" if self.page else ""
        advice = f"put the file{page} at <folder>/{self.dataset}/{name} and set {MIRROR}=<folder>"
        if about.get("url") is None:
            raise FileNotFoundError(f"No address is known for {name!r} of data set {self.dataset!r}. You can {advice}.")
        path = fetch(about, self.cache, progress=self.progress, advice=advice)
        check_downloaded(path)
        return path


def shelf_of(entry: Entry, *, given: Path | None, progress: bool | None, password: str | None = None) -> Shelf:
    """The shelf of a data set of the catalogue."""
    files = {file["name"]: file for file in entry["files"]}
    cache = settings.cache_dir / "datasets" / entry["name"]
    shown = settings.progress if progress is None else progress
    return Shelf(entry["name"], files, given, cache, entry.get("url"), password, shown)


@dataclass(frozen=True)
class Sample:
    """One section of a data set: name, donor and source, and its files by role (`counts`, `image` and so on)."""

    name: str
    donor: str | None
    roles: Mapping[str, str]
    """Role -> name of a file, or `<archive>/<member>`."""
    shelf: Shelf
    details: Mapping[str, str]
    """Tissue, technology, license and citation."""
    image_mpp: float | None = None
    um_between_centers: float | None = None
    bin_um: int | None = None
    loader: str = ""
    """Which reader it takes; set where sections are found."""

    def path(self, role: str) -> Path:
        """The file of a role."""
        archive, member = self.file_and_member(role)
        if not member:
            return self.shelf.get(archive)
        given = self.shelf.given
        if given is not None and _at(given, archive) is None:
            unpacked = _at(given, member)
            if unpacked is not None:
                return unpacked
        # A member is matched by the end of its path, so that archives may have a folder of their own around it.
        members = sorted(self._members(archive, glob.escape(member)), key=lambda path: len(path.parts))
        if len(members) > 1:
            logger.info("%r holds %d members named %r: %s is taken.", archive, len(members), member, members[0])
        return members[0]

    def find(self, role: str, *patterns: str) -> list[Path]:
        """Files in the archive or folder of a role whose paths end like one of the patterns; at least one."""
        archive, folder = self.file_and_member(role)
        if folder:
            below = [f"{glob.escape(folder)}/", f"{glob.escape(folder)}/*/"]
            patterns = tuple(start + pattern for pattern in patterns for start in below)
        return self._members(archive, *patterns)

    def file_and_member(self, role: str) -> tuple[str, str]:
        """Name of the file of a role, and the member in it, empty if the whole file is meant."""
        require_key(role, self.roles, f"files of sample {self.name!r}")
        named = self.roles[role]
        if named in self.shelf.files:
            return named, ""
        archive = next(file for file in self.shelf.files if named.startswith(f"{file}/"))
        return archive, named.removeprefix(f"{archive}/").rstrip("/")

    def _members(self, archive: str, *patterns: str) -> list[Path]:
        path = self.shelf.get(archive)
        folder = path if path.is_dir() else self._unpacked(path, archive, patterns)
        members = [file for file in _files(folder) if matching(str(file.relative_to(folder)), patterns)]
        if not members:
            raise KeyError(f"{archive!r} of data set {self.shelf.dataset!r} holds no {listing(patterns)}.")
        return members

    def _unpacked(self, path: Path, archive: str, patterns: Sequence[str]) -> Path:
        """Folder of the members of an archive that match, which is unpacked once."""
        key = hashlib.sha256(repr((str(path), version_of(path), patterns)).encode()).hexdigest()[:12]
        folder = self.shelf.cache / "unpacked" / f"{path.name}-{key}"
        published_at = self.shelf.files[archive].get("password_published_at")
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock, listed = (folder.with_name(f".{folder.name}.{kind}") for kind in ("lock", "members"))
        with FileLock(lock), _archive_errors(path, self.shelf.password, published_at):
            recover(folder)
            names = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else None
            # Single files may have been cleared from the cache.
            if names is None or not all((folder / name).is_file() for name in names):
                with fresh_folder(folder) as fresh:
                    unpack(path, patterns, fresh, self.shelf.password)
                replace_text(listed, json.dumps([str(file.relative_to(folder)) for file in _files(folder)]))
        if path.is_relative_to(self.shelf.cache):
            for member in _files(folder):
                check_downloaded(member)
        return folder


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _at(folder: Path, name: str) -> Path | None:
    """A file by its path or its bare name, or the folder that an archive of this name was unpacked into."""
    bare = Path(name).name
    suffix = next((end for end in SUFFIXES if bare.lower().endswith(end)), "")
    candidates = [folder / name, folder / bare, folder / bare[: len(bare) - len(suffix)]]
    return next((path for path in candidates if path.exists()), None)


def unpack(archive: Path, patterns: Sequence[str], folder: Path, password: str | None) -> None:
    """Unpack the members of a zip or tar archive that match into a new folder.

    A pattern, which may hold `*`, is matched against the end of a member's path as well.

    Raises
    ------
    ValueError
        If a member would land outside of the folder.
    """
    folder.mkdir()
    members = _tar_members if tarfile.is_tarfile(archive) else _zip_members
    for name, content in members(archive, patterns, password):
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(
                f"Archive {archive.name!r} holds {name!r}, which would be written outside of its folder. It was not "
                "unpacked."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)


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


@contextmanager
def _archive_errors(archive: Path, password: str | None, published_at: str | None) -> Iterator[None]:
    where = f" Its owners tell how to open it at {published_at}." if published_at else ""
    try:
        yield
    except NotImplementedError as error:
        raise ValueError(
            f"Archive {archive.name!r} is packed in a way that cannot be read here ({error}).{where} Unpack it "
            "yourself and pass the folder with `path=`."
        ) from error
    except RuntimeError as error:
        # zipfile has no class of its own for this.
        if "password" not in str(error).lower():
            raise
        raise PermissionError(
            f"Archive {archive.name!r} is encrypted, and `password=` is missing or wrong.{where}"
        ) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        todo = "Delete it to have it downloaded again." if password is None else "The password may be wrong."
        raise ValueError(f"Archive {str(archive)!r} is damaged or incomplete ({error}). {todo}") from error
