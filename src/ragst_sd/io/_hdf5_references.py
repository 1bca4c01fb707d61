"""Where references in an HDF5 file from a stranger lead: only to what is also found by its name, and has been looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

# Dimension scales keep one list for each dimension. More of them might all lie in one place, and take memory for each.
_MOST_LISTS = 32


def stray_reference(file: Any, objects: dict[str, Any]) -> str | None:
    """The place of a reference to something that no name leads to, or of an array of references; `None` if there is none.

    Readers follow references in attributes (old h5ad files say so where categories lie). Arrays of references are of no use
    to any of them, and may be many: they are not looked into.
    """
    import h5py

    known = set(objects.values())
    for place, one in objects.items():
        if isinstance(one, h5py.Dataset) and one.id.get_type().detect_class(h5py.h5t.REFERENCE):
            return place
        for name in one.attrs:
            about = one.attrs.get_id(name)
            if not about.get_type().detect_class(h5py.h5t.REFERENCE):
                continue
            if about.get_type().detect_class(h5py.h5t.VLEN) and math.prod(about.shape) > _MOST_LISTS:
                return f"{place}@{name}"
            if not all(_leads_into(known, file, reference) for reference in _references(one.attrs[name])):
                return f"{place}@{name}"
    return None


def _leads_into(known: set[Any], file: Any, reference: Any) -> bool:
    if not reference:
        return True
    try:
        # Of an array, neither values are read by this nor the file in which they lie.
        return file[reference] in known
    except (KeyError, ValueError, RuntimeError):
        # Nothing there that could be opened.
        return False


def _references(value: Any) -> Iterator[Any]:
    """All references in the value of an attribute: alone, in arrays of arrays, or in columns."""
    import h5py

    if isinstance(value, (h5py.Reference, h5py.RegionReference)):
        yield value
    elif isinstance(value, (np.ndarray, np.void)) and value.dtype.names:
        for name in value.dtype.names:
            yield from _references(value[name])
    elif isinstance(value, np.ndarray):
        for one in value.ravel():
            yield from _references(one)
