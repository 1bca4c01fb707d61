"""Files and folders that are replaced as a whole, written beside their place and renamed into it; temporary folders."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout

_NEW, OLD = ".new", ".new.old"
_ATTEMPTS, _PAUSE_SECONDS = 40, 0.05


def link_target(path: Path) -> Path:
    """The target of a symbolic link; any other path as it is.

    Link and target then share a lock, and what is written replaces the target, not the link.
    """
    return path.resolve() if path.is_symlink() else path


@contextmanager
def locked(path: Path, doing: str = "written") -> Iterator[None]:
    """Let no other process or thread write to `path`; the lock of a process that was killed is free again.

    The same thread may ask for the same lock again. Pass the path that :func:`link_target` returns to everything that
    writes.

    Raises
    ------
    BlockingIOError
        If another process or thread holds the lock.
    """
    path = link_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0, is_singleton=True)
    try:
        held = lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"{path} is being {doing} by another process or thread. Wait for it, or choose another path."
        ) from error
    with held:
        yield


@contextmanager
def without_notices() -> Iterator[None]:
    """Silence anndata's warning, one for every array it writes, that a later release will shard zarr stores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding", category=UserWarning)
        yield


@contextmanager
def place_beside(path: Path) -> Iterator[Path]:
    """A new name beside `path`, on the same disk, for what is not complete yet; it is removed on leaving."""
    fresh = path.with_name(f".{path.name}.{uuid4().hex[:8]}{_NEW}")
    try:
        yield fresh
    finally:
        # Threads of a write that failed may go on for a moment and make the folder again.
        for _ in range(_ATTEMPTS):
            if not fresh.exists():
                break
            shutil.rmtree(fresh, ignore_errors=True)
            time.sleep(_PAUSE_SECONDS)


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A place for the next version of a folder, which takes its place when the block ends well.

    Hold :func:`locked` meanwhile.
    """
    with place_beside(path) as fresh:
        yield fresh
        move_in(fresh, path, old=fresh.with_name(fresh.name.removesuffix(_NEW) + OLD))


def move_in(fresh: Path, path: Path, *, old: Path) -> None:
    """Put a complete folder in the place of another one, which is renamed to `old` first and removed afterwards."""
    try:
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
    if old.exists():
        # Under this name nobody brings it back while it is being removed.
        old.rename(fresh)
        shutil.rmtree(fresh)


def leftovers(path: Path, suffix: str = _NEW) -> list[Path]:
    """Folders that stopped writers have left beside `path`, by the suffix of their names."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(suffix)}")
    return sorted(place for place in path.parent.glob(".*") if ours.fullmatch(place.name) and place.is_dir())


def recover(path: Path) -> None:
    """Bring back the folder that a stopped writer moved away, and remove what it had not finished."""
    for old in leftovers(path, OLD):
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    for fresh in leftovers(path):
        shutil.rmtree(fresh)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A name for the next version of a file, which takes its place when the block ends well."""
    path = link_target(path)
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def require_new(path: Path, *, overwrite: bool) -> None:
    """Raise a `FileExistsError` if there is something at `path`, unless it may be replaced."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Pass `overwrite=True` to replace it, or choose another path.")


def replace_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with replaced_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def version_of(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of modification, which tell one version of a file or folder from the next.

    The device is left out: machines that share a disk number it differently.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted on leaving; those of processes of this machine that were killed are deleted first."""
    # Several machines may share the folder for temporary files.
    prefix = f"ragst_sd_{socket.gethostname()}_"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).split("_")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            # A folder of another user cannot be deleted, and stays.
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
