"""`rg.io.read_reference`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import psutil
import zarr
from anndata import AnnData
from zarr.storage import LocalStore, ZipStore

from ragst_sd import _keys
from ragst_sd._reference import ROW_BLOCK, annotations_hash, any_hash, any_header, is_perturbation, reference_header
from ragst_sd._replacing import OLD, leftovers, locked, recover
from ragst_sd.io._reference_file import PinnedStore, is_reference, opened_lazily, require_complete
from ragst_sd.reference.header import migrated

logger = logging.getLogger(__name__)


def read_reference(path: str | os.PathLike[str], *, lazy: bool = False) -> AnnData:
    """Read a reference that :func:`ragst_sd.io.write_reference` wrote.

    Parameters
    ----------
    path
        The file, `name.zarr.zip`, or the folder that an earlier release wrote.
    lazy
        Leave expression, embeddings, thumbnails and the rows in phi-space on disk, as dask arrays; `obs`, `var`,
        `varm` and the header are read. :func:`ragst_sd.tl.predict` then reads what it needs block by block, and gives
        the same values. To fit, calibrate or cross-validate load it with `reference.to_memory()`. References
        of perturbations are read with `lazy=False`.

    Returns
    -------
    The reference. A header that an earlier release wrote is brought to the present schema, with hash and fit
    unchanged. The header is checked, and the content against the hash that was written with it. Of a lazy reference
    only what is in memory is checked (ids, genes, labels, mask). Rows that were damaged on disk are noticed when they
    are read, by the checksum of their chunk. Once the file is replaced or changed, the lazy reference raises
    `RuntimeError` and has to be read again.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a reference, is damaged or not complete, has an unknown schema version, its content does not match
        its hash, or it is of perturbations and should be lazy.
    MemoryError
        If it is larger than the memory of this machine.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> rg.io.write_reference(
    ...     rg.tl.build_reference(sections, use_rep="X_texture"), "reference.zarr.zip", overwrite=True
    ... )
    >>> reference = rg.io.read_reference("reference.zarr.zip")
    >>> list(reference.obs["donor"].unique())
    ['donor1']
    >>> rg.io.read_reference("reference.zarr.zip", lazy=True).shape == reference.shape
    True
    """
    path = Path(path)
    if not path.exists() and leftovers(path, OLD):
        # An earlier release, which wrote folders, was stopped between two renames.
        with locked(path, "recovered"):
            recover(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Write a reference with `rg.io.write_reference`, or build one: `ragst-sd build RECIPE`."
        )
    if not is_reference(path):
        raise ValueError(
            f"{path} is not a reference written by `rg.io.write_reference`, or not the whole of one (it has no "
            f"`uns/{_keys.ATTRS}`). If it was copied or downloaded, do that again."
        )
    reference = _up_to_date(_read(path, lazy=lazy))
    if lazy and is_perturbation(reference):
        raise ValueError(
            f"{path} is a reference of perturbations, which cannot stay on disk. Read it with `lazy=False`."
        )
    header = reference_header(reference) if lazy else any_header(reference)
    current = annotations_hash(reference) if lazy else any_hash(reference)
    expected = header.get(_keys.ANNOTATIONS_HASH) if lazy else header["content_hash"]
    if lazy and current != expected:
        raise ValueError(
            f"{path}: ids, genes or labels do not match the hash that was written with them, or it was written by a "
            "version without one. Read it with `lazy=False`, which checks everything, and write it again."
        )
    if current != expected:
        raise ValueError(
            f"{path}: the content does not match its hash ({current[:12]} against {str(expected)[:12]}); it was "
            "changed or damaged after it was written."
        )
    return reference


def _read(path: Path, *, lazy: bool) -> AnnData:
    try:
        require_complete(path)
        if lazy:
            store = PinnedStore(path.absolute())
            # Damaged metadata are noticed now, also those of arrays that stay on disk.
            list(zarr.open_group(store, mode="r", use_consolidated=False).members(max_depth=None))
            return opened_lazily(store, parts=("X", "layers", "obsm"), block_rows=ROW_BLOCK)
        # What is open already is read to its end, whether or not somebody replaces the file meanwhile.
        with LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path) as opened:
            group = zarr.open_group(opened, mode="r", use_consolidated=False)
            _require_memory(path, group)
            return ad.read_zarr(group)
    except MemoryError:
        raise
    except Exception as error:
        # There is no list of what zarr and anndata raise on bytes that nobody wrote.
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It is damaged, or was written by another "
            "program."
        ) from error


def _require_memory(path: Path, group: Any) -> None:
    """Raise a `MemoryError` if the arrays are larger than the memory of this machine."""
    memory = psutil.virtual_memory().total
    total = sum(array.nbytes for _, array in group.members(max_depth=None) if hasattr(array, "nbytes"))
    if total > memory:
        raise MemoryError(
            f"{path} holds {total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory. Read it with "
            "`lazy=True`, which leaves its rows on disk."
        )


def _up_to_date(reference: AnnData) -> AnnData:
    """A reference of tissue, just read, with its header in the present schema; the file stays as it is."""
    before = reference.uns.get(_keys.ATTRS)
    if is_perturbation(reference) or not isinstance(before, Mapping):
        return reference
    header = migrated(before, list(map(str, reference.var_names)))
    old, new = (each.get("schema_version") for each in (before, header))
    if old != new:
        logger.info("The reference has schema version %s and is read as version %s, which is also written.", old, new)
    reference.uns[_keys.ATTRS] = header
    return reference
