"""The page "Errors and what to do", made of the catalogue and the messages that its cases give."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from .advice import ADVICE
from .catalogue import TOPICS, Case, World

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# Errors and what to do

An error says what was found, what is available and what to do, and leaves your objects as they were. This page holds one example
of each kind, with the message as it is shown. It is made by `RAGST_SD_NEW_ERRORS_PAGE=1 pytest tests/errors` from the table that the
tests run.

"""


def shown(message: str, world: World) -> str:
    """The message without what differs from run to run."""
    text = message.replace(str(world.folder), "folder")
    # Long lists say nothing more than their beginning.
    text = re.sub(r"('[^'\n]*'(?:, '[^'\n]*'){3})(?:, '[^'\n]*')+(?:, \.\.\. \(\d+ in all\))?", r"\1, ...", text)
    return re.sub(r"\b[0-9a-f]{12,64}\b", "0123456789ab", text)


def entry(case: Case, kind: str, message: str, world: World) -> str:
    """One error."""
    title, why, todo = ADVICE[case.key]
    wrapped = {"width": 110, "break_long_words": False, "break_on_hyphens": False}
    quoted = "\n".join(textwrap.fill(line, **wrapped) for line in shown(message, world).splitlines())
    return (
        f"(error-{case.key})=\n### {title}\n\n`rg.{case.function}` raises `{kind}`:\n\n```text\n{quoted}\n```\n\n"
        f"**Why.** {why}\n\n**What to do.** {todo}\n"
    )


def page(entries: dict[str, str]) -> str:
    """All of them, by topic."""
    parts = [f"## {topic}\n\n" + "\n".join(entries[case.key] for case in cases) for topic, cases in TOPICS.items()]
    return HEAD + "\n".join(parts)
