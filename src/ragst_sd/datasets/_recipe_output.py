"""The place that a reference is built at: one build at a time, nothing replaced before the new one stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd import _keys
from ragst_sd._replacing import fresh_folder, put_right

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from ragst_sd.datasets._recipe_parts import Parts


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


def put(reference: AnnData, path: Path) -> None:
    """Write the reference and move it to its place; one that was there goes when the new one stands."""
    from ragst_sd.io._write_reference import write_store

    with fresh_folder(path) as fresh:
        write_store(reference, fresh)


def recover(path: Path, parts: Parts) -> None:
    """Put right what a killed build left behind."""
    parts.clear_unfinished()
    put_right(path)
