"""`rg.io.upload_reference`."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._licenses import NO_DERIVATIVES, terms_of
from ragst_sd._reference import read_header
from ragst_sd._validate import listing, require_type
from ragst_sd.image.hub import hub_endpoint

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
STORE, CARD = "reference.zarr.zip", "README.md"
# As the hub calls them; any other licence is "other", with its name beside it.
_HUB_LICENSES = {
    *("mit", "apache-2.0", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "odbl", "pddl", "gpl-3.0", "lgpl-3.0"),
    *("cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
}


def upload_reference(
    reference: AnnData,
    repository: str,
    *,
    name: str | None = None,
    private: bool = True,
    revision: str = "main",
    accept_terms: bool = False,
) -> str:
    """Upload a reference and its data card to a data set repository on the Hugging Face hub.

    The account comes from the hub's own client: use `hf auth login` or the environment variable `HF_TOKEN`. A token is
    never an argument, and is neither written nor logged.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference`, fitted or not, in memory.
    repository
        `owner/name` on the hub; made if it does not exist.
    name
        Title of the data card; that of the recipe if left out.
    private
        Who can see a repository that is made: only its owners, or everybody. One that exists keeps what it has.
    revision
        Branch that the commit goes to.
    accept_terms
        Upload although the licence of a source forbids to pass on what is derived from it, or is unknown or not
        understood. You may hold a permission that the reference does not know of.

    Returns
    -------
    The hash of the commit, by which :func:`download_reference` gets this very reference again. The repository then
    holds one file, `reference.zarr.zip` (an earlier one is replaced), and the data card `README.md` with its pictures.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `reference` is not a reference, `repository` is not `owner/name`, or a licence does not allow it.
    PermissionError
        If you are not logged in, or the account has no write access.
    FileNotFoundError
        If the branch does not exist.
    ConnectionError
        If the hub cannot be reached.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=1, image_px=500)
    >>> rg.pp.embed_tiles(sections["donor1"], progress=False)
    >>> sources = {"donor1": {"license": "CC0-1.0", "citation": "Drawn by ragst_sd"}}
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture", sources=sources)
    >>> commit = rg.io.upload_reference(reference, "my-lab/drawn-tissue")
    >>> len(commit)
    40
    """
    from huggingface_hub import HfApi

    from ragst_sd.io import write_reference
    from ragst_sd.io._data_card import data_card

    header = read_header(reference, "histology")
    check_repository(repository)
    require_type(revision, str, "revision")
    if not accept_terms:
        _check_terms(header["sources"]["license"].to_dict())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_reference(reference, folder / STORE)
        text = data_card(reference, path=folder, name=name)
        metadata = _hub_metadata(text, list(map(str, header["sources"]["license"])), repository)
        (folder / CARD).write_text(metadata + text, encoding="utf-8")
        api = HfApi(endpoint=hub_endpoint())
        with upload_errors(repository):
            api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
            about: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset", "revision": revision}
            what = f"Reference {header['content_hash'][:12]}"
            commit = api.upload_folder(folder_path=folder, commit_message=what, **about)
    logger.info("%s is at %s/datasets/%s, commit %s.", what, hub_endpoint(), repository, commit.oid)
    return str(commit.oid)


def _check_terms(licenses: dict[str, str]) -> None:
    """Refuse to pass on what a licence keeps from being passed on, or might."""
    refused = {sample: name for sample, name in licenses.items() if terms_of(name).rank >= NO_DERIVATIVES.rank}
    if refused:
        reasons = "; ".join(
            f"{name!r} ({terms_of(name).meaning}): {listing([sample for sample in refused if refused[sample] == name])}"
            for name in dict.fromkeys(refused.values())
        )
        raise ValueError(
            f"A reference is derived from its sections, and of {len(refused)} of them the licence does not say that "
            f"it may be passed on: {reasons}. Name the licences with `rg.tl.build_reference(..., sources=...)` where "
            "you know them, leave these sections out with "
            f"`rg.tl.merge_references(reference[~reference.obs['{_keys.SAMPLE}'].isin([...])])`, or pass "
            "`accept_terms=True` if you have a permission."
        )


def _hub_metadata(card: str, licenses: Sequence[str], repository: str) -> str:
    """The block of fields before a data card that the hub reads: the most restrictive licences, a title, tags."""
    from huggingface_hub import DatasetCardData

    most = max(terms_of(name).rank for name in licenses)
    license = ", ".join(sorted({name for name in licenses if terms_of(name).rank == most}))
    known = license.strip().lower().replace(" ", "-")
    listed = known in _HUB_LICENSES
    fields = DatasetCardData(
        license=known if listed else "other",
        license_name=None if listed else license,
        pretty_name=next((line[2:] for line in card.splitlines() if line.startswith("# ")), repository),
        tags=["ragst-sd", "spatial-transcriptomics", "histology", "gene-expression"],
    )
    return f"---\n{fields.to_yaml()}\n---\n\n"


def check_repository(repository: str) -> None:
    """Raise a `ValueError` unless this is `owner/name`."""
    require_type(repository, str, "repository")
    if _REPOSITORY.fullmatch(repository) is None:
        raise ValueError(f"`repository` is {repository!r}; it must be 'owner/name' of a data set on the hub.")


@contextmanager
def upload_errors(repository: str) -> Iterator[None]:
    """Retell the errors of an upload as builtin ones that say what to do, without the request and the token in it.

    Raises
    ------
    PermissionError
        If you are not logged in, or the account has no write access.
    FileNotFoundError
        If there is no such branch.
    ConnectionError
        If the hub cannot be reached, or refuses for another reason.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionNotFoundError

    page = f"{hub_endpoint()}/datasets/{repository}"
    refused = (
        f"The hub does not let this account write to {page}: nobody is logged in, the token may only read, or the "
        "repository belongs to others. Run `hf auth login` with a token that may write, or set HF_TOKEN."
    )
    failure: OSError
    try:
        yield
        return
    except RevisionNotFoundError:
        failure = FileNotFoundError(f"{repository!r} has no such branch. Branches: {page}/tree/main.")
    except LocalTokenNotFoundError:
        failure = PermissionError(refused)
    except HfHubHTTPError as error:
        status = error.response.status_code
        failure = ConnectionError(f"The hub did not take the files for {page} (status {status}). Try again later.")
        if status in (401, 403, 404):
            failure = PermissionError(refused)
    except Exception as error:
        # The client passes on what its HTTP library raises, which is another one in each of its releases.
        words = ("Connect", "Timeout", "Network", "Protocol")
        if not isinstance(error, OSError) and not any(word in type(error).__name__ for word in words):
            raise
        failure = ConnectionError(
            f"The hub cannot be reached for {page} ({type(error).__name__}). Nothing was changed there; try again."
        )
    raise failure from None
