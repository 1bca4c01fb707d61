"""Gene expression from H&E by retrieval of measured tissue that looks alike, on SpatialData objects.

Submodules are imported on first use: `pp` (tiles and embeddings), `tl` (reference, fit, prediction, evaluation),
`get` (neighbours and explanations), `pl` (pictures), `io` (reading and writing), `datasets` (tissue to try it on),
and the object `settings`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_attributes

if TYPE_CHECKING:
    from ragst_sd import datasets, get, io, pl, pp, tl
    from ragst_sd._settings import settings

    __version__: str

__all__ = ["__version__", "datasets", "get", "io", "pl", "pp", "settings", "tl"]


def _version() -> str:
    """The version that was installed: it is written at one place, the tag.

    A tree of files that was not installed has none.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ragst-sd")
    except PackageNotFoundError:
        return "0+unknown"


__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(["datasets", "get", "io", "pl", "pp", "tl"], lambda name: import_module(f"ragst_sd.{name}")),
        "settings": lambda name: getattr(import_module("ragst_sd._settings"), name),
        "__version__": lambda name: _version(),
    },
)
