"""The page that a data card and a report are written on."""

from __future__ import annotations

import pandas as pd

from ragst_sd._page import Code, Page, Picture, Section, to_html, to_markdown

from .html_reader import Reader


def test_the_page_as_markdown_and_html():
    table = pd.DataFrame(
        {"name": ["a|b", "`x|y`"], "n": [1234, 5], "share": ["12 %", "not assessed"], "why": ["", "one < 2"]}
    )
    pictures = [Picture(b"png", "In `it`"), Picture(b"png", "Beside *it*", "beside.png")]
    blocks = ["a *b* `c*d` <e>", ["f `g"], table, *pictures, Code("x: <y>\n```", "yaml")]
    sections = [Section("One `two`", blocks, notice=True), Section("Below", [], level=3)]
    page = Page("made by a test", "T & U", ", s", [("label", "value", "why")], sections, lead="L", footer="end")
    lines = to_markdown(page).splitlines()
    for line in (
        "<!-- made by a test -->", r"# T \& U", "**L**, s", "## One `two`", "### Below", r"a \*b\* `c*d` \<e\>", r"- f \`g",
        "| name | n | share | why |", "|---|---:|---:|---|", r"| a\|b | 1,234 | 12 % |   |", r"| `x/y` | 5 | not assessed | one \< 2 |",
        "| label | value (why) |", "(Picture in the HTML page: In `it`)", r"![Beside \*it\*](beside.png)", "x: <y>", "'''", "end",
    ):  # fmt: skip
        assert line in lines, line
    html = to_html(page)
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    for text in ("a *b* c*d <e>", "a|b", "x|y", "f `g", "In it", "L, s", "x: <y> ```"):
        assert text in reader.prose, text
    for markup in (
        "<code>c*d</code> &lt;e&gt;", '<section class="notice">', '<td class="number">1,234</td>', "<td>one &lt; 2</td>",
        '<th class="number">n</th>', "<th>name</th>", "<h3>Below</h3>", "<pre>x: &lt;y&gt;", "<title>T &amp; U</title>",
    ):  # fmt: skip
        assert markup in html, markup
    assert reader.sources == ["data:image/png;base64,cG5n"] * 2


def test_a_column_of_names_is_no_column_of_numbers():
    frame = pd.DataFrame({"section": ["151507"], "donor": ["Br5292"], "spots": [1], "ceiling": ["not assessed"]})
    page = Page("a test", "T", "s", [], [Section("S", [frame])])
    assert "|---|---|---:|---|" in to_markdown(page)
