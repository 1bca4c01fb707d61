"""`rg.io.write_reference`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from zarr.codecs import ZstdCodec

from ragst_sd import _keys
from ragst_sd._reference import annotations_hash, read_header, reference_hash, require_in_memory
from ragst_sd._replacing import link_target, locked, place_beside, recover, require_new, without_notices
from ragst_sd.io._read_reference import SUFFIX, is_reference, parts_digest
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.schema import TASK

logger = logging.getLogger(__name__)

# What is decompressed at once.
_CHUNK_BYTES = 2**22


def write_reference(reference: AnnData, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a reference, fitted or not, to one file.

    The file is written next to `path` and moved there when it is complete. So `path` always holds the old or the new
    version, even if the process is killed, the disk is full, or another process reads it. A hidden file `.<name>.lock`
    next to `path` prevents two processes from writing at once; you may delete it when no process writes. If `path` is a
    symbolic link, its target is replaced.

    If a reference was changed after fitting (for example by subsetting rows), it is written with its new hash and
    without its fit, which is no longer valid.

    The file is a zarr store (format 3) in a zip archive without compression. Expression, embeddings, thumbnails and
    the rows in phi-space lie in chunks of whole rows, so that :func:`ragst_sd.io.read_reference` can leave them on
    disk with `lazy=True`. `anndata.read_zarr(zarr.storage.ZipStore(path))` reads it without this package.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`ragst_sd.tl.build_perturbation_reference`.
    path
        File to write, for instance `reference.zarr.zip`; the name ends in `.zarr.zip`.
    overwrite
        Replace an existing reference. Anything else at `path` is never replaced.

    Returns
    -------
    `None`. On disk `path` is a zip file that :func:`ragst_sd.io.read_reference` reads.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is not set, or it is not a reference.
    BlockingIOError
        If another process or thread is writing the same reference.
    ValueError
        If `reference` is not a reference, or is lazy, or the name of the file does not end in `.zarr.zip`.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.io.write_reference(reference, "reference.zarr.zip")
    >>> rg.io.read_reference("reference.zarr.zip").shape == reference.shape
    True
    """
    read_header(reference)
    require_in_memory(reference.X)
    path = link_target(Path(path))
    require_place(path, overwrite=overwrite)
    with locked(path):
        require_place(path, overwrite=overwrite)
        recover(path)
        with place_beside(path) as place:
            write_store(reference, place / "store")
            _pack(place / "store", place / "file").replace(path)


def require_place(path: Path, *, overwrite: bool) -> None:
    """Raise an error if a reference cannot be written to `path`: its name is wrong, or something else is there.

    Raises
    ------
    ValueError
        If the name does not end in `.zarr.zip`.
    FileExistsError
        If `path` exists and `overwrite` is not set, or it is not a reference.
    """
    if not path.name.endswith(SUFFIX):
        named = path.with_name(path.name.removesuffix(".zip").removesuffix(".zarr") + SUFFIX)
        raise ValueError(
            f"`path` is {str(path)!r}. A reference is one file, a zarr store in a zip archive: name it {str(named)!r}."
        )
    require_new(path, overwrite=overwrite)
    if path.exists() and (path.is_dir() or not is_reference(path)):
        raise FileExistsError(
            f"{path} exists and is not a reference, or a damaged one: it is not replaced. Delete it if it is "
            "yours, or choose another path."
        )


def write_store(reference: AnnData, folder: Path) -> None:
    """Write a reference to a new folder, with its large arrays in chunks of whole rows."""
    # A lazy reader notices by this checksum that a chunk was damaged.
    packing = {"compressors": (ZstdCodec(level=0, checksum=True),)}

    current = _current_parts(reference)

    def write(write_func: Any, store: Any, key: str, elem: Any, *, dataset_kwargs: Mapping[str, Any], **_: Any) -> None:
        if store.path == "":
            elem = current.get(key, elem)
        before = elem
        if isinstance(getattr(elem, "dtype", None), pd.StringDtype) and not elem.isna().any():
            # Names as pandas holds them with `future.infer_string`, in the form that every anndata reads.
            elem = np.asarray(elem, dtype=object)
        elif key == "X" and hasattr(elem, "tocsr") and not (elem.format == "csr" and elem.has_canonical_format):
            # A lazy reader takes rows, and values that are listed once.
            elem = as_csr(elem)
        chunks = _chunks(elem)
        layout = {**dataset_kwargs, "shards": None} | ({"chunks": chunks, **packing} if chunks else {})
        (write_func if elem is before else ad.io.write_elem)(store, key, elem, dataset_kwargs=layout)

    group = zarr.open_group(folder, mode="w", zarr_format=3)
    with without_notices():
        ad.experimental.write_dispatched(group, "/", reference, write)


def _chunks(elem: Any) -> tuple[int, ...] | None:
    """Whole rows of a dense array, or a part of the values and columns of a sparse matrix; `None` for anything else."""
    if hasattr(elem, "indptr"):
        shape, itemsize = (int(elem.nnz),), int(elem.indices.dtype.itemsize)
    elif isinstance(elem, np.ndarray) and elem.ndim and elem.dtype.kind in "fiub":
        shape, itemsize = elem.shape, elem.dtype.itemsize
    else:
        return None
    if not all(shape):
        return None
    return max(1, min(shape[0], _CHUNK_BYTES // (itemsize * math.prod(shape[1:])))), *shape[1:]


def _pack(folder: Path, packed: Path) -> Path:
    """Move the files of a folder into a zip archive.

    Each is gone when the next comes, so that the disk holds them once.
    """
    with ZipFile(packed, "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
            file.unlink()
        archive.comment = parts_digest(archive)
    return packed


def _current_parts(reference: AnnData) -> dict[str, dict[str, Any]]:
    """`uns` and `obsm` with a hash that fits the content; the reference itself is left alone."""
    header, obsm = read_header(reference), dict(reference.obsm)
    current = reference_hash(reference)
    if header["task"] != TASK:
        # Lets a lazy reference be checked without reading its values.
        header[_keys.ANNOTATIONS_HASH] = annotations_hash(reference)
    if current != header["content_hash"]:
        header["content_hash"] = current
        for name in (_keys.RETRIEVAL_KEY, _keys.REGRESSION_KEY):
            obsm.pop(name, None)
        fitted = header.pop(_keys.FIT, None) is not None
        logger.warning(
            "The reference changed after it was built%s.",
            "; it is written without its fit: run `rg.tl.fit` again" * fitted,
        )
    return {"uns": {**reference.uns, _keys.ATTRS: header}, "obsm": obsm}
