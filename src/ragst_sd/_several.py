"""Several sections for functions of one; sections by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import count
from types import MappingProxyType
from typing import Any, TypeVar, cast

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import is_predicted
from ragst_sd._elements import require_sdata
from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_key, require_some, require_type, require_unique

F = TypeVar("F", bound=Callable[..., Any])


def over_sections(
    *,
    not_with: str | None = None,
    each: Mapping[str, Callable[[Any, list[str]], dict[str, Any]]] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Let a function of one section also take a list or a mapping of sections, which it does one after the other.

    Data frames come back as one, with a column `section`; other results as a dictionary from the names of the sections.

    Parameters
    ----------
    not_with
        An argument that can be given for one section only.
    each
        Arguments with a value per section, by name: a function that takes what the user gave and the names of the
        sections, and returns the value of each section.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def call(sdata: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(sdata, Mapping | list | tuple):
                return function(sdata, *args, **kwargs)
            sections = named_sections(sdata, "sdata")
            for name, section in sections.items():
                require_type(section, (SpatialData, AnnData), f"sdata[{name!r}]")
            if not_with is not None and kwargs.get(not_with) is not None:
                raise ValueError(
                    f"`{not_with}` belongs to one section, and `sdata` holds {len(sections)}. Call once for each "
                    "of them."
                )
            names = list(sections)
            by_section = {name: to_each(kwargs[name], names) for name, to_each in each.items() if name in kwargs}
            results: dict[str, Any] = {}
            for name, section in sections.items():
                of_section = {argument: values[name] for argument, values in by_section.items()}
                try:
                    results[name] = function(section, *args, **kwargs | of_section)
                except Exception as error:
                    error.add_note(f"Section {name!r}; done before: {listing(results)}.")
                    raise
            return _joined(results)

        return cast("F", call)

    return decorate


def _joined(results: dict[str, Any]) -> Any:
    """Results of all sections as one: nothing, a data frame with a column `section`, or the results by name."""
    if all(result is None for result in results.values()):
        return None
    if not all(isinstance(result, pd.DataFrame) for result in results.values()):
        return results
    parts = [result.assign(section=name) for name, result in results.items()]
    return pd.concat(parts, ignore_index=True)[["section", *parts[0].columns.drop("section")]]


def named_sections(sections: Any, argument: str, table_key: str | None = None) -> dict[str, Any]:
    """Sections by name, of a mapping, a list or a single one.

    Without a mapping a section has the name that all rows have in `obs["sample"]`, of the table `table_key` or of its
    measured tables; sections without one are numbered, `sample1` and so on.
    """
    if isinstance(sections, Mapping):
        named = {str(name): section for name, section in sections.items()}
    else:
        members = list(sections) if isinstance(sections, Sequence) else [sections]
        samples = [_sample_name(section, table_key) for section in members]
        todo = "Give sections different names, or pass a mapping from sample name to section."
        require_unique((name for name in samples if name is not None), "names in `obs['sample']`", todo)
        free = (name for i in count(1) if (name := f"sample{i}") not in samples)
        named = {name or next(free): section for name, section in zip(samples, members, strict=True)}
    require_some(named, argument, "Give at least one section.")
    return named


def _sample_name(section: SpatialData | AnnData, table_key: str | None) -> str | None:
    """The value that all rows have in `obs["sample"]`; `None` if there is none or several."""
    tables = getattr(section, "tables", {})
    if table_key is not None:
        require_sdata(section)
        require_key(table_key, tables, "sdata.tables")
        tables = {table_key: tables[table_key]}
    columns = [table.obs.get(_keys.SAMPLE) for table in tables.values() if table_key or not is_predicted(table)]
    names = {name for column in columns if column is not None for name in labels(column, missing="")}
    return (names.pop() or None) if len(names) == 1 else None
