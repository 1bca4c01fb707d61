"""Download of one file: it resumes, is checked, and appears under its name only when it is whole.

Own code where a library would do for less: `pooch` neither resumes nor survives a connection that breaks, and the files
here have tens of gigabytes.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ragst_sd.datasets._checksum import matches, note_new, whats_wrong

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 5
_LONGEST_WAIT_S = 30.0
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """A file that somebody else keeps."""

    name: str
    """Path below the folder of its data set."""
    url: str
    size: int | None = None
    sha256: str | None = None


class _BrokenError(Exception):
    """The connection broke; another attempt may succeed."""


def fetch(file: RemoteFile, folder: Path, *, progress: bool, advice: str) -> Path:
    """Path of the file below `folder`, downloaded if it is not there or is damaged.

    Parameters
    ----------
    file
        What to download.
    folder
        Folder of the data set in the cache.
    progress
        Show a progress bar.
    advice
        What to do where the address cannot be reached or refuses, as the messages say it.

    Raises
    ------
    ConnectionError
        If the server cannot be reached or breaks off again and again; what has arrived is kept and resumed from.
    FileNotFoundError, PermissionError
        If the server does not have the file, or does not give it out.
    OSError
        If the disk is full.
    ValueError
        If what arrives is not what the catalogue states, or not what arrived the first time.
    """
    from filelock import FileLock

    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another process that wants the same file waits, and then finds it there.
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            wrong = whats_wrong(target, size=file.size, sha256=file.sha256)
            if wrong is None:
                return target
            logger.warning("%s is not what it should be (%s): it is downloaded again.", target, wrong)
        part = target.with_name(f"{target.name}.part")
        resumed = part.is_file()
        _download(file, part, progress=progress, advice=advice)
        wrong = matches(part, target, size=file.size, sha256=file.sha256)
        if wrong is not None and resumed:
            # The part may have been of another version of the file.
            part.unlink()
            _download(file, part, progress=progress, advice=advice)
            wrong = matches(part, target, size=file.size, sha256=file.sha256)
        if wrong is not None:
            part.unlink()
            msg = (
                f"{file.url} is not the file that was expected: {wrong}. It was not kept. Try again; if it stays so, the "
                f"owner has changed the file. {advice}"
            )
            raise ValueError(msg)
        part.replace(target)
        note_new(target, known=file.sha256 is not None)
    return target


def _download(file: RemoteFile, part: Path, *, progress: bool, advice: str) -> None:
    from tqdm.auto import tqdm

    if not re.match(r"https?://", file.url):
        msg = f"{file.url!r} is no address that starts with http:// or https://."
        raise ValueError(msg)
    failures, furthest = 0, _size(part)
    shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "desc": file.name, "disable": not progress}
    with tqdm(total=file.size, initial=_size(part), **shown) as bar:
        while True:
            try:
                return _stream(file, part, bar.update, advice=advice)
            except _BrokenError as error:
                # As long as something arrives a bad line may take as many attempts as it needs.
                kept = _size(part)
                failures = 1 if kept > furthest else failures + 1
                furthest = max(furthest, kept)
                if failures >= _ATTEMPTS:
                    left = f"{kept} bytes are kept in {str(part)!r}, and the next call goes on from there"
                    if furthest and not _may_go_on(file, part):
                        left = (
                            "the next call begins anew, as the server does not say whether the file is still the same"
                        )
                    msg = f"{file.url} could not be downloaded: {error}. Tried {_ATTEMPTS} times; {left}. {advice}"
                    raise ConnectionError(msg) from error
                wait = min(2.0**failures, _LONGEST_WAIT_S)
                logger.info("%s: %s; trying again in %.0f s.", file.url, error, wait)
                time.sleep(wait)


def _stream(file: RemoteFile, part: Path, advance: Callable[[int], object], *, advice: str) -> None:
    """One request that goes on from what is there."""
    have, mark = _size(part), _mark_of(part)
    if file.size is not None and have == file.size:
        return
    from ragst_sd import __version__

    headers = {"User-Agent": f"ragst_sd/{__version__}", "Accept-Encoding": "identity"}
    validator, first_total = _read_mark(mark)
    if not _may_go_on(file, part):
        have = 0
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with urlopen(Request(file.url, headers=headers), timeout=_TIMEOUT_S) as response:
            if have and response.status != 206:
                have = 0
            if have and not _goes_on(response, have, first_total):
                part.unlink()
                msg = "what the server goes on with does not fit what had arrived earlier"
                raise _BrokenError(msg)
            length = response.headers.get("Content-Length")
            total = file.size if length is None else have + int(length)
            _require_space(part, file.name, total, have)
            if not have:
                mark.unlink(missing_ok=True)
                validator = _validator(response)
                if validator:
                    mark.write_text(f"{validator}\n{length or ''}", encoding="utf-8")
            _write(response, part, have, total, advance, file.name)
    except HTTPError as error:
        _refused(error, file, part, advice)
    except (HTTPException, URLError, SSLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        msg = f"{type(error).__name__}: {reason}"
        raise _BrokenError(msg) from error
    mark.unlink(missing_ok=True)


def _mark_of(part: Path) -> Path:
    """Where it is noted of which version of the file a part is."""
    return part.with_name(f".{part.name}.etag")


def _read_mark(mark: Path) -> tuple[str, str]:
    """Validator and size of the version whose first bytes arrived; empty where they are not known."""
    lines = mark.read_text(encoding="utf-8").splitlines() if mark.is_file() else []
    return (lines[0] if lines else "", lines[1] if len(lines) > 1 else "")


def _may_go_on(file: RemoteFile, part: Path) -> bool:
    """Whether a mixture of two versions of the file would be found out: by the server, or by the checksum at the end."""
    return file.sha256 is not None or bool(_read_mark(_mark_of(part))[0])


def _validator(response: HTTPResponse) -> str:
    """What names this version of the file: its tag (a weak one does not stand for its bytes), else its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _goes_on(response: HTTPResponse, have: int, first_total: str) -> bool:
    """Whether a partial answer begins where the part ends, and is of a file as long as at first."""
    found = re.match(r"bytes (\d+)-\d*/(\d+|\*)$", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        return False
    return not first_total or found[2] in ("*", first_total)


def _write(
    response: HTTPResponse, part: Path, have: int, total: int | None, advance: Callable[[int], object], name: str
) -> None:
    with part.open("ab" if have else "wb") as out:
        while block := response.read(_BLOCK):
            try:
                out.write(block)
                out.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise _full(part, name, total) from error
            advance(len(block))
    if total is not None and _size(part) < total:
        msg = f"the connection ended after {_size(part)} of {total} bytes"
        raise _BrokenError(msg)


def _refused(error: HTTPError, file: RemoteFile, part: Path, advice: str) -> None:
    if error.code == 416:  # the part is longer than the file
        part.unlink(missing_ok=True)
        msg = "what had arrived earlier does not fit the file"
        raise _BrokenError(msg) from error
    if error.code in _TEMPORARY:
        msg = f"the server answers {error.code} ({error.reason})"
        raise _BrokenError(msg) from error
    if error.code in (401, 403):
        msg = f"{file.url} is not given out to everybody: the server answers {error.code} ({error.reason}). {advice}"
        raise PermissionError(msg) from None
    if error.code in (404, 410):
        msg = f"{file.url} does not exist (any more): the server answers {error.code}. {advice}"
        raise FileNotFoundError(msg) from None
    msg = f"{file.url} could not be downloaded: the server answers {error.code} ({error.reason}). {advice}"
    raise ConnectionError(msg) from None


def _require_space(part: Path, name: str, total: int | None, have: int) -> None:
    if total is not None and shutil.disk_usage(part.parent).free < total - have:
        raise _full(part, name, total)


def _full(part: Path, name: str, total: int | None) -> OSError:
    free = shutil.disk_usage(part.parent).free
    needed = "unknown" if total is None else f"{(total - _size(part)) / 1e9:.2f} GB more"
    msg = (
        f"No space for {name!r} in {str(part.parent)!r}: needed {needed}, free {free / 1e9:.2f} GB. Make space, or choose "
        "another cache folder (`rg.settings.cache_dir`, RAGST_SD_CACHE_DIR); what has arrived is kept and gone on from."
    )
    return OSError(errno.ENOSPC, msg)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
