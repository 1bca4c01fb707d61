"""`rg.io.read_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ragst_sd import _keys
from ragst_sd._perturbation_reference import any_hash, any_header

if TYPE_CHECKING:
    import os

    from anndata import AnnData


def read_reference(path: str | os.PathLike[str]) -> AnnData:
    """Read a reference that :func:`ragst_sd.io.write_reference` wrote.

    Parameters
    ----------
    path
        The zarr store.

    Returns
    -------
    The reference. Its header is checked, and its content against the hash that was written with it.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a reference, has an unknown schema version, or its content does not match its hash.

    Examples
    --------
    See :func:`ragst_sd.io.write_reference`.
    """
    import anndata as ad

    path = Path(path)
    if not path.exists():
        msg = f"{path} does not exist. Write a reference with `rg.io.write_reference`."
        raise FileNotFoundError(msg)
    if not (path / "uns" / _keys.ATTRS).is_dir():
        msg = f"{path} is not a reference written by `rg.io.write_reference` (it has no `uns/{_keys.ATTRS}`)."
        raise ValueError(msg)
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
