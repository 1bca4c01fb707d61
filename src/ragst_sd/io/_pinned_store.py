"""A store on disk of which one version is read, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from ragst_sd._replacing import version_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class PinnedStore(LocalStore):
    """A read-only folder that refuses to give out chunks of another version than it was opened on."""

    def __init__(
        self,
        root: Path | str,
        *,
        read_only: bool = True,
        version: tuple[int, int] | None = None,
        opened_with: str = "lazy=True",
        again: str = "Read it again with `rg.io.read_reference`",
    ) -> None:
        super().__init__(root, read_only=True)
        self.opened_with, self.again = opened_with, again
        self.version = version_of(Path(root)) if version is None else version

    def with_read_only(self, read_only: bool = True) -> PinnedStore:  # noqa: FBT001, FBT002
        """The same store; it can never be written to."""
        return type(self)(self.root, version=self.version, opened_with=self.opened_with, again=self.again)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PinnedStore) and (self.root, self.version) == (other.root, other.version)

    def __hash__(self) -> int:
        return hash((self.root, self.version))

    def __getstate__(self) -> Any:
        return self.root, self.version, self.opened_with, self.again

    def __setstate__(self, state: Any) -> None:
        root, version, opened_with, again = state
        self.__init__(root, version=version, opened_with=opened_with, again=again)  # type: ignore[misc]

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes under a key, of the version that was opened."""
        found = await super().get(key, prototype, byte_range)
        # Looked at afterwards: what was read before a swap is of the old version.
        try:
            same = version_of(self.root) == self.version
        except FileNotFoundError:
            same = False
        if not same:
            msg = f"{self.root} was replaced or changed after it was opened with `{self.opened_with}`. {self.again}."
            raise RuntimeError(msg)
        return found
