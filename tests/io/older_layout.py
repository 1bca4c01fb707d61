"""A reference as earlier releases wrote it: a folder of sharded arrays, with checksums of its parts in the root."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

if TYPE_CHECKING:
    from pathlib import Path

SEAL = "ragst_sd_sha256"


def write_folder(reference: ad.AnnData, folder: Path, *, chunk_bytes: int = 2**22, chunks_per_shard: int = 32) -> None:
    """Write a reference whose header is complete."""

    def write(write_func: Any, store: Any, key: str, elem: Any, *, dataset_kwargs: Any, **_: Any) -> None:
        layout = {}
        if hasattr(elem, "indptr"):
            layout = sharded((int(elem.nnz),), elem.indices.dtype.itemsize)
        elif isinstance(elem, np.ndarray) and elem.ndim and elem.size and elem.dtype.kind in "fiub":
            layout = sharded(elem.shape, elem.dtype.itemsize)
        write_func(store, key, elem, dataset_kwargs={**dataset_kwargs, "shards": None, **layout})

    def sharded(shape: tuple[int, ...], itemsize: int) -> dict[str, Any]:
        rows = max(1, min(shape[0], chunk_bytes // (itemsize * int(np.prod(shape[1:], dtype=np.int64)))))
        per_shard = min(chunks_per_shard, -(-shape[0] // rows))
        chunks, shards = (rows, *shape[1:]), (rows * per_shard, *shape[1:])
        return {"chunks": chunks, "shards": shards, "compressors": (ZstdCodec(level=0, checksum=True),)}

    ad.experimental.write_dispatched(zarr.open_group(folder, mode="w", zarr_format=3), "/", reference, write)
    seal(folder)


def seal(folder: Path) -> None:
    """Note in the root of a folder which files of which size lie there, and what they hold."""
    root = json.loads((folder / "zarr.json").read_text())
    root["attributes"].pop(SEAL, None)
    parts = {part.name: digests(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    parts[""] = hashlib.sha256(json.dumps(root, sort_keys=True).encode()).hexdigest()
    root["attributes"][SEAL] = parts
    (folder / "zarr.json").write_text(json.dumps(root, indent=2))


def digests(folder: Path) -> dict[str, str]:
    metadata, files, content = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix().encode() + b"\x1f"
        files.update(name + str(file.stat().st_size).encode() + b"\x1f")
        line = name + hashlib.sha256(file.read_bytes()).digest()
        content.update(line)
        if file.name == "zarr.json":
            metadata.update(line)
    return {"metadata": metadata.hexdigest(), "files": files.hexdigest(), "content": content.hexdigest()}
