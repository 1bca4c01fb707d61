"""What a predicted table holds: the fields of `_fields.yaml`, from which tables are written, read and documented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from ragst_sd import _keys
from ragst_sd._page import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Field:
    """One array of a predicted table."""

    place: Literal["X", "layers", "obsm", "varm", "obs", "var"]
    name: str
    """Its key there, and that of its values where they are computed."""
    about: str
    """What it is, in one sentence or two."""
    dtype: str = "float32"
    """Of numpy or pandas."""
    outside: Any = np.nan
    """What a spot without an embedding has."""

    @property
    def path(self) -> str:
        """Where it stands, as users write it."""
        return ".X" if self.place == "X" else f'.{self.place}["{self.name}"]'

    @property
    def of_values(self) -> bool:
        """Whether it is (spots, genes)."""
        return self.place in ("X", "layers")


def _read(items: Iterable[Any]) -> Iterator[Field]:
    """The fields of a list, in which groups may stand."""
    for item in items:
        if isinstance(item, list):
            yield from _read(item)
        else:
            yield Field(**item)


_LISTS = yaml.safe_load(read_text("_fields.yaml"))
# Of `rg.tl.predict`, `rg.tl.perturb` and `rg.tl.perturb_tissue`, in the order in which they are written.
TISSUE, RESPONSES, TISSUE_RESPONSES = (
    tuple(_read(_LISTS[name])) for name in ("tissue", "responses", "tissue_responses")
)
# Of the provenance header, without which nothing can be said about a value: of every prediction, and by its task besides.
COMMON_FIELDS = tuple(_LISTS["header"]["common"])
TASK_FIELDS = {"histology": tuple(_LISTS["header"]["histology"])}


def fill(fields: Sequence[Field], values: Mapping[str, Any], outside: np.ndarray) -> dict[str, dict[str, Any]]:
    """Values by place and key, in their types; what is computed on disk is taken as it is.

    Parameters
    ----------
    values
        By name of the field; a field without values is left out.
    outside
        (n,) spots without an embedding.
    """
    filled: dict[str, dict[str, Any]] = {}
    for one in fields:
        array = values.get(one.name if one.place != "var" else f"var/{one.name}")
        if array is None:
            continue
        if not hasattr(array, "dask") and one.dtype != "category":
            masked = one.place not in ("var", "varm") and outside.any()
            array = np.array(array) if masked else np.asarray(array)
            if masked:
                array[outside] = one.outside
            array = array.astype(one.dtype, copy=False)
        filled.setdefault(one.place, {})[one.name] = array
    return filled


def stored_fields(fields: Sequence[Field], *, intervals: bool) -> list[Field]:
    """Fields of (spots, genes) that are written block by block."""
    limits = (_keys.LOWER, _keys.UPPER)
    return [one for one in fields if one.of_values and (intervals or one.name not in limits)]


def returns(fields: Sequence[Field]) -> str:
    """The fields as the Returns section of a docstring lists them."""
    return "\n".join(f"    `{one.path}`\n        {one.about}" for one in fields).lstrip()


def page_table(fields: Sequence[Field]) -> str:
    """The fields as a table of Markdown."""
    lines = [f"| `{one.path}` | {one.about} |" for one in fields]
    return "\n".join(["| place | content |", "|---|---|", *lines])


def documented(fields: Sequence[Field]) -> Callable[[Any], Any]:
    """A decorator that puts the fields where the docstring says `{fields}`."""

    def fill_in(function: Any) -> Any:
        if function.__doc__:
            function.__doc__ = function.__doc__.replace("{fields}", returns(fields))
        return function

    return fill_in
