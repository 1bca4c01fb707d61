"""Pages of prose, tables and pictures from templates: as Markdown, and as HTML that needs no other file.

A template is Markdown. What it fills in is taken letter by letter: names and citations of users cannot change the page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from ragst_sd._validate import listing

MISSING = "not assessed"
_HEAD_BYTES = 4096


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


@dataclass(frozen=True)
class Picture:
    """A picture of a page."""

    file: str
    """Name by which the page calls it."""
    png: bytes
    caption: str


def bears(path: Path, mark: str) -> bool:
    """Whether a text stands at the top of a file, such as the comment by which pages of this package are known."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark.encode() in file.read(_HEAD_BYTES)


def read_text(file: str) -> str:
    """The text of a file of the package, by its path in there."""
    return resources.files("ragst_sd").joinpath(file).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """The environment that all templates share; a name that a template uses and is not given is an error."""
    env = Environment(undefined=StrictUndefined, finalize=escaped, trim_blocks=True, lstrip_blocks=True)
    filters = (bullets, code, count, fenced, listing, number, percent, quartiles, table)
    env.filters |= {function.__name__: function for function in filters}
    return env


def to_markdown(template: str, facts: Mapping[str, Any]) -> str:
    """A page as Markdown: a template of the package, filled in with facts."""
    return environment().from_string(read_text(template)).render(facts).strip() + "\n"


def to_html(markdown: str, *, title: str, pictures: Sequence[Picture] = ()) -> str:
    """A page that begins with a comment as one HTML file, with the pictures in it."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    mark, _, text = markdown.partition("\n")
    body = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table").render(text)
    for picture in pictures:
        data = f"data:image/png;base64,{b64encode(picture.png).decode()}"
        body = body.replace(f'src="{picture.file}"', f'src="{data}"')
    frame = Environment(autoescape=True).from_string(read_text("_page.html"))
    return frame.render(title=title, mark=Markup(mark), body=Markup(body))


def escaped(value: Any) -> str:
    """Text that Markdown shows letter by letter, in one line."""
    if isinstance(value, Markdown):
        return value
    text = re.sub(r"([\\*_\[\]<>|#`~&])", r"\\\1", " ".join(str(value).split()))
    # What would begin a list or underline a heading.
    return re.sub(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+=]))", r"\1\\", text)


def code(value: object) -> Markdown:
    """A name set as code, in which a backtick or bar would end it."""
    text = " ".join(str(value).replace("`", "'").replace("|", "/").split())
    return Markdown(f"`{text}`")


def fenced(text: str, language: str) -> Markdown:
    """Lines of code, which cannot end their block."""
    return Markdown(f"```{language}\n{text.replace('```', chr(39) * 3)}\n```")


def bullets(items: Iterable[Any]) -> Markdown:
    """A list."""
    return Markdown("\n".join(f"- {escaped(item)}" for item in items))


def table(frame: pd.DataFrame) -> Markdown:
    """A table without its index, numbers flush right."""

    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(escaped(_cell(cell)) or ' ' for cell in cells)} |"

    rule = ["---:" if right else "---" for right in _flush_right(frame)]
    lines = [line(row) for row in frame.itertuples(index=False, name=None)]
    return Markdown("\n".join([line(frame.columns), f"|{'|'.join(rule)}|", *lines]))


def _cell(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int | np.integer) else value


def _flush_right(frame: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers; the first never, since it names the lines."""
    texts = frame.map(lambda value: str(_cell(value)))
    stated = [column[~column.isin(["", MISSING, "not known"])] for _, column in texts.items()]
    return [
        i > 0 and len(cells) > 0 and cells.str.match("[-\N{MINUS SIGN}]?[0-9]").all() for i, cells in enumerate(stated)
    ]


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
