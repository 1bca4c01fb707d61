"""What a downloaded file may hold: no code, and nothing that lies elsewhere.

Files that a user opens are not looked at here: they are read as anndata and zarr read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py

# What anndata, Xenium and zarr write. Left out are, among others, codecs of Python objects, which run code when read.
_CODECS = {"bytes", "transpose", "shuffle", "delta", "fixedscaleoffset", "vlen-utf8", "vlen-bytes", "sharding_indexed"}
_CODECS |= {"blosc", "gzip", "lz4", "zlib", "zstd", "crc32c"}
_METADATA = ("zarr.json", ".zarray", ".zmetadata")


def check_downloaded(path: Path) -> None:
    """Look at the links in an HDF5 file, or at the codecs of a zarr store in a zip file; others are left alone.

    Raises
    ------
    ValueError
        If something in it lies in another file or is packed by a codec that is not known to be harmless, or if it is
        damaged.
    """
    wrong = None
    try:
        if path.name.endswith(".zarr.zip"):
            with ZipFile(path) as file:
                wrong = _foreign_codecs(file)
        elif path.suffix in (".h5", ".h5ad", ".hdf5"):
            with h5py.File(path, "r") as file:
                wrong = _what_lies_elsewhere(file)
    except Exception as error:
        # There is no list of what h5py, zipfile and json raise on bytes that nobody wrote.
        raise ValueError(
            f"{path} was downloaded and is damaged ({type(error).__name__}: {error}). Delete it to have it "
            "downloaded again."
        ) from error
    if wrong is not None:
        raise ValueError(
            f"{path} was downloaded and is not read: {wrong}. If you trust whoever made it, open it yourself, for "
            "instance with anndata."
        )


def _what_lies_elsewhere(file: h5py.File) -> str | None:
    links: list[tuple[str, Any]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    for name, link in links:
        if isinstance(link, h5py.ExternalLink):
            return f"{name!r} is a link to {link.path!r} in another file, {link.filename!r}"
        array = file[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(array, h5py.Dataset) and (array.is_virtual or array.external):
            return f"the values of {name!r} lie in another file"
    return None


def _foreign_codecs(file: ZipFile) -> str | None:
    for name in file.namelist():
        if name.rpartition("/")[2] in _METADATA:
            arrays = _arrays(json.loads(file.read(name)))
            foreign = sorted({codec for array in arrays for codec in _codecs(array)} - _CODECS)
            if foreign:
                return f"{name!r} names the codecs {foreign}; known to be harmless are {sorted(_CODECS)}"
    return None


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
