"""Download of one file: it resumes, is checked, and appears under its name only when it is whole. Checksums of files.

Downloaders such as `pooch` begin anew when a connection breaks. The files here have up to tens of gigabytes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock
from requests import Response
from tqdm.auto import tqdm

from ragst_sd._replacing import version_of
from ragst_sd.image.hub import hub_endpoint, hub_errors

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"https?://(?:www\.)?huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)")
_BLOCK = 1 << 16
_TIMEOUT_S = 60
_ATTEMPTS = 5
_LONGEST_WAIT_S = 30.0
_TEMPORARY = {408, 416, 425, 429, 500, 502, 503, 504}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSALS: dict[int, tuple[type[OSError], str]] = {
    **dict.fromkeys((401, 403), (PermissionError, "is not given out to everybody")),
    **dict.fromkeys((404, 410), (FileNotFoundError, "does not exist (any more)")),
}


def fetch(file: Mapping[str, Any], folder: Path, *, progress: bool, advice: str) -> Path:
    """Path of a file of the catalogue below `folder`, downloaded if it is not there or of another size.

    Parameters
    ----------
    file
        `name` (its path below the folder of its data set), `url`, and `size` and `sha256` where they are known. An
        address of the Hugging Face hub is left to the hub's own client.
    folder
        Folder of the data set in the cache.
    progress
        Show a progress bar.
    advice
        What to do where the address cannot be reached or refuses, a clause that the messages end with.

    Raises
    ------
    ConnectionError
        If the server cannot be reached or breaks off again and again; what has arrived is kept and resumed from.
    FileNotFoundError, PermissionError
        If the server does not have the file, or does not give it out.
    OSError
        If the disk is full.
    ValueError
        If what arrives is not what the catalogue states.
    """
    target = folder / file["name"]
    arrived = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    on_hub = _ADDRESS.match(file["url"])
    # Another process that wants the same file waits, and then finds it there.
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            # It was checked when it arrived: files of many gigabytes are not hashed at every call.
            wrong = whats_wrong(target, {**file, "sha256": None})
            if wrong is None:
                return target
            logger.warning("%s is not what it should be (%s): it is downloaded again.", target, wrong)
        # What had arrived earlier may be of another version of the file: then it is downloaded anew.
        for resumed in (arrived.is_file(), False):
            if on_hub is None:
                _download(file, arrived, progress=progress, advice=advice)
            else:
                arrived = _fetch_from_hub(on_hub.groups(), folder, progress=progress, advice=advice)
            wrong = whats_wrong(arrived, file)
            if wrong is None:
                return arrived.replace(target)
            arrived.unlink()
            if not resumed:
                break
    raise ValueError(
        f"{file['url']} is not the file that was expected: {wrong}. It was not kept. Try again; if it stays so, the "
        f"owner has changed the file. You can also {advice}."
    )


def _download(file: Mapping[str, Any], part: Path, *, progress: bool, advice: str) -> None:
    """Ask for a file until all of it is there.

    A bad line may take as many attempts as it needs while something arrives.
    """
    url, failures, furthest = file["url"], 0, _size(part)
    while failures < _ATTEMPTS:
        try:
            return _request(file, part, progress=progress)
        except requests.HTTPError as error:
            answer: Any = error.response
            status, reason = answer.status_code, f"the server answers {answer.status_code} ({answer.reason})"
            if status not in _TEMPORARY:
                kind, what = _REFUSALS.get(status, (ConnectionError, "could not be downloaded"))
                raise kind(f"{url} {what}: {reason}. You can also {advice}.") from None
            if status == 416:
                # What had arrived is longer than the file.
                part.unlink(missing_ok=True)
        except requests.RequestException as error:
            reason = f"{type(error).__name__}: {error}"
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            free = shutil.disk_usage(part.parent).free / 1e9
            msg = (
                f"No space for {file['name']!r} in {str(part.parent)!r} ({free:.2f} GB are free). Make space, or "
                "choose another cache folder (`rg.settings.cache_dir`, RAGST_SD_CACHE_DIR); what has arrived is kept "
                "and gone on from."
            )
            raise OSError(errno.ENOSPC, msg) from error
        failures = 1 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures < _ATTEMPTS:
            wait = min(2.0**failures, _LONGEST_WAIT_S)
            logger.info("%s: %s; trying again in %.0f s.", url, reason, wait)
            time.sleep(wait)
    raise ConnectionError(
        f"{url} could not be downloaded: {reason}. Tried {_ATTEMPTS} times; {_size(part)} bytes are kept in "
        f"{str(part)!r}, and the next call goes on from there if the server says that the file is still the same. "
        f"You can also {advice}."
    )


def _request(file: Mapping[str, Any], part: Path, *, progress: bool) -> None:
    """One request that goes on from what is there."""
    from ragst_sd import __version__

    # Which version of the file the part is of: a mixture of two is found by the server, or by the checksum at the end.
    mark, have = part.with_name(f".{part.name}.etag"), _size(part)
    version = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    headers = {"User-Agent": f"ragst_sd/{__version__}", "Accept-Encoding": "identity"}
    if have and (version or file.get("sha256")):
        headers["Range"] = f"bytes={have}-"
    if have and version:
        headers["If-Range"] = version
    with requests.get(file["url"], headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        sent, span = _version(response), response.headers.get("Content-Range", "")
        goes_on = response.status_code == 206
        if goes_on and not (version in ("", sent) and span.startswith(f"bytes {have}-")):
            part.unlink()
            raise requests.ConnectionError("what the server goes on with does not fit what had arrived earlier")
        mark.write_text(sent, encoding="utf-8")
        size = int(response.headers.get("Content-Length", 0))
        if size > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, "the file is larger than what is free")
        # Before version 2 urllib3 takes a connection that ends early for the end of the file.
        response.raw.enforce_content_length = True
        shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "desc": file["name"], "disable": not progress}
        with part.open("ab" if goes_on else "wb") as out, tqdm(total=size or None, **shown) as bar:
            for block in response.iter_content(_BLOCK):
                bar.update(out.write(block))
    mark.unlink(missing_ok=True)


def _version(response: Response) -> str:
    """What names this version of the file: its tag (a weak one does not stand for its bytes), else its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def sha256_of(path: Path) -> str:
    """Hash of the content of a file; read again only if its size or its time of change differ."""
    return _hashed(path, version_of(path))


@lru_cache(maxsize=1024)
def _hashed(path: Path, version: tuple[int, int, int]) -> str:
    # The version is no more than part of the key: it tells a file that was replaced from what it was.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whats_wrong(path: Path, file: Mapping[str, Any]) -> str | None:
    """What distinguishes a file from the one that the catalogue states, `None` if nothing does."""
    size, sha256, has = file.get("size"), file.get("sha256"), path.stat().st_size
    if size is not None and has != size:
        return f"{has} bytes, expected {size}"
    if sha256 is not None and sha256_of(path) != sha256:
        return f"sha256 {sha256_of(path)}, expected {sha256}"
    return None


@contextmanager
def from_hub(repository: str, *, progress: bool, advice: str) -> Iterator[None]:
    """Let the hub's client download, with its progress bars or without; its errors end with `advice`.

    Raises
    ------
    PermissionError
        If the owners ask to accept terms and this account has not, or is not logged in.
    FileNotFoundError
        If repository, revision or file do not exist.
    ConnectionError
        If the hub cannot be reached.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    switch = not progress and not are_progress_bars_disabled()
    if switch:
        disable_progress_bars()
    try:
        page = f"{hub_endpoint()}/datasets/{repository}"
        with hub_errors(repository, url=page, local_advice=advice, what="files"):
            yield
    finally:
        if switch:
            enable_progress_bars()


def _fetch_from_hub(place: Sequence[str], folder: Path, *, progress: bool, advice: str) -> Path:
    """Path of a file that the hub's client, which resumes and knows the user's token, has put below `folder`."""
    from huggingface_hub import hf_hub_download

    repository, revision, path = place
    advice = f"{advice}. A token can also be given as the environment variable HF_TOKEN"
    with from_hub(repository, progress=progress, advice=advice):
        where: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "endpoint": hub_endpoint()}
        return Path(hf_hub_download(repository, path, local_dir=folder / ".hub", **where))
