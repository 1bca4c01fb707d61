"""Whether the sparse matrices of a store from a stranger stay inside of themselves.

Compiled code looks up columns and rows without looking at bounds: a matrix that names others than it has would make it read, and
write, elsewhere in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def check_sparse(reference: AnnData, path: Path) -> None:
    """Raise a `ValueError` if a sparse matrix that is in memory names rows or columns that it does not have."""
    parts: dict[str, Any] = {"X": reference.X, "uns": reference.uns}
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        parts[name] = dict(getattr(reference, name))
    if reference.raw is not None:
        parts |= {"raw/X": reference.raw.X, "raw/varm": dict(reference.raw.varm)}
    for name, value in parts.items():
        _check_all(value, name, path)


def checked_blocks(array: Any, name: str, path: Path) -> Any:
    """The same dask array; a block of a sparse one is looked at when it is read, and refused likewise."""
    if not hasattr(array._meta, "indptr"):
        return array
    return array.map_blocks(_check_block, part=name, path=str(path), dtype=array.dtype, meta=array._meta)


def _check_all(value: Any, name: str, path: Path) -> None:
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_all(one, f"{name}/{key}", path)
    elif hasattr(value, "indptr") and hasattr(value, "format"):
        _check_block(value, part=name, path=str(path))


def _check_block(block: Any, *, part: str, path: str) -> Any:
    """The same matrix, if it is sound.

    Scipy's own full check leaves the row pointers of a matrix without values alone, and takes differences, which overflow.
    """
    starts, indices = block.indptr, block.indices
    lines, most = block.shape if block.format == "csr" else block.shape[::-1]
    sound = (
        all(one.ndim == 1 for one in (starts, indices, block.data))
        and starts.dtype.kind == indices.dtype.kind == "i"
        and len(starts) == lines + 1
        and starts[0] == 0
        and bool(np.all(starts[1:] >= starts[:-1]))
        and starts[-1] <= len(indices) == len(block.data)
        and (not len(indices) or (indices.min() >= 0 and indices.max() < most))
    )
    if not sound:
        msg = (
            f"{path}: {part} points outside of itself: it names rows or columns that it does not have. It is damaged, or made to "
            "reach into memory; it is not read."
        )
        raise ValueError(msg)
    return block
