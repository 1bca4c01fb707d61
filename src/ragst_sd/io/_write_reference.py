"""`rg.io.write_reference`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ragst_sd._reference import reference_header

if TYPE_CHECKING:
    import os

    from anndata import AnnData


def write_reference(reference: AnnData, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a reference, fitted or not, to a zarr store.

    The store is written beside `path` and moved there when it is complete, so that `path` never holds half a reference.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference`.
    path
        Folder to write, for instance `reference.zarr`.
    overwrite
        Replace an existing reference. Anything else at `path` is never replaced.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is not set, or it is not a reference.
    ValueError
        If `reference` is not a reference.

    Examples
    --------
    >>> import ragst_sd as rg, tempfile, pathlib
    >>> sections = rg.datasets.synthetic(n_donors=1)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "reference.zarr"
    >>> rg.io.write_reference(reference, path)
    >>> rg.io.read_reference(path).shape == reference.shape
    True
    """
    reference_header(reference)
    path = Path(path)
    if path.exists():
        if not overwrite:
            msg = f"{path} exists. Pass `overwrite=True` to replace it, or choose another path."
            raise FileExistsError(msg)
        if not (path / "uns" / "ragst").is_dir():
            msg = f"{path} exists and is not a reference; it is not replaced. Choose another path."
            raise FileExistsError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        reference.write_zarr(fresh)
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid4().hex[:8]}.old")
            path.rename(old)
        fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if old is not None:
        shutil.rmtree(old)
