"""Labels of donors, samples and the like, compared by what they mean and not by how a column happens to store them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

# What a missing label looks like as text, after other tools, R among them, have written and read it.
_MISSING = ("", "nan", "NaN", "None", "<NA>", "NaT", "NA", "N/A", "n/a", "#N/A", "null", "NULL")

ON_TISSUE = "in_tissue"


def label(value: Any) -> str:
    """One label: `1`, `1.0`, `"1"` and `" 1"` are the same donor.

    One missing value turns a whole column of integers into floats, which must not make a new donor of everyone.
    """
    if type(value) is str:
        return value.strip()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def labels(values: pd.Series | Iterable[Any], missing: str | None = None) -> np.ndarray:
    """Labels of a column, as an object array of strings; `missing`, if given, stands where there is none."""
    texts = np.array([label(value) for value in values], dtype=object)
    if missing is not None:
        texts[is_missing(texts)] = missing
    return texts


def is_missing(values: pd.Series | Iterable[Any], named: Collection[str] = ()) -> np.ndarray:
    """Which labels are missing: NaN, blank, or their text as in `"nan"`. Those that somebody has `named` are labels."""
    return np.isin(labels(values).astype(str), [text for text in _MISSING if text not in named])


def warn_of_alike(names: Iterable[str], known: Iterable[str], what: str, otherwise: str) -> None:
    """Warn where a label of the query may be one of the reference that is written in another way."""

    def core(name: str) -> str:
        return re.sub(r"(?<!\d)0+(?=\d)|[\W_]+", "", str(name).casefold())

    known = list(known)
    alike = {core(name): name for name in known if core(name)}
    pairs = [(name, alike[core(name)]) for name in sorted(set(names) - set(known)) if core(name) in alike]
    if pairs:
        logger.warning(
            "The query's %s %r and %r of the reference count as different. If they are the same, spell both in the "
            "same way, or %s.",
            what,
            *pairs[0],
            otherwise,
        )


def on_tissue(obs: pd.DataFrame) -> np.ndarray:
    """(rows,) all but the spots that Space Ranger found beside the tissue, which unfiltered counts have too."""
    if ON_TISSUE not in obs:
        return np.ones(len(obs), dtype=bool)
    return ~np.isin(labels(obs[ON_TISSUE]).astype(str), ["0", "False"])


def plain_column(values: pd.Series, where: str) -> pd.Series:
    """A column as every version of anndata writes it: numbers, truth values, or a category of strings.

    What is missing stays missing.

    Raises
    ------
    ValueError
        If it holds lists or other objects.
    """
    kind = values.dtype
    gaps = values.isna().any()
    if isinstance(kind, np.dtype):
        if kind.kind in "biuf":
            return values
    elif pd.api.types.is_numeric_dtype(kind) and not (gaps and pd.api.types.is_bool_dtype(kind)):
        return values.astype(float if gaps else getattr(kind, "numpy_dtype", float))
    objects = [value for value in values if not pd.api.types.is_scalar(value)]
    if objects:
        what = f"{type(objects[0]).__name__} ({str(objects[0])[:40]})"
        raise ValueError(f"`{where}` holds a {what} where a label is expected. Leave it out of `obs`.")
    if isinstance(kind, pd.CategoricalDtype):
        # Not the values: beside missing ones, intervals of whole numbers come as those of floats.
        categories, ordered = labels(kind.categories), bool(kind.ordered)
        texts = np.append(categories, "")[values.cat.codes]
    else:
        texts, ordered = labels(values), False
    names = [name for name in dict.fromkeys(categories if ordered else np.sort(texts)) if name not in _MISSING]
    texts[is_missing(texts)] = None
    return pd.Series(pd.Categorical(texts, names, ordered=ordered), index=values.index, name=values.name)
