"""`rg.io.read_reference`; what a reference is on disk: one zip file, or a folder that an earlier release wrote."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import anndata as ad
import psutil
import zarr
from anndata import AnnData
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

from ragst_sd import _keys
from ragst_sd._reference import ROW_BLOCK, annotations_hash, is_perturbation, read_header, reference_hash
from ragst_sd._replacing import OLD, leftovers, locked, recover, version_of
from ragst_sd.reference.header import migrated
from ragst_sd.reference.schema import TASK

logger = logging.getLogger(__name__)

SUFFIX = ".zarr.zip"
_SEAL = b"ragst_sd_sha256"


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
            f"{path} does not exist. Write a reference with `rg.io.write_reference`, or build one: `ragst-sd build "
            "RECIPE`."
        )
    if not is_reference(path):
        raise ValueError(
            f"{path} is not a reference written by `rg.io.write_reference`, or not the whole of one (it has no "
            f"`uns/{_keys.ATTRS}`). If it was copied or downloaded, do that again."
        )
    reference = _up_to_date(_read(path, lazy=lazy))
    header = read_header(reference)
    if lazy and header["task"] == TASK:
        raise ValueError(
            f"{path} is a reference of perturbations, which cannot stay on disk. Read it with `lazy=False`."
        )
    current = annotations_hash(reference) if lazy else reference_hash(reference)
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


def is_reference(path: Path) -> bool:
    """Whether a file or folder is the whole of a reference, as far as its list of parts tells."""
    if path.is_dir():
        return (path / "uns" / _keys.ATTRS).is_dir()
    try:
        with ZipFile(path) as archive:
            return f"uns/{_keys.ATTRS}/zarr.json" in archive.namelist()
    except (BadZipFile, NotImplementedError):
        # The second where damaged bytes ask for a later version of the format.
        return False


def require_complete(path: Path) -> None:
    """Raise a `ValueError` if parts are missing, which zarr would read as zeros.

    The comment of a zip file holds a digest of its list of parts; the root of a folder, digests of names and sizes of
    files.
    """
    broken: list[str] = []
    if path.is_file():
        with ZipFile(path) as archive:
            if archive.comment.startswith(_SEAL) and archive.comment != parts_digest(archive):
                broken = ["the list of parts"]
    elif (path / "zarr.json").is_file():
        noted = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"].get(_SEAL.decode(), {})
        broken = [part for part in noted if part and noted[part]["files"] != _files_digest(path / part)]
    if broken:
        raise ValueError(f"{', '.join(broken)} does not match what was written")


def parts_digest(archive: ZipFile) -> bytes:
    """Digest of the names, sizes and checksums of all parts of a zip file."""
    parts = sorted((part.filename, part.file_size, part.CRC) for part in archive.infolist())
    return _SEAL + b":" + hashlib.sha256(repr(parts).encode()).hexdigest().encode()


def _files_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\x1f{file.stat().st_size}\x1f".encode())
    return digest.hexdigest()


class PinnedStore(WrapperStore):
    """A read-only zip file or folder that raises once it is not the version that was opened.

    It can be pickled, and opens the file again in a forked process.
    """

    def __init__(
        self,
        path: Path,
        *,
        version: tuple[int, int, int] | None = None,
        opened_with: str = "lazy=True",
        again: str = "Read it again with `rg.io.read_reference`",
    ) -> None:
        self.path, self.opened_with, self.again = path, opened_with, again
        self.version = version_of(path) if version is None else version
        super().__init__(self._opened())

    def _opened(self) -> Store:
        self._process = os.getpid()
        return ZipStore(self.path, mode="r") if self.path.is_file() else LocalStore(self.path, read_only=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "version": self.version, "opened_with": self.opened_with, "again": self.again}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes under a key, of the version that was opened."""
        if self._process != os.getpid():
            # A process shares its place in an open file, and the locks of threads that are gone, with the one
            # that it was forked from.
            self._store = self._opened()
        try:
            await self._store._ensure_open()
            return await self._store.get(key, prototype, byte_range)
        except BadZipFile as error:
            raise RuntimeError(
                f"{self.path} is damaged ({error}). Copy it again, or write it again from a reference that is whole."
            ) from error
        finally:
            # Looked at afterwards: what was read before the file was replaced is of the old version.
            self._require_same()

    def _require_same(self) -> None:
        try:
            same = version_of(self.path) == self.version
        except FileNotFoundError:
            same = False
        if not same:
            raise RuntimeError(
                f"{self.path} was replaced or changed after it was opened with `{self.opened_with}`. {self.again}."
            )


def opened_lazily(store: PinnedStore, *, parts: Collection[str], block_rows: int | None = None) -> AnnData:
    """A table whose arrays stay on disk in `parts`, of `X`, `layers` and `obsm`; everything else is read."""
    group: Any = zarr.open_group(store, mode="r", use_consolidated=False)
    obs, var = ad.io.read_elem(group["obs"]), ad.io.read_elem(group["var"])

    def read(elem: Any, part: str) -> Any:
        # Data frames and sparse matrices beside the expression are small.
        if part not in parts or (part == "obsm" and isinstance(elem, zarr.Group)):
            return ad.io.read_elem(elem)
        blocks = None if block_rows is None or part == "obsm" else (block_rows, len(var))
        return ad.experimental.read_elem_lazy(elem, chunks=blocks)

    mappings = {
        part: {name: read(elem, part) for name, elem in group[part].members()}
        for part in ("layers", "obsm", "varm", "uns")
    }
    return ad.AnnData(read(group["X"], "X"), obs=obs, var=var, **mappings)
