"""What a store from a stranger may hold: looked at before any of its arrays is read.

Nothing in it is run, no link leads out of it, and no array is larger than what lies on disk can account for.
"""

from __future__ import annotations

import json
import math
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ragst_sd.io._chunk_sizes import unpacked_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

# What anndata and zarr write. Pickles, which run code when they are read, are among what is left out.
_CODECS = {"bytes", "zstd", "blosc", "crc32c", "vlen-utf8", "vlen-bytes", "sharding_indexed", "transpose"}
_V2_CODECS = {"blosc", "zstd", "vlen-utf8", "vlen-bytes"}
# Compressed images and counts shrink 2 to 50 times; constant columns more, but they are small.
MOST_EXPANSION = 1000
FREE_BYTES = 2**28
MOST_CHUNK_BYTES = 2**30
_MOST_METADATA_BYTES = 2**26
MOST_NODES = 100_000


class StoredArray(NamedTuple):
    """An array of a store, as its metadata describes it."""

    folder: Path
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    """What is decompressed at once."""
    itemsize: int
    """Bytes of one value; 0 for texts, whose length is not known beforehand."""
    packing: str
    """`zstd`, `blosc` or nothing."""
    sharded: bool
    shard: tuple[int, ...]
    """What lies in one file."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory; a text counts as its pointer."""
        return math.prod(self.shape) * (self.itemsize or 8)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk in memory."""
        return math.prod(self.chunk) * (self.itemsize or 8)


def check_store(folder: Path) -> list[StoredArray]:
    """The arrays of a store that may be read.

    Raises
    ------
    ValueError
        If it holds links, codecs that are not known to be harmless, or arrays that unpack to far more than lies on disk.
    """
    arrays: list[StoredArray] = []
    on_disk: dict[Path, int] = {}
    for place, _, files in _walk(folder):
        here = sum(size for _, size in files)
        for above in (place, *place.parents):
            on_disk[above] = on_disk.get(above, 0) + here
            if above == folder:
                break
        metadata = {name for name, _ in files} & {"zarr.json", ".zarray"}
        for name in sorted(metadata):
            found = _read_metadata(place / name, folder)
            # That of the root is not read; below it zarr would use it, and it may tell something else than what is looked at here.
            if place != folder and found.get("consolidated_metadata") is not None:
                msg = f"{folder}: {(place / name).relative_to(folder)} tells of other metadata in its place. {STRANGER}"
                raise ValueError(msg)
            if name == ".zarray" or found.get("node_type") == "array":
                with _understood(place / name, folder):
                    arrays.append(_array_v2(place, found) if name == ".zarray" else _array_v3(place, found))
    for array in arrays:
        _check_array(array, folder, on_disk[array.folder])
    total, most = sum(array.nbytes for array in arrays), max(FREE_BYTES, MOST_EXPANSION * on_disk[folder])
    if total > most:
        msg = f"{folder}: its arrays together say that they hold {total:,} bytes, which the files cannot account for. {STRANGER}"
        raise ValueError(msg)
    return arrays


def require_memory(folder: Path, arrays: list[StoredArray]) -> None:
    """Raise a `MemoryError` if arrays that are to be read are larger than the memory of this machine."""
    memory, total = memory_bytes(), sum(array.nbytes for array in arrays)
    if total > memory:
        msg = (
            f"{folder} holds {total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory. Read it with `lazy=True`, "
            "which leaves its rows on disk."
        )
        raise MemoryError(msg)


def memory_bytes() -> float:
    """Memory of this machine; infinite where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found if found > 0 else math.inf


STRANGER = "It is damaged, or made to exhaust memory; it is not read."


def _walk(folder: Path) -> Any:
    n_nodes = 0
    for place, folders, files in os.walk(folder, followlinks=False):
        sizes = []
        for name in (*folders, *files):
            n_nodes += 1
            path = Path(place) / name
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode) or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                kind = "a link" if stat.S_ISLNK(found.st_mode) else "neither a file nor a folder"
                msg = (
                    f"{folder}: {path.relative_to(folder)} is {kind}. A reference holds files and folders of its own only, so that "
                    "it cannot read anything outside of its folder; it is not read. Copy it with the links resolved, if they are yours."
                )
                raise ValueError(msg)
            if stat.S_ISREG(found.st_mode):
                sizes.append((name, found.st_size))
        if n_nodes > MOST_NODES:
            msg = f"{folder} holds more than {MOST_NODES:,} files. {STRANGER}"
            raise ValueError(msg)
        yield Path(place), folders, sizes


def _read_metadata(path: Path, folder: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_METADATA_BYTES:
        msg = f"{folder}: {path.relative_to(folder)} has {path.stat().st_size:,} bytes of metadata. {STRANGER}"
        raise ValueError(msg)
    with _understood(path, folder):
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)


@contextmanager
def _understood(path: Path, folder: Path) -> Iterator[None]:
    """Tell which file cannot be understood."""
    place = f"{folder}: {path.relative_to(folder)}"
    try:
        yield
    except _RefusedError as error:
        msg = f"{place}: {error} It is not read."
        raise ValueError(msg) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        msg = f"{place} cannot be understood ({type(error).__name__}: {error}). The store is damaged."
        raise ValueError(msg) from error


class _RefusedError(ValueError):
    """Something that is understood, and not wanted."""


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(one) is int and one >= 0 for one in values):
        msg = f"{values!r} are not sizes"
        raise ValueError(msg)
    return tuple(values)


def _array_v3(place: Path, found: dict[str, Any]) -> StoredArray:
    shape, shard = _counts(found["shape"]), _counts(found["chunk_grid"]["configuration"]["chunk_shape"])
    codecs, chunk, sharded = found["codecs"], shard, False
    names = [codec["name"] for codec in codecs]
    if "sharding_indexed" in names:
        if names != ["sharding_indexed"]:
            msg = f"its codecs are {names}."
            raise _RefusedError(msg)
        own = codecs[0]["configuration"]
        sharded, chunk, codecs = True, _counts(own["chunk_shape"]), own["codecs"]
        if own.get("index_location", "end") != "end" or [one["name"] for one in own["index_codecs"]] != [
            "bytes",
            "crc32c",
        ]:
            msg = "its shards are indexed in a way that is not known."
            raise _RefusedError(msg)
        names = [codec["name"] for codec in codecs]
        if "sharding_indexed" in names:
            msg = "its shards hold shards."
            raise _RefusedError(msg)
    _refuse_codecs(names, _CODECS)
    if found.get("storage_transformers"):
        msg = "it has storage transformers."
        raise _RefusedError(msg)
    if len(chunk) != len(shape) or len(shard) != len(shape) or not all((*chunk, *shard)):
        msg = f"chunks {chunk} and {shard} do not fit the shape {shape}"
        raise ValueError(msg)
    packing = _packing(names)
    return StoredArray(place, shape, chunk, _itemsize_v3(found["data_type"]), packing, sharded=sharded, shard=shard)


def _itemsize_v3(data_type: Any) -> int:
    if isinstance(data_type, dict):
        own = data_type.get("configuration", {})
        if data_type["name"] in ("fixed_length_utf32", "null_terminated_bytes", "raw_bytes"):
            return max(1, int(own["length_bytes"]))
        msg = f"its values are of the type {data_type['name']!r}."
        raise _RefusedError(msg)
    if data_type == "string":
        return 0
    if data_type == "bool":
        return 1
    kind, bits = data_type.rstrip("0123456789"), data_type[len(data_type.rstrip("0123456789")) :]
    if kind not in ("int", "uint", "float", "complex") or bits not in ("8", "16", "32", "64", "128"):
        msg = f"its values are of the type {data_type!r}."
        raise _RefusedError(msg)
    return int(bits) // 8


def _array_v2(place: Path, found: dict[str, Any]) -> StoredArray:
    import numpy as np

    shape, chunk = _counts(found["shape"]), _counts(found["chunks"])
    compressor, filters = found.get("compressor"), found.get("filters") or []
    names = [codec["id"] for codec in (*filters, *([compressor] if compressor else []))]
    _refuse_codecs(names, _V2_CODECS)
    kind = found["dtype"]
    if not isinstance(kind, str):
        msg = "its values are records."
        raise _RefusedError(msg)
    if kind == "|O" and not {"vlen-utf8", "vlen-bytes"} & set(names):
        msg = "its values are Python objects."
        raise _RefusedError(msg)
    packing = _packing(names)
    return StoredArray(
        place, shape, chunk, 0 if kind == "|O" else np.dtype(kind).itemsize, packing, sharded=False, shard=chunk
    )


def _packing(names: list[str]) -> str:
    """What chunks are packed with; packed twice, only the outer size would be known."""
    packings = [name for name in names if name in ("zstd", "blosc")]
    if len(packings) > 1:
        msg = f"it is packed more than once, with {packings}."
        raise _RefusedError(msg)
    return packings[0] if packings else ""


def _refuse_codecs(names: list[str], known: set[str]) -> None:
    foreign = sorted(set(names) - known)
    if foreign:
        msg = f"it is packed with {foreign}; known to be harmless are {sorted(known)}."
        raise _RefusedError(msg)


def _check_array(array: StoredArray, folder: Path, on_disk: int) -> None:
    name = array.folder.relative_to(folder)
    if array.chunk_bytes > max(MOST_CHUNK_BYTES, array.nbytes if array.nbytes <= FREE_BYTES else 0):
        msg = f"{folder}: {name} says that one of its chunks holds {array.chunk_bytes:,} bytes. {STRANGER}"
        raise ValueError(msg)
    if array.nbytes > max(FREE_BYTES, MOST_EXPANSION * on_disk):
        msg = (
            f"{folder}: {name} says that its shape is {array.shape}, {array.nbytes:,} bytes, but {on_disk:,} bytes lie on disk. "
            f"{STRANGER}"
        )
        raise ValueError(msg)
    for file, size in unpacked_sizes(array):
        most = array.chunk_bytes if array.itemsize else max(FREE_BYTES // 4, MOST_EXPANSION * on_disk)
        if size is None or size > most:
            held = "an unknown number of" if size is None else f"{size:,}"
            msg = f"{folder}: a chunk in {file.relative_to(folder)} unpacks to {held} bytes, where {most:,} are expected. {STRANGER}"
            raise ValueError(msg)
