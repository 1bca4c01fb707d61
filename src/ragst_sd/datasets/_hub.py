"""Files of data sets on the Hugging Face hub, gated ones included."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ragst_sd._validate import require_type
from ragst_sd.image.hub import hub_endpoint, hub_errors

_ADDRESS = re.compile(r"https?://(?:www\.)?huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOG_IN = "Run `hf auth login` with a token that may write, or set HF_TOKEN."


def on_hub(url: str) -> tuple[str, ...] | None:
    """Repository, revision and path on the hub that an address means, `None` if it means another server."""
    place = _ADDRESS.match(url)
    return place.groups() if place else None


def check_repository(repository: str) -> None:
    """Raise a `ValueError` unless this is `owner/name`."""
    require_type(repository, str, "repository")
    if _REPOSITORY.fullmatch(repository) is None:
        raise ValueError(f"`repository` is {repository!r}; it must be 'owner/name' of a data set on the hub.")


@contextmanager
def quiet_hub(*, quiet: bool) -> Iterator[None]:
    """Keep the progress bars of the hub's client from showing, if asked for."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    switch = quiet and not are_progress_bars_disabled()
    if switch:
        disable_progress_bars()
    try:
        yield
    finally:
        if switch:
            enable_progress_bars()


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
    failure: OSError
    try:
        yield
        return
    except RevisionNotFoundError:
        failure = FileNotFoundError(f"{repository!r} has no such branch. Branches: {page}/tree/main.")
    except LocalTokenNotFoundError:
        failure = PermissionError(f"Nobody is logged in to {hub_endpoint()}. {_LOG_IN}")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            failure = PermissionError(
                f"The hub does not let this account write to {page} (status {status}): nobody is logged in, the "
                f"token may only read, or the repository belongs to others. {_LOG_IN}"
            )
        else:
            failure = ConnectionError(f"The hub did not take the files for {page} (status {status}). Try again later.")
    except Exception as error:
        # The client passes on what its HTTP library raises, which is another one in each of its releases.
        words = ("Connect", "Timeout", "Network", "Protocol")
        if not isinstance(error, OSError) and not any(word in type(error).__name__ for word in words):
            raise
        failure = ConnectionError(
            f"The hub cannot be reached for {page} ({type(error).__name__}). Nothing was changed there; try again."
        )
    raise failure from None


def fetch_from_hub(place: Sequence[str], folder: Path, *, progress: bool, advice: str) -> Path:
    """Path of a file that the hub's client, which resumes and knows the user's token, has put below `folder` for now.

    Raises
    ------
    PermissionError
        If the owners ask to accept terms and this account has not, or is not logged in.
    FileNotFoundError
        If repository or file do not exist.
    ConnectionError
        If the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    repository, revision, path = place
    page = f"{hub_endpoint()}/datasets/{repository}"
    advice = f"{advice}. A token can also be given as the environment variable HF_TOKEN"
    with quiet_hub(quiet=not progress), hub_errors(repository, url=page, local_advice=advice, what="files"):
        where: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "endpoint": hub_endpoint()}
        arrived = hf_hub_download(repository, path, local_dir=folder / ".hub", **where)
    return Path(arrived)
