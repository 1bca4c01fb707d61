"""`rg.io.write_reference`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._perturbation_reference import any_hash, any_header, is_perturbation
from ragst_sd._reference import annotations_hash, require_in_memory
from ragst_sd._replacing import alone, followed, fresh_folder, put_right
from ragst_sd.io._sharded_store import write_sharded
from ragst_sd.io._store_seal import seal

if TYPE_CHECKING:
    import os

    from anndata import AnnData

logger = logging.getLogger(__name__)


def write_reference(reference: AnnData, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a reference, fitted or not, to a zarr store.

    The store is written beside `path` and moved there when it is complete, so that `path` holds the old version or the new one
    at every moment, whether the process is killed, the disk is full or somebody reads meanwhile. Checksums of all its parts
    are written with it. A hidden file `.<name>.lock` beside `path` keeps two writers apart; it may be deleted when none runs. Where `path` is a symbolic
    link, what it leads to is written and replaced.

    A reference that was changed since (a subset of its rows, say) is written with its new hash and without its fit,
    which no longer holds.

    The store is zarr format 3, sharded: expression, embeddings, thumbnails and the rows in phi-space are arrays of their own,
    in chunks of whole rows, so that :func:`ragst_sd.io.read_reference` can leave them on disk with `lazy=True`.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`ragst_sd.tl.build_perturbation_reference`.
    path
        Folder to write, for instance `reference.zarr`.
    overwrite
        Replace an existing reference. Anything else at `path` is never replaced.

    Returns
    -------
    `None`. On disk `path` is a zarr store that :func:`ragst_sd.io.read_reference` reads.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is not set, or it is not a reference.
    BlockingIOError
        If another process or thread is writing the same reference.
    ValueError
        If `reference` is not a reference, or is lazy.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.io.write_reference(reference, "reference.zarr")
    >>> rg.io.read_reference("reference.zarr").shape == reference.shape
    True
    """
    any_header(reference)
    require_in_memory(reference)
    path = followed(Path(path))
    _refuse_existing(path, overwrite=overwrite)
    with alone(path):
        # What another writer moved away, and was stopped before it put the new version there, is a version to keep.
        put_right(path)
        _refuse_existing(path, overwrite=overwrite)
        with fresh_folder(path) as fresh:
            write_store(reference, fresh)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        msg = f"{path} exists. Pass `overwrite=True` to replace it, or choose another path."
        raise FileExistsError(msg)
    if not (path / "uns" / _keys.ATTRS).is_dir():
        msg = f"{path} exists and is not a reference; it is not replaced. Choose another path."
        raise FileExistsError(msg)


def write_store(reference: AnnData, folder: Path) -> None:
    """Write a reference to a place that nobody reads yet."""
    write_sharded(_current(reference), folder)
    seal(folder)


def _current(reference: AnnData) -> AnnData:
    """The reference with a hash that fits its content."""
    header = any_header(reference)
    current = any_hash(reference)
    if not is_perturbation(reference):
        # Lets a lazy reference be checked without reading its values.
        header[_keys.ANNOTATIONS_HASH] = annotations_hash(reference)
    if current == header["content_hash"]:
        return _with_header(reference, header)
    fitted = header.pop(_keys.FIT, None) is not None
    logger.warning(
        "The reference changed after it was built%s.", "; it is written without its fit: run `rg.tl.fit` again" * fitted
    )
    changed = _with_header(reference, {**header, "content_hash": current})
    changed.obsm.pop(_keys.RETRIEVAL_KEY, None)
    return changed


def _with_header(reference: AnnData, header: dict[str, Any]) -> AnnData:
    """The same arrays under another header; the reference itself is left alone."""
    import anndata as ad

    return ad.AnnData(
        reference.X,
        obs=reference.obs,
        var=reference.var,
        layers={name: values for name, values in reference.layers.items() if name is not None},
        obsm=dict(reference.obsm),
        varm=dict(reference.varm),
        obsp=dict(reference.obsp),
        varp=dict(reference.varp),
        uns={**reference.uns, _keys.ATTRS: header},
    )
