"""`rg.io.read_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._perturbation_reference import any_hash, any_header
from ragst_sd._reference import ROW_BLOCK, annotations_hash, reference_header

if TYPE_CHECKING:
    import os

    from anndata import AnnData


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
    The reference. Its header is checked, and its content against the hash that was written with it. Of a lazy one only what
    is in memory is checked (ids, genes, labels, mask); values that were changed on disk are not noticed.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a reference, has an unknown schema version, or its content does not match its hash.

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
    import anndata as ad

    path = Path(path)
    if not path.exists():
        msg = f"{path} does not exist. Write a reference with `rg.io.write_reference`."
        raise FileNotFoundError(msg)
    if not (path / "uns" / _keys.ATTRS).is_dir():
        msg = f"{path} is not a reference written by `rg.io.write_reference` (it has no `uns/{_keys.ATTRS}`)."
        raise ValueError(msg)
    if lazy:
        return _open(path)
    reference = ad.read_zarr(path)
    header = any_header(reference)
    current = any_hash(reference)
    if current != header["content_hash"]:
        msg = (
            f"{path}: the content does not match its hash ({current[:12]} against {header['content_hash'][:12]}); it was "
            "changed or damaged after it was written."
        )
        raise ValueError(msg)
    return reference


def _open(path: Path) -> AnnData:
    """The reference with its large arrays left on disk."""
    import anndata as ad
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    read, read_lazy = ad.io.read_elem, ad.experimental.read_elem_lazy
    n_vars = int(group["varm"][_keys.MEASURED].shape[0])
    blocks = (ROW_BLOCK, n_vars)
    reference = ad.AnnData(
        read_lazy(group["X"], chunks=blocks),
        obs=read(group["obs"]),
        var=read(group["var"]),
        layers={name: read_lazy(group["layers"][name], chunks=blocks) for name in group["layers"]},
        obsm={name: _lazy_rows(group["obsm"][name]) for name in group["obsm"]},
        varm={name: read(group["varm"][name]) for name in group["varm"]},
        uns={name: read(group["uns"][name]) for name in group["uns"]},
    )
    header = reference_header(reference)
    if header.get(_keys.ANNOTATIONS_HASH) != annotations_hash(reference):
        msg = (
            f"{path}: ids, genes or labels do not match the hash that was written with them, or it was written by a version "
            "without one. Read it with `lazy=False`, which checks everything, and write it again."
        )
        raise ValueError(msg)
    return reference


def _lazy_rows(elem: Any) -> Any:
    """An array on disk; a data frame of a few columns is read."""
    import anndata as ad

    return ad.experimental.read_elem_lazy(elem) if hasattr(elem, "shape") else ad.io.read_elem(elem)
