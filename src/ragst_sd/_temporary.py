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
    import psutil

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
