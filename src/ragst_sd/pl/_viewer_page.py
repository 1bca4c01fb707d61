"""One HTML page out of numbers and pictures: nothing is loaded from elsewhere, and names cannot become markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._page import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from ragst_sd.pl._viewer_numbers import Numbers
    from ragst_sd.pl._viewer_pictures import Pictures

# The page's promise, in bytes.
LIMIT = 30_000_000
MARK = '<meta name="generator" content="ragst_sd viewer">'
_QUALITIES = (85, 72, 58, 45)
_SCRIPTS = ("decode.js", "numbers.js", "map.js", "details.js", "main.js")
_COLORMAPS = ("viridis", "cividis", "PuOr_r")


@dataclass(frozen=True)
class Page:
    """A viewer page: shows itself in a notebook, and knows where it was written."""

    html: str = field(repr=False)
    path: Path | None
    """The file, if one was written."""
    height: int = 900
    """Height in a notebook, in pixels."""

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe srcdoc="{source}" title="ragst_sd viewer" sandbox="allow-scripts" width="100%" '
            f'height="{self.height}" style="border: 1px solid #ccc"></iframe>'
        )

    def __fspath__(self) -> str:
        if self.path is None:
            msg = "The page was not written to a file; call `rg.pl.viewer(..., path=...)`."
            raise TypeError(msg)
        return str(self.path)


def assemble(numbers: Numbers, pictures: Pictures, facts: dict[str, Any], title: str) -> tuple[str, bool]:
    """The page, with pictures as good as the limit on its size allows, and whether it keeps to the limit."""
    blocks = {name: _pack(values) for name, values in numbers.arrays.items()}
    described = {name: {"dtype": str(v.dtype), "shape": list(v.shape)} for name, v in numbers.arrays.items()}
    blocks["names"] = _compressed(json.dumps(numbers.names).encode())
    head = facts | numbers.facts | {"image": pictures.facts, "blocks": described, "colormaps": _colormaps()}
    page = ""
    for quality in _QUALITIES:
        page = _fill(head, blocks, pictures.encode(quality), title)
        if len(page.encode()) <= LIMIT:
            return page, True
    return page, False


def _fill(head: dict[str, Any], blocks: dict[str, str], pictures: dict[str, list[bytes]], title: str) -> str:
    template, style = (read_text(f"pl/viewer_page/{name}") for name in ("page.html", "page.css"))
    script = "\n".join(read_text(f"pl/viewer_page/{name}") for name in _SCRIPTS)
    data = [_data("numbers", name, text) for name, text in blocks.items()]
    for name, files in pictures.items():
        data += [_data(name, str(i), base64.b64encode(file).decode()) for i, file in enumerate(files)]
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {_digest(script)}; style-src {_digest(style)}"
    )
    parts = {
        "policy": policy,
        "mark": MARK,
        "title": html.escape(title),
        "style": style,
        "script": script,
        "head": json_for_html(head),
        "data": "\n".join(data),
    }
    # One pass: what is filled in is never searched for names of parts again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def json_for_html(value: Any) -> str:
    """JSON that cannot end the element it stands in; letters beyond ASCII are escaped by `json` itself."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(kind: str, name: str, text: str) -> str:
    return f'<script type="text/plain" data-kind="{kind}" data-name="{name}">{text}</script>'


def _pack(values: np.ndarray) -> str:
    """Base64 of the compressed bytes, first all first bytes, then all second ones: like stands by like."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    planes = little.reshape(-1).view(np.uint8).reshape(-1, little.dtype.itemsize).T
    return _compressed(planes.tobytes())


def _compressed(raw: bytes) -> str:
    # No time stamp: the same input gives the same page.
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode()


def _colormaps() -> dict[str, str]:
    """256 colours each, as hexadecimal digits."""
    import matplotlib as mpl

    steps = np.linspace(0, 1, 256)
    return {
        name: np.rint(255 * mpl.colormaps[name](steps)[:, :3]).astype(np.uint8).tobytes().hex() for name in _COLORMAPS
    }
