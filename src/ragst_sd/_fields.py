"""What a predicted table holds: the fields of `_fields.yaml`, from which tables are written, read and documented.

Also the id and the sums by which rows of another prediction and changed values are noticed.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np
import pandas as pd
import yaml
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._page import read_text
from ragst_sd._validate import listing
from ragst_sd.reference.genes import changed_capitals
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.blocks import known_sum

logger = logging.getLogger(__name__)


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


def holds_responses(header: Any) -> bool:
    """Whether a provenance header is that of predicted responses to perturbations; of tissue otherwise."""
    return hasattr(header, "get") and header.get("task") == TASK


def require_tissue(header: Any) -> None:
    """Raise a `ValueError` if the provenance is that of predicted responses to perturbations."""
    if holds_responses(header):
        raise ValueError(
            f"The table holds predicted responses (task {TASK!r}, made by `rg.tl.perturb`); this needs a prediction "
            "of tissue by `rg.tl.predict`. For responses there are `rg.get.neighbors`, `rg.get.explain`, "
            "`rg.get.influence(..., rows=...)`, `rg.tl.evaluate_perturbation` and `rg.io.write_cell_eval`."
        )


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
    for field in fields:
        array = values.get(field.name if field.place != "var" else f"var/{field.name}")
        if array is None:
            continue
        if not hasattr(array, "dask") and field.dtype != "category":
            masked = field.place not in ("var", "varm") and outside.any()
            array = np.array(array) if masked else np.asarray(array)
            if masked:
                array[outside] = field.outside
            array = array.astype(field.dtype, copy=False)
        filled.setdefault(field.place, {})[field.name] = array
    return filled


def stored_fields(fields: Sequence[Field], *, intervals: bool) -> list[Field]:
    """Fields of (spots, genes) that are written block by block."""
    limits = (_keys.LOWER, _keys.UPPER)
    return [field for field in fields if field.of_values and (intervals or field.name not in limits)]


def returns(fields: Sequence[Field]) -> str:
    """The fields as the Returns section of a docstring lists them."""
    return "\n".join(f"    `{field.path}`\n        {field.about}" for field in fields).lstrip()


def page_table(fields: Sequence[Field]) -> str:
    """The fields as a table of Markdown."""
    lines = [f"| `{field.path}` | {field.about} |" for field in fields]
    return "\n".join(["| place | content |", "|---|---|", *lines])


def documented(fields: Sequence[Field]) -> Callable[[Any], Any]:
    """A decorator that puts the fields where the docstring says `{fields}`."""

    def fill_in(function: Any) -> Any:
        if function.__doc__:
            function.__doc__ = function.__doc__.replace("{fields}", returns(fields))
        return function

    return fill_in


# Sums of float32 values, taken in another order or read from a store.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-2
# So few that their products stay in the processor's cache.
_BLOCK_ROWS = 128


def mark(table: AnnData) -> None:
    """Write the id of the prediction and the sums of its values into `.obs`, `.var` and the header."""
    header = table.uns[_keys.RETRIEVAL]
    by_row = _sums(table, axis=1)
    digest = hashlib.sha256("".join((header["reference_hash"], header["fit_hash"], *table.obs_names)).encode())
    digest.update(by_row.round(2).tobytes())
    header[_keys.PREDICTION_ID] = digest.hexdigest()[:16]
    table.obs[_keys.PREDICTION_ID] = pd.Categorical([header[_keys.PREDICTION_ID]] * table.n_obs)
    write_sums(table, by_row)


def write_sums(table: AnnData, by_row: np.ndarray | None = None) -> None:
    """Write the sums of the values as they are, after genes were left out on purpose."""
    header = table.uns[_keys.RETRIEVAL]
    header[_keys.N_PREDICTED] = np.array(table.shape)
    table.obs[_keys.PREDICTION_SUM] = _sums(table, axis=1) if by_row is None else by_row
    table.var[_keys.PREDICTION_SUM] = _sums(table, axis=0)


def require_rows(table: AnnData, header: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a row is of another prediction than the header."""
    prediction_id = header.get(_keys.PREDICTION_ID)
    if prediction_id is None:
        return
    of_rows = set(table.obs[_keys.PREDICTION_ID].astype(str)) if _keys.PREDICTION_ID in table.obs else {"none"}
    others = sorted(of_rows - {str(prediction_id)})
    if others:
        raise ValueError(
            f"The table has rows of other predictions ({listing(others)}) than its `uns[{_keys.RETRIEVAL!r}]` "
            f"({str(prediction_id)!r}): it was concatenated, or has the `.uns` of another table, so that its citations would "
            "point at other tissue. Read each prediction on its own."
        )


def check_values(table: AnnData, header: Mapping[str, Any], *, refuse: bool) -> None:
    """Warn, or raise a `ValueError`, if `.X` is not what was predicted, or genes go by the names of others.

    Sums are known of whole rows and of whole columns: a table that was cut both ways cannot be checked, nor are values
    on disk.
    """
    if _keys.N_PREDICTED not in header or hasattr(table.X, "dask"):
        return
    n_spots, n_genes = (int(n) for n in header[_keys.N_PREDICTED])
    if table.n_vars != n_genes and table.n_obs != n_spots:
        logger.info("The predicted table was cut to some spots and some genes: its values cannot be checked.")
    rows, columns = (table.obs, 1, "spots", table.n_vars == n_genes), (table.var, 0, "genes", table.n_obs == n_spots)
    for frame, axis, what, is_whole in (rows, columns):
        if not is_whole or _keys.PREDICTION_SUM not in frame:
            continue
        sums = frame[_keys.PREDICTION_SUM].to_numpy(float)
        same = np.isclose(_sums(table, axis=axis), sums, rtol=_RELATIVE, atol=_ABSOLUTE)
        if same.all():
            continue
        named = header.get("size_factor_genes", header.get("normalization", {}).get("size_factor_genes", ()))
        capitals = changed_capitals(map(str, named), table.var_names)
        msg = (
            f"`.X` of the predicted table was changed after the prediction, or its genes got other names, in "
            f"{int((~same).sum())} of {len(same)} {what} (first: {frame.index[~same][0]!r}): it is no longer in "
            f"{str(header['unit'])!r}. Keep the prediction in `.X` and what you make of it in a layer, or predict "
            f"again.{capitals}"
        )
        # Genes of other capitals are no genes of the reference: what looks them up says so better.
        if refuse and not capitals:
            raise ValueError(msg)
        logger.warning(msg)
        return


def _sums(table: AnnData, axis: int) -> np.ndarray:
    """Sums over spots or genes, float64, in which every gene has a weight by its name; NaN counts as nothing."""
    values: Any = table.X
    weights = np.array([0.5 + zlib.crc32(str(name).encode()) / 2**32 for name in table.var_names])
    if hasattr(values, "dask"):
        by_row = da.nansum(values * weights, axis=1)
        return np.asarray(by_row if axis else da.nansum(values, axis=0, dtype=np.float64) * weights)
    if hasattr(values, "tocsr"):
        return np.asarray(values @ weights if axis else np.ravel(values.sum(axis=0, dtype=np.float64)) * weights)
    if not axis:
        return np.asarray(known_sum(np.asarray(values), 0) * weights)
    blocks = (values[start : start + _BLOCK_ROWS] for start in range(0, len(values), _BLOCK_ROWS))
    return np.concatenate([known_sum(block * weights, 1) for block in blocks])
