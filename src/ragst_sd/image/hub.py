"""Errors of model hubs, retold so that they say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

WEIGHTS = "weights"
LOCAL_ADVICE = "pass a file that you have: `model_kwargs={'checkpoint_path': '/path/to/model.safetensors'}`"


@contextmanager
def hub_errors(
    model_id: str, *, url: str | None = None, local_advice: str = LOCAL_ADVICE, what: str = WEIGHTS
) -> Iterator[None]:
    """Turn the hub's errors into builtin ones without the hub's stack.

    Parameters
    ----------
    model_id
        What is being loaded, as the messages name it.
    url
        Page of the model, where its terms are accepted; `None` derives it from `model_id`.
    local_advice
        How a local copy is passed for this kind of model.
    what
        What is downloaded, as the messages name it: the weights of a model, or the files of a data set.

    Raises
    ------
    PermissionError
        The model is gated and this account may not download it.
    FileNotFoundError
        There is no such repository (or it is private), revision or file.
    ConnectionError
        The hub cannot be reached, or offline mode is set and the model is not in the cache.
    """
    try:
        yield
    except Exception as error:
        failure = _retell(error, model_id, url or model_url(model_id), local_advice, what)
        if failure is None:
            raise
        raise failure from None


def hub_endpoint() -> str:
    """Address of the hub: the environment variable `HF_ENDPOINT`, as it is now."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def model_url(model_id: str) -> str:
    """Page of a hub model.

    Parameters
    ----------
    model_id
        `org/name`, with or without `hf-hub:` and `@revision`.

    Returns
    -------
    The address, on the endpoint that `HF_ENDPOINT` names.
    """
    repository = model_id.removeprefix("hf-hub:").removeprefix("hf_hub:").split("@")[0]
    return f"{hub_endpoint()}/{repository}" if "/" in repository else f"{hub_endpoint()}/models?search={repository}"


def _retell(error: Exception, model_id: str, url: str, local_advice: str, what: str) -> OSError | None:
    """The builtin error that says what to do; `None` if the error is not one of the hub."""
    names = _class_names(error)
    page = " See `Gated models` in the documentation." if what == WEIGHTS else ""
    if "GatedRepoError" in names:
        return PermissionError(
            f"{model_id!r} is gated: its owners ask every user to accept their terms. Accept the licence at {url}, "
            f"run `hf auth login` with a token of that account, and try again; or {local_advice}.{page}"
        )
    if "RepositoryNotFoundError" in names:
        return FileNotFoundError(
            f"{model_id!r} was not found on the hub, or it is private or gated and you are not logged in. Check the "
            f"name at {url}; if it asks to accept terms, do so and run `hf auth login`; or {local_advice}.{page}"
        )
    if "RevisionNotFoundError" in names:
        return FileNotFoundError(f"{model_id!r} names a revision that the hub does not have: {url}/tree/main.")
    is_local = "LocalEntryNotFoundError" in names
    if "EntryNotFoundError" in names and not is_local and what != WEIGHTS:
        return FileNotFoundError(f"{model_id!r} has no such file ({error}). Its files: {url}/tree/main.")
    if "EntryNotFoundError" in names and not is_local:
        return FileNotFoundError(
            f"{model_id!r} has no file of the kind that timm loads (config.json with model.safetensors or "
            f"pytorch_model.bin), so it is not a timm model. Load it yourself (see {url}) and pass the module, or a "
            "callable, as `model`."
        )
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if "OfflineModeIsEnabled" in names or (is_offline and is_local):
        reason = "offline mode is set (`HF_HUB_OFFLINE`)"
    elif is_local:
        reason = "the hub cannot be reached"
    elif names & {"HfHubHTTPError", "URLError", "ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError"}:
        reason = f"the download failed ({type(error).__name__})"
    else:
        return None
    gated = "the model is gated (see `rg.pp.encoders()`)" if what == WEIGHTS else "it is gated"
    return ConnectionError(
        f"The {what} of {model_id!r} are not in the local cache and {reason}. Connect and run once (the cache is "
        f"used from then on), copy the cache folder (`HF_HOME`) from a machine that has them, or {local_advice}. "
        f"If {gated}, accept its terms at {url} and run `hf auth login` first."
    )


def _class_names(error: BaseException) -> set[str]:
    """Class names along the error and what it was raised from: transformers wraps the hub's errors in OSError."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return {kind.__name__ for error in chain for kind in type(error).__mro__}
