"""Files that are not there or cannot be read, as one kind of error each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


def existing(path: str | PathLike[str], what: str, todo: str, *, folder: bool = False) -> Path:
    """A path that leads to a file, or to a folder.

    `what` begins the message of the `FileNotFoundError`, `todo` ends it.
    """
    path = Path(path)
    if not (path.is_dir() if folder else path.is_file()):
        wrong = f"is a {'file' if folder else 'folder'}" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{what} {str(path)!r} {wrong}. {todo}")
    return path


def existing_file(path: str | PathLike[str], argument: str, suffixes: tuple[str, ...], todo: str = "") -> Path:
    """The path of a file that exists and has one of the suffixes; `todo` says what to do with another one."""
    path = existing(path, f"`{argument}`:", f"Pass a file ({', '.join(suffixes)}).")
    if not path.name.lower().endswith(suffixes):
        what = f"`{argument}`: {path.name!r} has an unsupported suffix; supported: {', '.join(suffixes)}."
        raise ValueError(f"{what} {todo}".rstrip())
    return path


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
        raise ValueError(
            f"{str(path)!r} cannot be read as {kind}: it is damaged or incomplete, or another kind of file "
            f"({type(error).__name__}: {error}). Copy or download it again."
        ) from error
