"""A page of prose, tables and pictures, as Markdown and as HTML that needs no other file: for the data card and the report.

In texts, what stands between backticks is code. Everything else is taken letter by letter: names and citations of users cannot
change the page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from importlib import resources
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from markupsafe import Markup

MISSING = "not assessed"
_HEAD_BYTES = 4096
_NO_NUMBER = {"", MISSING, "not known"}


@dataclass(frozen=True)
class Picture:
    """A picture. HTML holds it; Markdown shows `file`, which lies beside the page, or else says where it is."""

    png: bytes
    caption: str
    file: str = ""


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they are."""

    text: str
    language: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: paragraphs (str), lists, tables (DataFrame), pictures and code."""

    title: str
    blocks: Sequence[Any]
    notice: bool = False
    """Whether HTML sets it apart, to be read first."""
    level: int = 2


@dataclass(frozen=True)
class Page:
    """The whole page."""

    generator: str
    """A comment at its top, by which :func:`bears` knows the page again."""
    title: str
    subtitle: str
    glance: Sequence[tuple[str, str, str]]
    """Label, value and remark of what is told first."""
    sections: Sequence[Section]
    lead: str = ""
    """In bold before the subtitle."""
    footer: str = ""


def bears(path: Path, mark: str) -> bool:
    """Whether a file has a mark at its top, such as the comment by which a page of ours is known."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark.encode() in file.read(_HEAD_BYTES)


def to_html(page: Page) -> str:
    """The page as one HTML file."""
    from jinja2 import Environment

    env = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"base64": lambda png: b64encode(png).decode(), "cell": _cell, "rich": _html}
    template = resources.files("ragst_sd").joinpath("_page.html").read_text(encoding="utf-8")
    return env.from_string(template).render(page=page, flush_right=_flush_right).strip() + "\n"


def to_markdown(page: Page) -> str:
    """The page as Markdown, without the bytes of its pictures."""
    import pandas as pd

    lead = f"**{_md(page.lead)}**" if page.lead else ""
    glance = [[label, f"{value} ({remark})" if remark else value] for label, value, remark in page.glance]
    parts = [
        f"<!-- {page.generator} -->",
        f"# {_md(page.title)}",
        lead + _md(page.subtitle),
        _md_block(pd.DataFrame(glance, columns=["At a glance", ""])),
    ]
    for section in page.sections:
        parts += [f"{'#' * section.level} {_md(section.title)}", *map(_md_block, section.blocks)]
    if page.footer:
        parts += ["---", _md(page.footer)]
    return "\n\n".join(parts) + "\n"


def _md_block(block: Any) -> str:
    if isinstance(block, str):
        return _md(block)
    if isinstance(block, list):
        return "\n".join(f"- {_md(item)}" for item in block)
    if isinstance(block, Code):
        # Nothing in it may end the block.
        return f"```{block.language}\n{block.text.replace('```', chr(39) * 3)}\n```"
    if isinstance(block, Picture):
        caption = _md(block.caption)
        return f"![{caption}]({block.file})\n\n*{caption}*" if block.file else f"(Picture in the HTML page: {caption})"
    rule = ["---:" if right else "---" for right in _flush_right(block)]
    head, *rows = (
        f"| {' | '.join(_md_cell(cell) for cell in row)} |"
        for row in (block.columns, *block.itertuples(index=False, name=None))
    )
    return "\n".join([head, f"|{'|'.join(rule)}|", *rows])


def _md_cell(value: Any) -> str:
    text = _cell(value)
    # A bar inside code would end the cell.
    return _md(text.replace("|", "/") if "`" in text else text) or " "


def _md(text: str) -> str:
    parts = (f"`{part}`" if code else re.sub(r"([\\*_\[\]<>|#`~&])", r"\\\1", part) for part, code in _spans(text))
    return " ".join("".join(parts).split())


def _html(text: str) -> Markup:
    from markupsafe import Markup, escape

    parts = (Markup("<code>{}</code>").format(part) if code else escape(part) for part, code in _spans(text))
    return Markup("").join(parts)


def _spans(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text and whether each is code; a last backtick without a partner is a letter."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    return zip(parts, cycle([False, True]), strict=False)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def _flush_right(frame: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers; the first never, since it names the lines."""
    columns = [{_cell(value) for value in frame.iloc[:, i]} - _NO_NUMBER for i in range(frame.shape[1])]
    return [
        i > 0 and bool(cells) and all(re.match(r"[-\N{MINUS SIGN}]?\d", cell) for cell in cells)
        for i, cells in enumerate(columns)
    ]


def plain(value: object) -> str:
    """A name or text of a user, which cannot hold code."""
    return " ".join(str(value).replace("`", "'").split())


def table_of_texts(frame: pd.DataFrame, index: str) -> pd.DataFrame:
    """A table for a page whose texts may be written by users; `index` heads the names of its lines."""
    from pandas.api.types import is_numeric_dtype

    return frame.reset_index(names=index).apply(
        lambda values: values if is_numeric_dtype(values) else values.map(plain)
    )


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, or that it is not known."""
    if value is None or not np.isfinite(value):
        return MISSING
    rounded = round(float(value), digits) + 0.0
    return f"{rounded:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """A share as a percentage; what is not quite none or all does not become it."""
    if not np.isfinite(share):
        return MISSING
    if 0 < share < 0.005:
        return "under 1 %"
    if 0.995 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def count(n: int, what: str) -> str:
    """A number of things, in the singular for one."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def quartiles(values: Any, digits: int = 2) -> str:
    """Median with quartiles."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return MISSING
    low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75])
    return f"{number(middle, digits)} ({number(low, digits)} to {number(high, digits)})"
