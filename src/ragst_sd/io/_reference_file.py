"""What a reference is on disk: one zip file, or a folder that an earlier release wrote; of which one version is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import anndata as ad
import zarr
from anndata import AnnData
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

from ragst_sd import _keys
from ragst_sd._replacing import version_of

SUFFIX = ".zarr.zip"
_SEAL = b"ragst_sd_sha256"


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
