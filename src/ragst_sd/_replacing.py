"""Files and folders on disk that are replaced as one: a reader finds the old version or the new one, and nothing between."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NEW, _OLD = ".new", ".new.old"
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV)
# What is older was left behind: a file is written in seconds.
_LEFT_SECONDS = 3600
_ATTEMPTS, _PAUSE_SECONDS = 40, 0.05
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def followed(path: Path) -> Path:
    """Where a symbolic link leads, and any other path as it is: both names then share a lock, and the link stays."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def alone(path: Path, doing: str = "written") -> Iterator[None]:
    """Hold a place for this writer; the lock of a process that was killed is gone with it.

    Whoever replaces what lies there has to give the path that :func:`followed` gives here, too.

    Raises
    ------
    BlockingIOError
        If another writer holds it.
    """
    from filelock import FileLock, Timeout

    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        msg = f"{path} is being {doing} by another process or thread. Wait for it, or choose another path."
        raise BlockingIOError(msg) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A place beside `path` for its next version, which is moved in when the block ends well; to be called by its only writer."""
    fresh = fresh_place(path)
    try:
        yield fresh
        move_in(fresh, path)
    finally:
        give_up(fresh)


def fresh_place(path: Path) -> Path:
    """A name beside `path`, on the same disk, for something that is not whole yet."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}{_NEW}")


def give_up(fresh: Path) -> None:
    """Remove what was not finished, if it is there; threads of a write that failed may go on for a moment and make it again."""
    for _ in range(_ATTEMPTS):
        if not fresh.exists():
            return
        shutil.rmtree(fresh, ignore_errors=True)
        time.sleep(_PAUSE_SECONDS)


def move_in(fresh: Path, path: Path) -> None:
    """Put a folder that is complete in the place of another one, and remove that.

    Linux and macOS exchange two folders in one step. Elsewhere there is a moment between two renames; :func:`standing` reads
    through it and :func:`put_right` mends it.
    """
    if not path.exists():
        fresh.rename(path)
        return
    if not _exchange(fresh, path):
        old = fresh.with_name(fresh.name.removesuffix(_NEW) + _OLD)
        path.rename(old)
        fresh.rename(path)
        # Under this name it can no longer be taken for a version to go back to, however little of it is left.
        old.rename(fresh)
    _remove(fresh)


def _remove(path: Path) -> None:
    """Remove a folder; of a link, the link and not what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; `False` where the system, or the disk, cannot."""
    names = os.fsencode(first), os.fsencode(second)
    libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code), str(second))
    return not failed


def left_behind(path: Path, suffix: str = _NEW) -> list[Path]:
    """Places beside `path` that a writer who was stopped has left."""
    if not path.parent.is_dir():
        return []
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(suffix)}")
    return sorted(one for one in path.parent.iterdir() if ours.fullmatch(one.name))


def standing(path: Path) -> Path:
    """Where the version that holds lies: `path`, but for the moment between two renames."""
    path = path if path.exists() else followed(path)
    if not path.exists():
        for old in left_behind(path, _OLD):
            return old
    return path


def put_right(path: Path) -> None:
    """Bring back the version that a stopped writer moved away, and remove what it had not finished."""
    for old in left_behind(path, _OLD):
        if path.exists():
            _remove(old)
        else:
            old.rename(path)
    for fresh in left_behind(path):
        _remove(fresh)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A name beside a file for its next version, which takes its place when the block ends well: nobody reads half of it."""
    path = followed(path)
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def clear_unfinished_files(folder: Path, name: str = r".+") -> None:
    """Remove what writers of :func:`replaced_file` who were killed have left of files that are called like `name`.

    Of a live writer such a file is a moment old.
    """
    ours, before = re.compile(rf"\.{name}\.[0-9a-f]{{8}}"), time.time() - _LEFT_SECONDS
    for one in folder.iterdir():
        if ours.fullmatch(one.name) and one.is_file():
            # Another writer may remove it at the same time.
            with suppress(FileNotFoundError):
                if one.stat().st_mtime < before:
                    one.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write a file of text as one."""
    path = followed(path)
    clear_unfinished_files(path.parent, re.escape(path.name))
    with replaced_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def version_of(path: Path) -> tuple[int, int]:
    """What tells one version of a folder from the next: a folder that was replaced is another folder.

    The number of the device is left out: machines that share a disk give it different ones.
    """
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
