"""What a downloaded file may hold: no code, nothing that lies elsewhere, no sizes that the file cannot account for.

Files that a user opens are not looked at here: they are read as anndata and zarr read them.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import numpy as np

# What anndata, Xenium and zarr write. Left out are, among others, codecs of Python objects, which run code when read.
_CODECS = {"bytes", "transpose", "shuffle", "delta", "fixedscaleoffset", "vlen-utf8", "vlen-bytes", "sharding_indexed"}
_CODECS |= {"blosc", "gzip", "lz4", "zlib", "zstd", "crc32c"}
_METADATA = ("zarr.json", ".zarray", ".zmetadata")
# Compressed images and counts shrink 2 to 50 times; constant columns more, but they are small.
_MOST_EXPANSION = 1000
_FREE_BYTES = 2**28


def check_downloaded(path: Path) -> None:
    """Look at the links, codecs and sizes in an HDF5 file, or in a zarr store in a zip file.

    Other files are left alone. How far a single chunk unpacks is not looked at.

    Raises
    ------
    ValueError
        If something in it lies in another file, is made of Python objects or is packed by a codec that is not known to
        be harmless, if it says that it holds more than its bytes can account for, or if it is damaged.
    """
    try:
        if path.name.endswith(".zarr.zip"):
            with ZipFile(path) as file:
                _check_store(file)
        elif path.suffix in (".h5", ".h5ad", ".hdf5"):
            with h5py.File(path, "r") as file:
                _check_hdf5(file, path.stat().st_size)
    except _Refused as error:
        raise ValueError(
            f"{path} was downloaded and is not read: {error}. If you trust whoever made it, open it yourself, for "
            "instance with anndata."
        ) from None
    except Exception as error:
        # There is no list of what h5py, zipfile and json raise on bytes that nobody wrote.
        raise ValueError(
            f"{path} was downloaded and is damaged ({type(error).__name__}: {error}). Delete it to have it "
            "downloaded again."
        ) from error


class _Refused(Exception):
    """Something that is understood, and not wanted."""


def _require_sizes(name: str, nbytes: int, stored: int) -> None:
    if nbytes > max(_FREE_BYTES, _MOST_EXPANSION * stored):
        raise _Refused(f"{name!r} says that it holds {nbytes:,} bytes, of which {stored:,} are stored")


def _check_hdf5(file: Any, on_disk: int) -> None:
    links: list[tuple[str, Any]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    sizes = {}
    for name, link in links:
        if isinstance(link, h5py.ExternalLink):
            raise _Refused(f"{name!r} is a link to {link.path!r} in another file, {link.filename!r}")
        array = file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(array, h5py.Dataset):
            continue
        if array.is_virtual or array.external:
            raise _Refused(f"the values of {name!r} lie in another file")
        if _holds_objects(array.dtype):
            raise _Refused(f"{name!r} is made of objects")
        sizes[array.id] = int(array.nbytes)
        _require_sizes(name, sizes[array.id], min(array.id.get_storage_size(), on_disk))
    _require_sizes("/", sum(sizes.values()), on_disk)


def _holds_objects(dtype: np.dtype) -> bool:
    """Whether values, or fields of them, are references or sequences; texts of any length are neither."""
    if dtype.fields is not None:
        return any(_holds_objects(member.base) for member, *_ in dtype.fields.values())
    return dtype.hasobject and h5py.check_string_dtype(dtype) is None


def _check_store(file: ZipFile) -> None:
    sizes, total = {}, 0
    for entry in file.infolist():
        outside = entry.filename.startswith("/") or ".." in entry.filename.split("/")
        if outside or stat.S_ISLNK(entry.external_attr >> 16):
            raise _Refused(f"{entry.filename!r} leads out of the file")
        _require_sizes(entry.filename, entry.file_size, entry.compress_size)
        sizes[entry.filename] = entry.compress_size
    for name in sizes:
        folder, _, metadata = name.rpartition("/")
        if metadata not in _METADATA:
            continue
        arrays = list(_arrays(json.loads(file.read(name))))
        foreign = sorted({codec for array in arrays for codec in _codecs(array)} - _CODECS)
        if foreign:
            raise _Refused(f"{name!r} names the codecs {foreign}; known to be harmless are {sorted(_CODECS)}")
        stored = sum(size for other, size in sizes.items() if not folder or other.startswith(f"{folder}/"))
        nbytes = sum(map(_bytes_of, arrays))
        _require_sizes(folder, nbytes, stored)
        total += nbytes
    _require_sizes("/", total, sum(sizes.values()))


def _arrays(about: Any) -> Iterator[Mapping[str, Any]]:
    """The arrays that metadata tell of: their own, or those of the whole store in one place."""
    if isinstance(about, dict):
        if "shape" in about and ("chunks" in about or "chunk_grid" in about):
            yield about
        for value in about.values():
            yield from _arrays(value)


def _codecs(about: Any) -> Iterator[str]:
    """Names of all codecs of an array, also of those within others."""
    for key in ("codecs", "index_codecs", "filters", "compressor", "storage_transformers"):
        listed = about.get(key) or []
        for codec in listed if isinstance(listed, list) else [listed]:
            yield str(codec.get("name", codec.get("id")))
            yield from _codecs(codec.get("configuration", {}))


def _bytes_of(about: Mapping[str, Any]) -> int:
    """Bytes of an array, or of one of its chunks where these are larger; a text counts as its pointer."""
    kind = about.get("dtype", about.get("data_type"))
    if isinstance(kind, dict):
        itemsize = int(kind["configuration"].get("length_bytes", 8))
    else:
        # In JSON the fields of a structured array are lists.
        kind = [tuple(member) for member in kind] if isinstance(kind, list) else kind
        itemsize = 8 if kind in ("string", "variable_length_bytes") else np.dtype(kind).itemsize
    chunk = about["chunks"] if "chunks" in about else about["chunk_grid"]["configuration"]["chunk_shape"]
    return max(math.prod(map(int, about["shape"])), math.prod(map(int, chunk))) * itemsize
