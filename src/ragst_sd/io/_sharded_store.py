"""The layout of a reference on disk: rows in chunks, chunks in shards."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anndata import AnnData

# A chunk is what is decompressed at once, a shard is one file: some 4 MB and at most 32 times as much.
_CHUNK_BYTES = 2**22
_CHUNKS_PER_SHARD = 32


def write_sharded(reference: AnnData, path: Path) -> None:
    """Write an AnnData to a new zarr store (format 3), all arrays in chunks of whole rows."""
    import anndata as ad
    import zarr
    from zarr.codecs import ZstdCodec

    # A lazy reader notices by its own checksum that a chunk was changed.
    packing = {"compressors": (ZstdCodec(level=0, checksum=True),)}
    group = zarr.open_group(path, mode="w", zarr_format=3)

    def write(
        write_func: Callable[..., None], store: Any, key: str, elem: Any, *, dataset_kwargs: Mapping[str, Any], **_: Any
    ) -> None:
        layout = _layout(elem)
        write_func(store, key, elem, dataset_kwargs={**dataset_kwargs, **layout, **(packing if layout else {})})

    with warnings.catch_warnings():
        # Shards are chosen here; what anndata will choose by itself one day is of no matter.
        warnings.filterwarnings("ignore", message=".*autosharding.*")
        ad.experimental.write_dispatched(group, "/", reference, write)


def _layout(elem: Any) -> dict[str, Any]:
    """Chunks and shards of a dense array, or of the values and columns of a sparse matrix; anything else as it comes."""
    if hasattr(elem, "indptr"):
        shape, itemsize = (int(elem.nnz),), int(elem.indices.dtype.itemsize)
    elif isinstance(elem, np.ndarray) and elem.ndim and elem.dtype.kind in "fiub":
        shape, itemsize = elem.shape, elem.dtype.itemsize
    else:
        return {}
    if not all(shape):
        return {}
    rows = max(1, min(shape[0], _CHUNK_BYTES // (itemsize * int(np.prod(shape[1:], dtype=np.int64)))))
    chunks = (rows, *shape[1:])
    per_shard = min(_CHUNKS_PER_SHARD, -(-shape[0] // rows))
    return {"chunks": chunks, "shards": (rows * per_shard, *shape[1:])}
