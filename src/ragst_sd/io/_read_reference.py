"""`rg.io.read_reference`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._perturbation_reference import any_hash, any_header, is_perturbation
from ragst_sd._reference import ROW_BLOCK, annotations_hash, reference_header
from ragst_sd._replacing import standing, version_of
from ragst_sd.io._store_seal import SMALL, broken_parts
from ragst_sd.reference.migration import migrated

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


def read_reference(path: str | os.PathLike[str], *, lazy: bool = False) -> AnnData:
    """Read a reference that :func:`ragst_sd.io.write_reference` wrote.

    Parameters
    ----------
    path
        The zarr store.
    lazy
        Leave expression, embeddings, thumbnails and the rows in phi-space on disk, as dask arrays; `obs`, `var`, `varm` and the
        header are read. :func:`ragst_sd.tl.predict` then reads what it needs block by block, and gives the same values. To fit,
        calibrate or cross-validate load it with `reference.to_memory()`.

    Returns
    -------
    The reference. A header that an earlier release wrote is brought to the present schema, with hash and fit unchanged. It is
    checked, and the content against the hash that was written with it. Of a lazy one only what
    is in memory is checked (ids, genes, labels, mask); values that were changed on disk are noticed when they are read, by the
    checksum of their chunk, and once the store is replaced the lazy reference has to be read again.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a reference, is damaged, has an unknown schema version, or its content does not match its hash.
    MemoryError
        If it is larger than the memory of this machine.
    BlockingIOError
        If it is replaced again and again while it is read.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> rg.io.write_reference(rg.tl.build_reference(sections, use_rep="X_texture"), "reference.zarr", overwrite=True)
    >>> reference = rg.io.read_reference("reference.zarr")
    >>> list(reference.obs["donor"].unique())
    ['donor1']
    >>> rg.io.read_reference("reference.zarr", lazy=True).shape == reference.shape
    True
    """
    path = Path(path)
    for _ in range(_ATTEMPTS):
        place = standing(path)
        if not place.exists():
            msg = f"{path} does not exist. Write a reference with `rg.io.write_reference`."
            raise FileNotFoundError(msg)
        version = None
        try:
            version = version_of(place)
            return _read(place, lazy=lazy)
        except (ValueError, RuntimeError, OSError):
            # A writer has put another version there meanwhile: that one is read.
            if place.exists() and version_of(place) == version:
                raise
    msg = f"{path} was replaced {_ATTEMPTS} times while it was read. Wait until its writer is done."
    raise BlockingIOError(msg)


def _read(path: Path, *, lazy: bool) -> AnnData:
    version = version_of(path)
    if not (path / "uns" / _keys.ATTRS).is_dir():
        msg = f"{path} is not a reference written by `rg.io.write_reference` (it has no `uns/{_keys.ATTRS}`)."
        raise ValueError(msg)
    broken = broken_parts(path, only=SMALL if lazy else None)
    if broken:
        msg = (
            f"{path}: the content does not match its hash: {', '.join(broken)} do not match the hash that was written with them. "
            "It was changed or damaged after it was written: copy it again, or write it again from a reference that is whole."
        )
        raise ValueError(msg)
    reference = _told(path, lambda place: _up_to_date(_open(place) if lazy else _load(place)))
    header = reference_header(reference) if lazy else any_header(reference)
    current = annotations_hash(reference) if lazy else any_hash(reference)
    expected = header.get(_keys.ANNOTATIONS_HASH) if lazy else header["content_hash"]
    if lazy and current != expected:
        msg = (
            f"{path}: ids, genes or labels do not match the hash that was written with them, or it was written by a version "
            "without one. Read it with `lazy=False`, which checks everything, and write it again."
        )
        raise ValueError(msg)
    if current != expected:
        msg = (
            f"{path}: the content does not match its hash ({current[:12]} against {str(expected)[:12]}); it was changed or damaged "
            "after it was written."
        )
        raise ValueError(msg)
    if version_of(path) != version:
        msg = f"{path} was replaced while it was read."
        raise RuntimeError(msg)
    return reference


def _told(path: Path, read: Callable[[Path], AnnData]) -> AnnData:
    """What zarr and anndata make of bytes that nobody wrote, of which there is no list, as one kind of error."""
    try:
        return read(path)
    except MemoryError:
        raise
    except Exception as error:
        msg = f"{path} cannot be read ({type(error).__name__}: {error}). It is damaged, or was written by another program."
        raise ValueError(msg) from error


def _load(path: Path) -> AnnData:
    import anndata as ad
    import zarr

    group = zarr.open_group(path, mode="r", use_consolidated=False)
    _require_memory(path, group)
    return ad.read_zarr(group)


def _require_memory(path: Path, group: Any) -> None:
    """Raise a `MemoryError` if the arrays are larger than the memory of this machine, where the system tells."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = sum(array.nbytes for _, array in group.members(max_depth=None) if hasattr(array, "nbytes"))
    if total > memory > 0:
        msg = (
            f"{path} holds {total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory. Read it with `lazy=True`, "
            "which leaves its rows on disk."
        )
        raise MemoryError(msg)


def _open(path: Path) -> AnnData:
    """The reference with its large arrays left on disk."""
    import anndata as ad
    import zarr

    from ragst_sd.io._pinned_store import PinnedStore

    group: Any = zarr.open_group(PinnedStore(path), mode="r", use_consolidated=False)
    read, read_lazy = ad.io.read_elem, ad.experimental.read_elem_lazy
    n_vars = int(group["varm"][_keys.MEASURED].shape[0])
    blocks = (ROW_BLOCK, n_vars)
    return ad.AnnData(
        read_lazy(group["X"], chunks=blocks),
        obs=read(group["obs"]),
        var=read(group["var"]),
        layers={name: read_lazy(group["layers"][name], chunks=blocks) for name in group["layers"]},
        obsm={name: _lazy_rows(group["obsm"][name]) for name in group["obsm"]},
        varm={name: read(group["varm"][name]) for name in group["varm"]},
        uns={name: read(group["uns"][name]) for name in group["uns"]},
    )


def _up_to_date(reference: AnnData) -> AnnData:
    """A reference of tissue, just read, with its header in the present schema; the file stays as it is."""
    before = reference.uns.get(_keys.ATTRS)
    if is_perturbation(reference) or not isinstance(before, Mapping):
        return reference
    header = migrated(before, list(map(str, reference.var_names)))
    if header.get("schema_version") != before.get("schema_version"):
        logger.info(
            "The reference has schema version %s and is read as version %s; `rg.io.write_reference` writes that one.",
            before.get("schema_version"), header.get("schema_version"),
        )  # fmt: skip
    reference.uns[_keys.ATTRS] = header
    return reference


def _lazy_rows(elem: Any) -> Any:
    """An array on disk; a data frame of a few columns is read."""
    import anndata as ad

    return ad.experimental.read_elem_lazy(elem) if hasattr(elem, "shape") else ad.io.read_elem(elem)
