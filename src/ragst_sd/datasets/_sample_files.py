"""Files of one section of a data set: given by the user, in a mirror, or downloaded into the cache."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragst_sd._settings import settings
from ragst_sd._validate import listing, require_key
from ragst_sd.datasets._archives import SUFFIXES, extract, matching
from ragst_sd.datasets._download import RemoteFile, fetch, whats_wrong
from ragst_sd.io._gate import check_downloaded

logger = logging.getLogger(__name__)

MIRROR = "RAGST_SD_DATA_DIR"


def mirror_folder() -> Path | None:
    """The folder of the user's own copies of data sets, whether or not it is there."""
    mirror = os.environ.get(MIRROR, "").strip()
    return Path(mirror).expanduser() if mirror else None


@dataclass(frozen=True)
class Shelf:
    """Where the files of a data set are looked for."""

    dataset: str
    files: Mapping[str, Mapping[str, Any]]
    """Entries of the catalogue by name of the file."""
    given: Path | None
    """The user's folder: nothing is downloaded if there is one."""
    cache: Path
    """Folder of this data set in the cache."""
    page: str | None
    """Where the data set is described."""
    password: str | None
    progress: bool

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
            found = _at(self.given, name)
            if found is None:
                msg = (
                    f"{name!r} of data set {self.dataset!r} is not in `path={str(self.given)!r}`. It holds "
                    f"{listing(sorted(one.name for one in self.given.iterdir()))}."
                )
                raise FileNotFoundError(msg)
            return found
        mirror = mirror_folder()
        if mirror is not None and not mirror.is_dir():
            logger.warning("%s names %r, which is no folder: there is no mirror.", MIRROR, str(mirror))
        found = None if mirror is None else _at(mirror / self.dataset, name)
        if found is not None:
            wrong = whats_wrong(found, size=about.get("size"), sha256=about.get("sha256")) if found.is_file() else None
            if wrong is not None:
                msg = (
                    f"{str(found)!r} in the mirror ({MIRROR}) is not the file of the catalogue: {wrong}. Replace "
                    "or remove it."
                )
                raise ValueError(msg)
            return found
        page = f" (see {self.page})" if self.page else ""
        advice = f"put the file{page} at <folder>/{self.dataset}/{name} and set {MIRROR}=<folder>"
        if about.get("url") is None:
            msg = f"No address is known for {name!r} of data set {self.dataset!r}. You can {advice}."
            raise FileNotFoundError(msg)
        file = RemoteFile(name, about["url"], about.get("size"), about.get("sha256"))
        path = fetch(file, self.cache, progress=self.progress, advice=advice)
        check_downloaded(path)
        return path


def shelf_of(
    entry: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    given: Path | None,
    progress: bool | None,
    password: str | None = None,
) -> Shelf:
    """The shelf of a data set of the catalogue."""
    cache = settings.cache_dir / "datasets" / entry["name"]
    shown = settings.progress if progress is None else progress
    return Shelf(entry["name"], files, given, cache, page=entry.get("url"), password=password, progress=shown)


@dataclass(frozen=True)
class Sample:
    """One section: who, what, and its files by role."""

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
        found = self._members(archive, glob.escape(member))
        if len(found) > 1:
            # A member is matched by the end of its path, so that archives may have a folder of their own around it.
            found = sorted(found, key=lambda one: len(one.parts))
            logger.info("%r holds %d members named %r: %s is taken.", archive, len(found), member, found[0])
        return found[0]

    def find(self, role: str, *patterns: str) -> list[Path]:
        """Files in the archive or folder of a role whose paths end like one of the patterns; at least one."""
        archive, folder = self.file_and_member(role)
        if folder:
            patterns = tuple(f"{glob.escape(folder)}/{deep}{one}" for one in patterns for deep in ("", "*/"))
        return self._members(archive, *patterns)

    def file_and_member(self, role: str) -> tuple[str, str]:
        """Name of the file of a role, and the member in it, empty if the whole file is meant."""
        require_key(role, self.roles, f"files of sample {self.name!r}")
        named = self.roles[role]
        if named in self.shelf.files:
            return named, ""
        archive = next((one for one in self.shelf.files if named.startswith(f"{one}/")), None)
        if archive is None:
            msg = f"{named!r}, the {role} of sample {self.name!r}, is no file of data set {self.shelf.dataset!r}."
            raise KeyError(msg)
        return archive, named.removeprefix(f"{archive}/").rstrip("/")

    def _members(self, archive: str, *patterns: str) -> list[Path]:
        path = self.shelf.get(archive)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            found = [file for file in files if matching(str(file.relative_to(path)), patterns)]
        else:
            found = self._extracted(path, archive, patterns)
        if not found:
            msg = f"{archive!r} of data set {self.shelf.dataset!r} holds no {listing(patterns)}."
            raise KeyError(msg)
        return found

    def _extracted(self, path: Path, archive: str, patterns: tuple[str, ...]) -> list[Path]:
        status = path.stat()
        # A new version of an archive is unpacked beside the old one.
        version = hashlib.sha256(f"{path} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:12]
        folder = self.shelf.cache / "unpacked" / f"{path.name}-{version}"
        published_at = self.shelf.files[archive].get("password_published_at")
        found = extract(path, patterns, folder, password=self.shelf.password, published_at=published_at)
        if path.is_relative_to(self.shelf.cache):
            for member in found:
                check_downloaded(member)
        return found


def _at(folder: Path, name: str) -> Path | None:
    """A file by its path or its bare name, or the folder that an archive of this name was unpacked into."""
    candidates = [folder / name, folder / Path(name).name]
    suffix = next((end for end in SUFFIXES if name.lower().endswith(end)), None)
    if suffix is not None:
        candidates.append(folder / Path(name).name[: -len(suffix)])
    return next((one for one in candidates if one.exists()), None)
