"""One HTML page out of numbers and pictures: nothing is loaded from elsewhere, and names cannot become markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._page import read_text
from ragst_sd.pl._viewer_numbers import collect_numbers
from ragst_sd.pl._viewer_pictures import collect_pictures

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from ragst_sd.pl._section import Section
    from ragst_sd.retrieval.bank import Bank

# The page's promise, in bytes.
LIMIT = 30_000_000
MARK = '<meta name="generator" content="ragst_sd viewer">'
# Decimals of values; the last one is given up before the limit on the size of the page is.
_DECIMALS = (3, 2)
_QUALITIES = (85, 72, 58, 45)
_SCRIPTS = ("decode.js", "numbers.js", "map.js", "details.js", "main.js")
_COLORMAPS = ("viridis", "viridis_r", "cividis", "PuOr_r")


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


def page_within_limit(
    bank: Bank,
    thumbnails: Any,
    table: AnnData,
    header: dict[str, Any],
    genes: np.ndarray,
    measured: np.ndarray | None,
    section: Section,
    n_shown: int,
    facts: dict[str, Any],
) -> str:
    """The page, with decimals and pictures as good as the limit on its size allows.

    Raises
    ------
    ValueError
        If the page would be too large.
    """
    pictures = None
    for most_decimals in _DECIMALS:
        arrays, about = collect_numbers(bank, table, header, genes, measured, n_shown, most_decimals)
        if pictures is None:
            pictures = collect_pictures(
                section, header, thumbnails, bank.obs.index.get_indexer(about["names"]["cited"])
            )
        arrays |= pictures.places
        blocks = {name: _pack(values) for name, values in arrays.items()}
        described = {name: {"dtype": str(v.dtype), "shape": list(v.shape)} for name, v in arrays.items()}
        head = facts | about | {"image": pictures.facts, "blocks": described, "colormaps": _colormaps()}
        for quality in _QUALITIES:
            page = _fill(head, {"numbers": blocks, **pictures.encode(quality)})
            size = len(page.encode())
            if size <= LIMIT:
                return page
    msg = (
        f"A page of {table.n_obs} spots and {len(genes)} genes would take {size / 1e6:.0f} MB, more than "
        f"{LIMIT / 1e6:.0f} MB. Choose fewer genes with `genes=`, or predict part of the section."
    )
    raise ValueError(msg)


def _fill(head: dict[str, Any], data: dict[str, dict[str, str]]) -> str:
    """The page out of what its scripts read first, and texts that stand for bytes, by kind and name."""
    from jinja2 import Environment

    template, style = (read_text(f"pl/viewer_page/{name}") for name in ("page.html", "page.css"))
    script = "\n".join(read_text(f"pl/viewer_page/{name}") for name in _SCRIPTS)
    environment = Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.from_string(template).render(
        mark=MARK,
        style=style,
        style_digest=_digest(style),
        script=script,
        script_digest=_digest(script),
        head=head,
        data=data,
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pack(values: np.ndarray) -> str:
    """Base64 of the compressed bytes, first all first bytes, then all second ones: like stands by like."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    planes = little.reshape(-1).view(np.uint8).reshape(-1, little.dtype.itemsize).T
    # No time stamp: the same input gives the same page.
    return base64.b64encode(gzip.compress(planes.tobytes(), compresslevel=6, mtime=0)).decode()


def _colormaps() -> dict[str, str]:
    """256 colours each, as hexadecimal digits."""
    import matplotlib as mpl

    steps = np.linspace(0, 1, 256)
    return {name: mpl.colormaps[name](steps, bytes=True)[:, :3].tobytes().hex() for name in _COLORMAPS}
