"""Files that cannot be read, as one kind of error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Raise a `ValueError` that names the file where its reader cannot read it.

    Parameters
    ----------
    path
        The file.
    kind
        What it is expected to be, as the message names it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # There is no list of what readers raise on bytes that nobody wrote.
        msg = (
            f"{str(path)!r} cannot be read as {kind}: it is damaged or incomplete, or another kind of file "
            f"({type(error).__name__}: {error}). Copy or download it again."
        )
        raise ValueError(msg) from error
