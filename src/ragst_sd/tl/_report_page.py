"""A page of prose, tables and pictures, written as Markdown and as HTML that needs no other file.

In texts, what stands between backticks is code. Everything else is taken letter by letter: names and citations of users cannot
change the page.
"""

from __future__ import annotations

import base64
import html
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MADE_BY = "made by rg.tl.report"
_STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --line: #d9e2ec; --shade: #f5f7fa; --accent: #0b6e99; --warn: #fff8e6; --edge: #d9822b; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: white; font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); }
p, ul { margin: .6rem 0; max-width: 48rem; }
li { margin: .3rem 0; }
.subtitle { color: var(--soft); margin: 0 0 1.2rem; }
.glance { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.glance div { background: var(--shade); border-radius: .5rem; padding: .7rem .9rem; }
.glance dt { color: var(--soft); font-size: .82rem; }
.glance dd { margin: .1rem 0 0; font-size: 1.12rem; font-weight: 600; line-height: 1.3; }
.glance small { display: block; font-weight: 400; font-size: .85rem; color: var(--soft); }
.notice { background: var(--warn); border-left: 4px solid var(--edge); border-radius: .25rem; padding: .35rem 1rem; }
.notice h2 { border: 0; margin: .7rem 0 .2rem; padding: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 3.5rem; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--shade); border-radius: .2rem;
  padding: .05em .3em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { max-width: min(100%, 56rem); height: auto; display: block; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; max-width: 48rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media print {
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; } tr, .glance div, li { break-inside: avoid; } .scroll { overflow: visible; }
}
"""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; columns named in `numbers` are set flush right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A picture, for HTML only; in Markdown its caption says where it is."""

    png: bytes
    caption: str


Block = str | Bullets | Table | Picture
"""A string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]
    notice: bool = False
    """Whether it is set apart, to be read first."""


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    subtitle: str
    glance: Sequence[tuple[str, str, str]]
    """Label, value and remark of what is told first."""
    sections: Sequence[Section]
    footer: str
    generator: str = field(default=MADE_BY)


def plain(value: object) -> str:
    """A name or text of a user, which cannot hold code."""
    return " ".join(str(value).replace("`", "'").split())


def to_markdown(page: Page) -> str:
    """The page as Markdown, without its pictures."""
    lines = [f"<!-- {page.generator} -->", "", f"# {_md(page.title)}", "", _md(page.subtitle), ""]
    lines += _md_table(Table(["At a glance", ""], [[a, f"{b} ({c})" if c else b] for a, b, c in page.glance]))
    for section in page.sections:
        lines += ["", f"## {_md(section.title)}"]
        for block in section.blocks:
            lines += ["", *_md_block(block)]
    return "\n".join([*lines, "", "---", "", _md(page.footer), ""])


def to_html(page: Page) -> str:
    """The page as one HTML file."""
    glance = "".join(
        f"<div><dt>{_html(label)}</dt><dd>{_html(value)}{f'<small>{_html(remark)}</small>' if remark else ''}</dd></div>"
        for label, value, remark in page.glance
    )
    opening = {False: "<section>", True: '<section class="notice">'}
    sections = "".join(
        f"{opening[section.notice]}\n<h2>{_html(section.title)}</h2>\n"
        f"{''.join(_html_block(block) for block in section.blocks)}</section>\n"
        for section in page.sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<!-- {page.generator} -->\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_html(page.title, code=False)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{_html(page.title)}</h1>\n<p class="subtitle">{_html(page.subtitle)}</p>\n'
        f'<dl class="glance">{glance}</dl>\n{sections}<footer>{_html(page.footer)}</footer>\n</main>\n</body>\n</html>\n'
    )


def _spans(text: str, prose: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Text with its code and the rest each in their own way; a last backtick without a partner is a letter."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    return "".join(code(part) if i % 2 else prose(part) for i, part in enumerate(parts))


def _md(text: str) -> str:
    escaped = _spans(text, lambda part: re.sub(r"([\\*_\[\]<>|#`~&])", r"\\\1", part), lambda part: f"`{part}`")
    return " ".join(escaped.split())


def _md_block(block: Block) -> list[str]:
    if isinstance(block, Bullets):
        return [f"- {_md(item)}" for item in block.items]
    if isinstance(block, Table):
        return _md_table(block)
    if isinstance(block, Picture):
        return [f"(Picture in the HTML page: {_md(block.caption)})"]
    return [_md(block)]


def _md_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        # A bar inside code would end the cell.
        return f"| {' | '.join(_md(cell.replace('|', '/') if '`' in cell else cell) or ' ' for cell in cells)} |"

    rule = ["---:" if name in table.numbers else "---" for name in table.columns]
    return [line(table.columns), f"|{'|'.join(rule)}|", *(line(row) for row in table.rows)]


def _html(text: str, *, code: bool = True) -> str:
    return _spans(text, html.escape, lambda part: f"<code>{html.escape(part)}</code>" if code else html.escape(part))


def _html_block(block: Block) -> str:
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{_html(item)}</li>' for item in block.items)}</ul>\n"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        caption = _html(block.caption)
        alt = html.escape(block.caption.replace("`", ""), quote=True)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{caption}</figcaption></figure>\n'
        )
    return f"<p>{_html(block)}</p>\n"


def _html_table(table: Table) -> str:
    kinds = [' class="number"' if name in table.numbers else "" for name in table.columns]
    head = "".join(f"<th{kind}>{_html(name)}</th>" for name, kind in zip(table.columns, kinds, strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{kind}>{_html(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>\n"
        for row in table.rows
    )
    named = f"<thead><tr>{head}</tr></thead>\n" if any(table.columns) else ""
    return f'<div class="scroll"><table>\n{named}<tbody>\n{rows}</tbody>\n</table></div>\n'
