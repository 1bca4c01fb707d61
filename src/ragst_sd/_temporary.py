"""Temporary folders of gigabytes, which do not stay when their process is killed."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALIVE = ".alive"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted on leaving; those of processes of this machine that were killed are deleted first."""
    from filelock import FileLock

    # Locks tell who is alive on one machine; where several share the folder they need not.
    prefix = f"ragst_sd_{socket.gethostname()}_"
    _clear(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        with FileLock(folder / _ALIVE, timeout=0):
            yield folder


def _clear(prefix: str) -> None:
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        alive = folder / _ALIVE
        # A folder without a lock has just been made; one of another user is left to him.
        if folder.is_symlink() or not alive.is_file() or alive.is_symlink():
            continue
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            continue
        try:
            with FileLock(alive, timeout=0):
                pass
        except (Timeout, OSError, NotImplementedError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
