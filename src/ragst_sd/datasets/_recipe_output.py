"""The place that a reference is built at: one build at a time, nothing replaced before the new one stands."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ragst_sd import _keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

    from ragst_sd.datasets._recipe_parts import Parts

_REPLACED = "replaced"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the place for this process; the lock of a process that was killed is gone with it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        msg = f"{path} is being built by another process. Wait for it, or choose another path."
        raise BlockingIOError(msg) from error


def existing(path: Path, key: str, *, overwrite: bool) -> AnnData | None:
    """The reference at `path` if it is the one that is asked for."""
    from ragst_sd.io import read_reference

    if not path.exists():
        return None
    if not (path / "uns" / _keys.ATTRS).is_dir():
        msg = f"{path} exists and is not a reference; it is not replaced. Choose another path."
        raise FileExistsError(msg)
    try:
        found = read_reference(path)
    except ValueError:
        if overwrite:
            return None
        raise
    recipe = found.uns[_keys.ATTRS].get("recipe", {})
    if recipe.get("key") == key:
        return found
    if not overwrite:
        msg = (
            f"{path} is a reference that another recipe, or other files, have made. Choose another path, or have it replaced "
            "(`overwrite=True`, `--overwrite`)."
        )
        raise FileExistsError(msg)
    return None


def put(reference: AnnData, path: Path, parts: Parts) -> None:
    """Write the reference and move it to its place; one that was there goes when the new one stands."""
    from ragst_sd.io import write_reference

    fresh = parts.unfinished("reference")
    write_reference(reference, fresh)
    replaced = parts.folder / _REPLACED
    if path.exists():
        path.rename(replaced)
    fresh.rename(path)
    if replaced.exists():
        shutil.rmtree(replaced)


def recover(path: Path, parts: Parts) -> None:
    """Put right what a killed build left behind."""
    parts.clear_unfinished()
    replaced = parts.folder / _REPLACED
    if not replaced.exists():
        return
    if path.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(path)
