"""Temporary folders of gigabytes, which do not stay when their process is killed."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted on leaving; those of processes of this machine that were killed are deleted first."""
    from filelock import FileLock

    # Locks tell who is alive on one machine; where several share the folder they need not.
    prefix = f"ragst_sd_{socket.gethostname()}_"
    _clear(prefix)
    # A name is used once, and locked for longer than there is a folder of it. So whoever finds a folder and gets its lock may delete it,
    # and nobody asks for a lock before there is a folder.
    folder = Path(tempfile.gettempdir(), f"{prefix}{uuid4().hex}")
    try:
        with FileLock(_lock(folder), timeout=0):
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder)
    finally:
        _drop_lock(folder)


def _lock(folder: Path) -> Path:
    # Beside the folder, so that asking for it touches nothing in there.
    return folder.with_name(f"{folder.name}.lock")


def _drop_lock(folder: Path) -> None:
    # Without its lock, what could not be deleted would not be found again.
    with suppress(OSError):
        if not folder.exists():
            _lock(folder).unlink(missing_ok=True)


def _clear(prefix: str) -> None:
    from filelock import FileLock

    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            # What has no lock is not one of these folders, or is going. Those of another user are left to him.
            if not (_is_mine(folder, stat.S_ISDIR) and _is_mine(_lock(folder), stat.S_ISREG)):
                continue
            with FileLock(_lock(folder), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, NotImplementedError):
            # It is locked (a timeout is an `OSError`), so its process lives; it has gone meanwhile; or this disk knows no locks, which
            # older releases of filelock tell as not implemented, and nobody can say whether its process lives.
            continue
        _drop_lock(folder)


def _is_mine(path: Path, is_kind: Callable[[int], bool]) -> bool:
    found = path.lstat()
    return is_kind(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())
