"""`rg.io.download_reference`."""

from __future__ import annotations

import logging
import re
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from anndata import AnnData

from ragst_sd._settings import settings
from ragst_sd._validate import require_type
from ragst_sd.datasets._download import from_hub
from ragst_sd.image.hub import hub_endpoint
from ragst_sd.io._check_downloaded import check_downloaded
from ragst_sd.io._upload_reference import CARD, STORE, check_repository

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def download_reference(
    repository: str,
    *,
    revision: str | None = None,
    content_hash: str | None = None,
    path: str | PathLike[str] | None = None,
    lazy: bool = False,
    progress: bool | None = None,
) -> AnnData:
    """Download a reference that :func:`upload_reference` uploaded to the Hugging Face hub.

    The download is always checked against its content hash. A private or gated repository needs an account: use
    `hf auth login` or the environment variable `HF_TOKEN`. A token is never an argument.

    Parameters
    ----------
    repository
        `owner/name` on the hub.
    revision
        Commit, tag or branch; the newest of the main branch if left out. Name the commit to get the same reference
        every time; it is then read from disk, without a network, where it is there already.
    content_hash
        `uns["ragst"]["content_hash"]` that the reference must have.
    path
        Folder for the files, made if it does not exist; `<rg.settings.cache_dir>/references/<owner>--<name>/<commit>`
        if left out.
    lazy
        Leave the rows on disk, see :func:`ragst_sd.io.read_reference`. The content hash is computed once all the same,
        block by block.
    progress
        Show progress bars; the setting if left out.

    Returns
    -------
    The reference, see :func:`ragst_sd.io.read_reference`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    PermissionError
        If its owners ask to accept terms and this account has not, or is not logged in.
    FileNotFoundError
        If there is no such repository or revision, or it holds no reference.
    ConnectionError
        If the hub cannot be reached.
    ValueError
        If `repository` is not `owner/name`, if the content is not what its hash or `content_hash` says, or if the
        files hold Python objects, lead elsewhere or say that they are larger than they can be. What was downloaded
        into the cache is removed then.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> sources = {"donor1": {"license": "CC0-1.0", "citation": "Drawn by ragst_sd"}}
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture", sources=sources)
    >>> commit = rg.io.upload_reference(reference, "my-lab/drawn-tissue")
    >>> again = rg.io.download_reference("my-lab/drawn-tissue", revision=commit)
    >>> again.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]
    True
    """
    check_repository(repository)
    for value, argument in ((revision, "revision"), (content_hash, "content_hash")):
        if value is not None:
            require_type(value, str, argument)
    given = None if path is None else Path(path).expanduser()
    store = _fetch(repository, revision, given, progress=settings.progress if progress is None else progress)
    try:
        check_downloaded(store)
        return _checked(store, content_hash, repository, lazy=lazy)
    except ValueError:
        if given is None:
            shutil.rmtree(store.parent)
        raise


def _fetch(repository: str, revision: str | None, given: Path | None, *, progress: bool) -> Path:
    """The store of a reference on this disk, downloaded if need be."""
    from huggingface_hub import HfApi, snapshot_download

    cache = settings.cache_dir / "references" / repository.replace("/", "--")
    if given is None and _COMMIT.fullmatch(str(revision)) and (cache / str(revision) / STORE).is_file():
        return cache / str(revision) / STORE
    endpoint = hub_endpoint()
    page = f"{endpoint}/datasets/{repository}"
    advice = "read a copy that you have with `rg.io.read_reference`"
    with from_hub(repository, progress=progress, advice=advice):
        info = HfApi(endpoint=endpoint).dataset_info(repository, revision=revision)
        if STORE not in {file.rfilename for file in info.siblings or ()}:
            raise FileNotFoundError(
                f"{repository!r} holds no {STORE!r} at revision {revision or 'main'!r}. Its files: {page}/tree/main."
            )
        folder = cache / str(info.sha) if given is None else given
        what: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": [STORE, CARD, "*.png"]}
        snapshot_download(repository, revision=str(info.sha), local_dir=folder, endpoint=endpoint, **what)
    logger.info("Reference of %s, commit %s, is in %s.", repository, info.sha, folder)
    return folder / STORE


def _checked(store: Path, content_hash: str | None, repository: str, *, lazy: bool) -> AnnData:
    from ragst_sd._reference import read_header, reference_hash
    from ragst_sd.io import read_reference

    reference = read_reference(store, lazy=lazy)
    stated = str(read_header(reference)["content_hash"])
    # A lazy reference trusts what lies on disk, which has just come over a network.
    current = reference_hash(reference) if lazy else stated
    for expected, whose in ((stated, "its own header"), (content_hash, "`content_hash`")):
        if expected is not None and current != expected:
            raise ValueError(
                f"The reference of {repository!r} has the content hash {current}, and {whose} says {expected}: it "
                "is not that reference."
            )
    return reference
