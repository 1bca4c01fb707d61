"""A headless Chromium, and pages to look at; tests that need it are skipped by name where it is missing.

With `RAGST_SD_REQUIRE_BROWSER=1` they fail instead.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


REQUIRE_BROWSER = "RAGST_SD_REQUIRE_BROWSER"


def without_browser(reason: str) -> NoReturn:
    """Skip, or fail where a browser was promised."""
    if os.environ.get(REQUIRE_BROWSER) == "1":
        pytest.fail(f"{reason}, and {REQUIRE_BROWSER} is 1")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by playwright."""
    try:
        from playwright import sync_api as playwright
    except ImportError:
        without_browser("playwright is not installed: no browser")
    chromium = shutil.which("chromium")
    if chromium is None:
        without_browser("chromium is not installed: no browser")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens a file; whatever the page complains about or asks the network for makes the test fail at its end."""
    complaints, pages = [], []

    def start(path, width: int = 1280, height: int = 800):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else complaints.append(request.url)
            ),
        )
        pages.append(page)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield start
    for page in pages:
        page.close()
    assert complaints == []
