"""Files of data sets on the Hugging Face hub, gated ones included."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from ragst_sd.datasets._checksum import note_new, whats_wrong
from ragst_sd.image.hub import hub_errors

if TYPE_CHECKING:
    from pathlib import Path

    from ragst_sd.datasets._download import RemoteFile

_ADDRESS = re.compile(r"https?://(?:www\.)?huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)")


class HubFile(NamedTuple):
    """Where a file lies on the hub."""

    repository: str
    revision: str
    path: str


def on_hub(url: str) -> HubFile | None:
    """The place on the hub that an address means, `None` if it means another server."""
    found = _ADDRESS.match(url)
    return HubFile(*found.groups()) if found else None


def fetch_from_hub(file: RemoteFile, place: HubFile, folder: Path, *, progress: bool, advice: str) -> Path:
    """Path of the file below `folder`, downloaded by the hub's client (which resumes, and knows the user's token).

    Raises
    ------
    PermissionError
        If the owners ask to accept terms and this account has not, or is not logged in.
    FileNotFoundError
        If repository or file do not exist.
    ConnectionError
        If the hub cannot be reached.
    ValueError
        If the file is not what the catalogue states.
    """
    from filelock import FileLock
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        there = target.is_file()
        if there and whats_wrong(target, size=file.size, sha256=file.sha256) is None:
            return target
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        page = f"{endpoint}/datasets/{place.repository}"
        silent = progress or are_progress_bars_disabled()
        if not silent:
            disable_progress_bars()
        try:
            with hub_errors(place.repository, url=page, local_advice=advice, what="files"):
                # The folder mirrors the repository, so that its own readers find what they expect.
                hf_hub_download(
                    place.repository,
                    place.path,
                    repo_type="dataset",
                    revision=place.revision,
                    local_dir=folder,
                    endpoint=endpoint,
                    force_download=there,
                )
        finally:
            if not silent:
                enable_progress_bars()
        if place.path != file.name:
            (folder / place.path).replace(target)
        wrong = whats_wrong(target, size=file.size, sha256=file.sha256)
        if wrong is not None:
            target.unlink()
            msg = f"{file.url} is not the file that was expected: {wrong}. It was not kept. {advice}"
            raise ValueError(msg)
        note_new(target, known=file.sha256 is not None)
    return target
