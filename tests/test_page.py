"""The pages that a data card and a report are written on."""

from __future__ import annotations

import pandas as pd
import pytest
from jinja2 import UndefinedError

from ragst_sd import _page
from ragst_sd._page import Picture, to_html, to_markdown

from .html_reader import Reader

TEMPLATE = """<!-- made by a test -->

# T & {{ name }}

{{ items | bullets }}

{{ frame | table }}

![{{ pictures[0].caption }}](a.png)

{{ name | code }} {{ frame.why | length | count("line") }}

{{ lines | fenced("yaml") }}
"""
NASTY = "<b>*x*</b> | `y` & [c](d)\n # 1. _e_"


@pytest.fixture
def page(monkeypatch):
    frame = pd.DataFrame(
        {"name": ["1", NASTY], "n": [1234, 5], "share": ["12 %", "not assessed"], "why": ["", "5 < 6 "]}
    )
    facts = {
        "name": NASTY,
        "items": ["1. one", "- two", "+", "---", NASTY],
        "frame": frame,
        "lines": "x: <y>\n```\n# z",
    }
    facts["pictures"] = [Picture("a.png", b"png", "A *picture*")]
    real = _page.read_text
    monkeypatch.setattr(_page, "read_text", lambda file: TEMPLATE if file == "test" else real(file))
    return facts


@pytest.fixture
def markdown(page):
    return to_markdown("test", page)


def test_what_is_filled_in_is_text(markdown):
    written = r"\<b\>\*x\*\</b\> \| \`y\` \& \[c\](d) \# 1. \_e\_"
    lines = markdown.splitlines()
    for line in (
        "<!-- made by a test -->", f"# T & {written}", r"- 1\. one", r"- \- two", r"- \+", r"- \---", f"- {written}", "| name | n | share | why |",
        "|---|---:|---:|---:|", "| 1 | 1,234 | 12 % |   |", f"| {written} | 5 | not assessed | 5 \\< 6 |", r"![A \*picture\*](a.png)",
        "`<b>*x*</b> / 'y' & [c](d) # 1. _e_` 2 lines", "```yaml", "x: <y>", "'''", "# z",
    ):  # fmt: skip
        assert line in lines, line


def test_html_shows_the_same(page, markdown):
    html = to_html(markdown, title=NASTY, pictures=page["pictures"])
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and "<!-- made by a test -->" in html
    assert not {"b", "em", "a", "ol", "hr"} & set(reader.tags)
    assert reader.sources == ["data:image/png;base64,cG5n"]
    shown = "<b>*x*</b> | `y` & [c](d) # 1. _e_"
    for text in (f"T & {shown}", "1. one", "- two", f"{shown} 5 not assessed 5 < 6", "x: <y> ''' # z"):
        assert " ".join(text.split()) in reader.prose, text
    assert '<td style="text-align:right">1,234</td>' in html
    assert "made by" not in reader.prose


def test_what_nobody_has_given_is_an_error(page):
    del page["name"]
    with pytest.raises(UndefinedError, match="name"):
        to_markdown("test", page)


def test_a_column_of_names_is_no_column_of_numbers():
    frame = pd.DataFrame({"section": ["151507"], "donor": ["Br5292"], "spots": [1], "ceiling": ["not assessed"]})
    assert "|---|---|---:|---|" in _page.table(frame)
