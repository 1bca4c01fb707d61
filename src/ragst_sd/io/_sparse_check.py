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

# Values of a file that are looked at together.
_AT_ONCE = 2**22
_PARTS = {"data", "indices", "indptr", "shape"}


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


def check_stored_sparse(group: Any, path: Path, place: str) -> None:
    """Raise a `ValueError` if a group of an HDF5 file is a sparse matrix that names rows or columns that it does not have.

    Of a file, as some readers take rows and columns out of a matrix before anybody else sees it.
    """
    if not {"data", "indices", "indptr"} <= set(group):
        return
    about = group.attrs
    # Of two shapes or formats, one reader believes the first and another the second.
    shapes = [
        where[name] for where, name in ((about, "shape"), (about, "h5sparse_shape"), (group, "shape")) if name in where
    ]
    if len(shapes) > 1 or {"encoding-type", "h5sparse_format"} <= set(about):
        msg = f"{path}: {place} says twice which shape or format it has. It is damaged, or made to reach into memory; it is not read."
        raise ValueError(msg)
    if not shapes:
        return
    sizes = np.asarray(shapes[0])
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu":
        raise ValueError(_astray(path, place))
    n_rows, n_columns = (int(size) for size in sizes)
    starts, indices = group["indptr"][()], group["indices"]
    encoding = about.get("encoding-type", about.get("h5sparse_format", "csc"))
    lines, most = (n_rows, n_columns) if "csr" in str(encoding) else (n_columns, n_rows)
    sound = (
        starts.ndim == indices.ndim == group["data"].ndim == 1
        and {starts.dtype.kind, indices.dtype.kind} <= {"i", "u"}
        and len(starts) == lines + 1
        and starts[0] == 0
        and bool(np.all(starts[1:] >= starts[:-1]))
        and starts[-1] <= len(indices) == len(group["data"])
        and all(
            part.min() >= 0 and part.max() < most
            for part in (indices[at : at + _AT_ONCE] for at in range(0, len(indices), _AT_ONCE))
        )
    )
    if not sound:
        raise ValueError(_astray(path, place))


def hidden_part_of_10x(top: list[str], arrays: list[str]) -> str | None:
    """A part of the matrix of a 10x file that lies deeper than the others; `None` if there is none.

    Readers of these files take arrays by their last name from any depth: from `matrix`, and from the only group in old files.
    """
    roots = {"matrix"} & set(top) or (set(top) if len(top) == 1 else set())
    for place in arrays:
        steps = place.strip("/").split("/")
        if len(steps) > 2 and steps[0] in roots and steps[-1] in _PARTS:
            return place
    return None


def _astray(path: object, part: str) -> str:
    return (
        f"{path}: {part} points outside of itself: it names rows or columns that it does not have. It is damaged, or made to "
        "reach into memory; it is not read."
    )


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
        raise ValueError(_astray(path, part))
    return block
