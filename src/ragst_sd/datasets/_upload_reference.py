"""`rg.datasets.upload_reference`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ragst_sd import _keys
from ragst_sd._licenses import NO_DERIVATIVES, terms_of
from ragst_sd._reference import reference_header
from ragst_sd._validate import listing, require_type
from ragst_sd.datasets._hub import check_repository, hub_endpoint, upload_errors
from ragst_sd.datasets._shared_layout import CARD, STORE, card_with_metadata

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def upload_reference(
    reference: AnnData,
    repository: str,
    *,
    name: str | None = None,
    private: bool = True,
    revision: str = "main",
    accept_terms: bool = False,
) -> str:
    """Share a reference through a data set repository of the Hugging Face hub, with its data card.

    The account is the one that the hub's own client knows: from `hf auth login`, or the environment variable `HF_TOKEN`. A token
    is never an argument here, and nothing of it is written or logged.

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
        Upload although the licence of a source forbids to pass on what is derived from it, or is unknown or not understood.
        You may hold a permission that the reference does not know of.

    Returns
    -------
    The hash of the commit, by which :func:`download_reference` gets this very reference again. The repository then holds
    `reference.zarr` (an earlier one is replaced as a whole, in the same commit) and the data card `README.md` with its pictures.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `reference` is not a reference, `repository` is not `owner/name`, or a licence does not allow it.
    PermissionError
        If nobody is logged in, or the account may not write there.
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
    >>> commit = rg.datasets.upload_reference(reference, "my-lab/drawn-tissue")
    >>> len(commit)
    40
    """
    from huggingface_hub import HfApi

    from ragst_sd.io import write_reference
    from ragst_sd.io._data_card import data_card

    header = reference_header(reference)
    check_repository(repository)
    require_type(revision, str, "revision")
    if not accept_terms:
        _check_terms(header["sources"]["license"].to_dict())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_reference(reference, folder / STORE)
        text = data_card(reference, path=folder, name=name)
        licenses = [str(one) for one in header["sources"]["license"]]
        (folder / CARD).write_text(card_with_metadata(text, licenses, repository), encoding="utf-8")
        api = HfApi(endpoint=hub_endpoint())
        with upload_errors(repository):
            api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                repo_type="dataset",
                folder_path=folder,
                revision=revision,
                commit_message=f"Reference {header['content_hash'][:12]}",
                # Chunks of an earlier reference must not be taken for chunks of this one.
                delete_patterns=[f"{STORE}/*"],
            )
    logger.info(
        "Reference %s is at %s/datasets/%s, commit %s.",
        header["content_hash"][:12], hub_endpoint(), repository, commit.oid,
    )  # fmt: skip
    return str(commit.oid)


def _check_terms(licenses: dict[str, str]) -> None:
    """Refuse to pass on what a licence keeps from being passed on, or might."""
    held = {sample: license for sample, license in licenses.items() if terms_of(license).rank >= NO_DERIVATIVES.rank}
    if held:
        found = "; ".join(
            f"{license!r} ({terms_of(license).meaning}): {listing([s for s, own in held.items() if own == license])}"
            for license in dict.fromkeys(held.values())
        )
        msg = (
            f"A reference is derived from its sections, and of {len(held)} of them the licence does not say that it may be passed "
            f"on: {found}. Name the licences with `sources=` where you know them, leave these sections out with "
            f"`rg.tl.merge_references(reference[~reference.obs['{_keys.SAMPLE}'].isin([...])])`, or pass `accept_terms=True` if you "
            "have a permission."
        )
        raise ValueError(msg)
