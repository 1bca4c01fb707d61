"""Sections of a recipe that are embedded already, kept on disk until the reference is whole.

A part is a folder named by a hash of everything that decides what is in it. It is written under another name and renamed when it
is complete; a part whose content does not match its own checksum is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ragst_sd.datasets._recipe_keys import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

logger = logging.getLogger(__name__)

_TABLE, _NOTE, _UNFINISHED = "table.h5ad", "part.json", ".unfinished"


class Parts:
    """The folder of parts beside a reference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear_unfinished(self) -> None:
        """Remove what a killed build left behind; to be called by the only build that runs."""
        for left in self.folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(left)

    def unfinished(self, name: str) -> Path:
        """A new place for something that is not whole yet, on the same disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}.{uuid4().hex[:8]}{_UNFINISHED}"

    def whole(self, key: str) -> bool:
        """Whether a part is there and as it was written; one that is not is removed."""
        place = self.folder / key
        if not place.exists():
            return False
        wrong = _whats_wrong(place)
        if wrong is not None:
            logger.warning("%s is damaged (%s) and made again.", place, wrong)
            shutil.rmtree(place)
        return wrong is None

    def write(self, key: str, table: AnnData, facts: Mapping[str, Any]) -> None:
        """Keep a section; it appears under its key only when it is complete."""
        fresh = self.unfinished(key)
        fresh.mkdir()
        try:
            table.write_h5ad(fresh / _TABLE)
            note = {"sha256": _sha256(fresh / _TABLE), "facts": facts}
            (fresh / _NOTE).write_text(json.dumps(note, indent=1, default=plain), encoding="utf-8")
            fresh.rename(self.folder / key)
        finally:
            # A full disk is not to stay full.
            shutil.rmtree(fresh, ignore_errors=True)

    def read(self, key: str) -> AnnData:
        """A part that is whole."""
        from anndata import read_h5ad

        return read_h5ad(self.folder / key / _TABLE)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _whats_wrong(place: Path) -> str | None:
    try:
        note = json.loads((place / _NOTE).read_text(encoding="utf-8"))
        expected, found = note["sha256"], _sha256(place / _TABLE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if expected == found else "its content does not match its checksum"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
