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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted on leaving; those of processes of this machine that were killed are deleted first."""
    # Several machines may share the folder for temporary files.
    prefix = f"ragst_sd_{socket.gethostname()}_"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if not _runs(left.name.removeprefix(prefix).split("_")[0]):
            # Another user's folder cannot be deleted, and stays.
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _runs(pid: str) -> bool:
    """Whether a process runs; `True` where the system cannot tell."""
    if os.name != "posix" or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
