"""A server of files and an empty cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ragst_sd as rg

from .server import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .server import FileServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Files on 127.0.0.1, asked without proxy and without waiting between attempts."""
    from ragst_sd.datasets import _download

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_download.time, "sleep", lambda seconds: None)
    # What has arrived of a block is lost when the connection breaks.
    monkeypatch.setattr(_download, "_BLOCK", 1000)
    with serve() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Cache folder of this test, no mirror, no progress bars."""
    monkeypatch.delenv("RAGST_SD_DATA_DIR", raising=False)
    with rg.settings.override(cache_dir=tmp_path / "cache", progress=False):
        yield tmp_path / "cache"
