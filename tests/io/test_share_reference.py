"""References to and from the Hugging Face hub: its own client against a server on 127.0.0.1."""

from __future__ import annotations

import io
import logging
import socket
from copy import deepcopy
from zipfile import ZipFile

import numpy as np
import pytest
import yaml

import ragst_sd as rg

from .hub_server import TOKEN, serve_hub

REPOSITORY = "lab/bulb"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with serve_hub() as running, rg.settings.override(cache_dir=tmp_path / "cache", progress=False):
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        if client.__version__.startswith("0."):
            # These read the variable once, when they are imported.
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        yield running


@pytest.fixture
def free(fitted):
    """A fitted reference of sections that may be passed on."""
    fitted.uns["ragst"]["sources"]["license"] = ["MIT", "CC-BY-SA-4.0"]
    return fitted


@pytest.fixture(scope="module")
def _uploaded():
    """What the hub keeps after the first upload, so that a test need not begin with one."""
    return {}


@pytest.fixture
def shared(hub, free, _uploaded):
    """The commit of `free` in a private repository of the hub."""
    if not _uploaded:
        rg.io.upload_reference(free, REPOSITORY, name='A "bulb": small')
        _uploaded.update({name: deepcopy(getattr(hub, name)) for name in ("commits", "heads", "private")})
        hub.asked.clear()
    for name, kept in _uploaded.items():
        setattr(hub, name, deepcopy(kept))
    return hub.heads[REPOSITORY]


def content_hash(reference):
    return reference.uns["ragst"]["content_hash"]


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_uploaded_comes_back(hub, shared, free, query, lazy):
    assert hub.private[REPOSITORY]
    found = rg.io.download_reference(REPOSITORY, content_hash=content_hash(free), lazy=lazy)
    assert content_hash(found) == content_hash(free)
    assert hasattr(found.X, "dask") == lazy
    expected, again = (rg.tl.predict(query, one, inplace=False) for one in (free, found))
    np.testing.assert_array_equal(again.X, expected.X)
    # by its commit it is read from disk: nothing is asked
    n = len(hub.asked)
    rg.io.download_reference(REPOSITORY, revision=shared, lazy=lazy)
    assert len(hub.asked) == n


def test_the_card_goes_along(hub, shared, free):
    files = hub.files(REPOSITORY, shared)
    card = files["README.md"].decode()
    _, fields, _ = card.split("---\n", 2)
    about = yaml.safe_load(fields)
    assert (about["license"], about["pretty_name"]) == ("cc-by-sa-4.0", 'A "bulb": small')
    assert "ragst-sd" in about["tags"]
    assert '# A "bulb": small' in card
    assert content_hash(free) in card
    assert {"README.md", "composition.png", "reference.zarr.zip"} <= set(files) - {".gitattributes"}
    assert not any(name.startswith("reference.zarr/") for name in files)


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one(hub, shared, free, reference):
    reference.uns["ragst"]["sources"]["license"] = "MIT"
    smaller = rg.tl.merge_references(reference[reference.obs["donor"] == "donor1"].copy())
    second = rg.io.upload_reference(smaller, REPOSITORY)
    assert content_hash(rg.io.download_reference(REPOSITORY)) == content_hash(smaller)
    assert content_hash(rg.io.download_reference(REPOSITORY, revision=shared)) == content_hash(free)
    assert second == hub.heads[REPOSITORY] != shared


@pytest.mark.slow
def test_the_token_is_sent_and_kept_nowhere(hub, free, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        rg.io.upload_reference(free, REPOSITORY)
        rg.io.download_reference(REPOSITORY, path=tmp_path / "own")
    assert {token for _, path, token in hub.asked if "/commit/" in path} == {TOKEN}
    assert TOKEN not in caplog.text
    assert all(TOKEN.encode() not in content for content in hub.files(REPOSITORY).values())
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert all(TOKEN.encode() not in path.read_bytes() for path in kept)


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "hf_onlyreads"])
def test_an_account_that_may_not_write(hub, free, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=r"hf auth login.*HF_TOKEN") as caught:
        rg.io.upload_reference(free, REPOSITORY)
    assert caught.value.__cause__ is None
    assert str(token) not in str(caught.value)
    assert hub.commits == {}


def test_a_private_repository_is_not_shown_to_others(shared, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match=r"private or gated and you are not logged in.*hf auth login"):
        rg.io.download_reference(REPOSITORY)


@pytest.mark.slow
def test_a_commit_that_is_refused_changes_nothing(hub, shared, free):
    hub.fail = 422
    with pytest.raises(ConnectionError, match="did not take the files"):
        rg.io.upload_reference(free, REPOSITORY)
    assert hub.heads[REPOSITORY] == shared


def test_a_hub_that_is_not_there(free, monkeypatch, hub):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        rg.io.upload_reference(free, REPOSITORY)
    with pytest.raises(ConnectionError, match=r"download failed|cannot be reached"):
        rg.io.download_reference(REPOSITORY)


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True])
def test_another_content_is_refused(hub, shared, free, tmp_path, lazy):
    with pytest.raises(ValueError, match="`content_hash` says 0000"):
        rg.io.download_reference(REPOSITORY, content_hash="0000", lazy=lazy)
    # someone changes values in the repository: another embedding under the old header
    files = hub.files(REPOSITORY, shared)
    other = free.copy()
    other.obsm["X_colour"][3] += 1
    rg.io.write_reference(other, tmp_path / "other.zarr.zip")
    changed = io.BytesIO()
    with (
        ZipFile(io.BytesIO(files["reference.zarr.zip"])) as true,
        ZipFile(tmp_path / "other.zarr.zip") as false,
        ZipFile(changed, "w") as out,
    ):
        for name in true.namelist():
            out.writestr(name, (false if name.startswith("obsm/X_colour/") else true).read(name))
    files["reference.zarr.zip"] = changed.getvalue()
    with pytest.raises(ValueError, match=r"does not match its hash|its own header says"):
        rg.io.download_reference(REPOSITORY, revision=shared, lazy=lazy)
    assert not list((tmp_path / "cache" / "references").rglob("*.zip")), "nothing of it is kept"


def test_files_are_looked_at_before_they_are_read(hub, shared, tmp_path):
    files = hub.files(REPOSITORY, shared)
    for name, content in files.items():
        files[name] = content.replace(b'"name": "bytes"', b'"name": "evil!"')
    with pytest.raises(ValueError, match=r"was downloaded and is (not read: .*'evil!'|damaged)"):
        rg.io.download_reference(REPOSITORY, revision=shared)
    assert not list((tmp_path / "cache" / "references").rglob("reference.zarr*")), "nothing of it is kept"


def test_repositories_without_a_reference(hub, shared, free):
    with pytest.raises(ValueError, match=r"`repository` is 'bulb'; it must be 'owner/name'"):
        rg.io.upload_reference(free, "bulb")
    with pytest.raises(FileNotFoundError, match="was not found on the hub"):
        rg.io.download_reference("lab/none")
    with pytest.raises(FileNotFoundError, match="a revision that the hub does not have"):
        rg.io.download_reference(REPOSITORY, revision="v9")
    hub.private["lab/empty"] = False
    hub.commit("lab/empty", [])
    with pytest.raises(FileNotFoundError, match=r"holds no 'reference\.zarr\.zip'"):
        rg.io.download_reference("lab/empty")


@pytest.mark.slow
def test_what_may_not_be_passed_on_stays(hub, free):
    free.uns["ragst"]["sources"]["license"] = ["CC-BY-ND-4.0", "unknown"]
    with pytest.raises(
        ValueError, match=r"'CC-BY-ND-4\.0' \(.*\): 'donor1'; 'unknown' \(.*\): 'donor2'.*accept_terms=True"
    ):
        rg.io.upload_reference(free, REPOSITORY)
    assert hub.asked == []
    commit = rg.io.upload_reference(free, REPOSITORY, accept_terms=True)
    assert b"license: other" in hub.files(REPOSITORY, commit)["README.md"]
