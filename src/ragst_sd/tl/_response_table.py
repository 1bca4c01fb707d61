"""Responses that are measured already, from an AnnData or a data frame, as rows of a reference."""

from __future__ import annotations

import logging
import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._gene_names import Expression, normalization, stored_expression
from ragst_sd._validate import listing, require_key, require_known, require_type, require_unique
from ragst_sd.reference.genes import SYMBOL
from ragst_sd.reference.schema import RESPONSE_UNITS
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._screen import OF_ROWS, Screen, row_labels

logger = logging.getLogger(__name__)

# Columns of long tables, as pertpy, scanpy, PyDESeq2, edgeR and limma name them.
_GENES = ("gene", "variable", "names", "gene_name", "feature", "symbol")
_VALUES = {
    "log_fold_change": ("log_fold_change", "log_fc", "logfoldchanges", "log2FoldChange", "logFC"),
    "z_score": ("z_score", "zscore", "stat", "scores"),
    "rank": ("rank",),
}
_ERRORS = (_keys.STANDARD_ERROR, "lfcSE", "lfc_se")
_NUMBERS = (_keys.N_CELLS, _keys.RELIABILITY)
# What columns beside genes are called, in whole words: TIMELESS is a gene.
_ANNOTATION = re.compile(
    r"(?:^|[^a-z0-9])(?:n_|(?:dos(?:e|age)\w*|time(?:points?)?|conc(?:entration)?|hours?|days?|batch|replicate|counts?"
    r"|standard_error|lfcse|[pq][_. ]?val(?:ue)?s?|p[_. ]?adj|adj[_. ]p|fdr|unnamed)(?:[^a-z]|$))",
    re.IGNORECASE,
)
# Fewer values than this may all be of one size by chance; ranks of a list that was cut end near 1.
_FEWEST, _NEAR_ONE = 20, 0.95
_UNITS = ", ".join(f"`unit={name!r}`" for name in RESPONSE_UNITS)
# Rows of a table on disk that are in memory at once.
_AT_ONCE = 1000


def refuse_responses(
    data: Any, unit: str, perturbation_key: str, context_key: str | None, control: list[str], layer: str | None
) -> None:
    """Raise a `ValueError` if what should be cells are responses, whose unit was not given."""
    if isinstance(data, pd.DataFrame):
        raise ValueError(
            f"`adata` is a data frame, which holds responses, but `unit` is {unit!r}, the unit of cells. Say what they "
            f"are in: {_UNITS}."
        )
    shape = ""
    if hasattr(data, "obs") and one_row_each(data.obs, perturbation_key, context_key, control):
        shape = "one row for each perturbation"
    elif hasattr(data, "obs") and perturbation_key in data.obs and layer is None and data.X is not None:
        controls = data.obs[perturbation_key].astype(str).isin(control)
        looked_at = not controls.any() and data.n_vars > 0
        parts = (values for values, *_ in data.chunked_X(_AT_ONCE)) if looked_at else ()
        # Dask cannot take the minimum of sparse chunks.
        if any((part.compute() if hasattr(part, "compute") else part).min() < 0 for part in parts):
            shape = "values below 0"
    if shape:
        raise ValueError(
            f"`adata` has no controls and {shape}, as a table of responses has, but `unit` is {unit!r}, the unit of "
            f"cells. If they are responses, say what they are in: {_UNITS}. If they are cells, name their controls "
            f"with `control=` (no row is {listing(control)}; there are "
            f"{listing(sorted(set(data.obs[perturbation_key].astype(str))))}), and raw counts with `layer=` where "
            "`adata.X` holds scaled values."
        )


def one_row_each(obs: pd.DataFrame, perturbation_key: str, context_key: str | None, control: list[str]) -> bool:
    """Whether several rows are one for each perturbation and context, and none is a control."""
    keys = [key for key in (perturbation_key, context_key) if key is not None]
    if not set(keys) <= set(obs):
        return False
    return len(obs) > 1 and not obs[keys].duplicated().any() and not obs[keys[0]].astype(str).isin(control).any()


def response_adata(
    data: AnnData | pd.DataFrame,
    perturbation_key: str,
    context_key: str | None,
    type_key: str | None,
    *,
    layer: str | None,
    unit: str,
    genes: list[str] | None = None,
) -> tuple[AnnData, str | None]:
    """A data frame, wide or long, as an AnnData of rows by genes, and the layer to read; an AnnData as it is.

    `genes` names the columns of a wide data frame that are genes.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a long table has two values for one gene of a perturbation and context, or a wide one has columns that are
        no genes.
    """
    require_type(data, (ad.AnnData, pd.DataFrame), "adata")
    if isinstance(data, ad.AnnData):
        return data, layer
    keys = [perturbation_key] if context_key is None else [perturbation_key, context_key]
    frame = with_labels(data, keys)
    type_key = type_key or _keys.PERTURBATION_TYPE
    of_rows = [*keys, *(name for name in (type_key, *_NUMBERS) if name in frame)]
    named = [name for name in _GENES if name in frame and name not in keys and frame[name].dtype.kind not in "iufb"]
    if not named:
        if layer is not None:
            raise ValueError(
                f"`layer` is {layer!r}, but `adata` is a wide data frame: no column names genes (looked for "
                f"{listing(_GENES)}). Leave `layer` out, or name the column of genes so."
            )
        # What is in the index only is no gene.
        values = _gene_columns(data.drop(columns=[name for name in of_rows if name in data]), genes)
        obs = frame[of_rows].set_axis([str(i) for i in range(len(frame))])
        var = pd.DataFrame(index=values.columns)
        return ad.AnnData(values.to_numpy(np.float32), obs=obs, var=var), None
    names = _VALUES[unit] if layer is None else (layer,)
    value = next((name for name in names if name in frame), None)
    if value is None:
        require_key(names[0], [str(name) for name in frame], "adata", "Name the column of values with `layer=`.")
    if frame.duplicated([*keys, named[0]]).any():
        twice = frame.loc[frame.duplicated([*keys, named[0]]), [*keys, named[0]]].iloc[0].tolist()
        raise ValueError(f"`adata` has more than one value for {listing(twice)}. {_MAKE_ONE}")
    wide = frame.pivot(index=keys, columns=named[0], values=value)
    first = frame.drop_duplicates(keys).set_index(keys if len(keys) > 1 else keys[0]).loc[wide.index]
    obs = first.reset_index()[of_rows].set_axis([str(i) for i in range(len(wide))])
    table = ad.AnnData(wide.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=wide.columns.astype(str)))
    error = next((name for name in _ERRORS if name in frame), None)
    if error is not None:
        table.layers[_keys.STANDARD_ERROR] = frame.pivot(index=keys, columns=named[0], values=error).to_numpy(
            np.float32
        )
    return table, None


def with_labels(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A data frame with its labels, of which `keys` starts with the perturbation, in columns and not in its index.

    Raises
    ------
    KeyError
        If a column does not exist.
    """
    # An index without a name that holds names says what each row is of; one that counts rows does not.
    named = frame.index.nlevels == 1 and not pd.api.types.is_numeric_dtype(frame.index)
    if keys[0] not in frame and frame.index.name is None and named:
        frame = frame.rename_axis(keys[0])
    if any(name is not None and name not in frame for name in frame.index.names):
        frame = frame.reset_index()
    for key in keys:
        require_key(key, [str(name) for name in frame], "adata", "Name the column of labels.")
    return frame


def _gene_columns(columns: pd.DataFrame, genes: list[str] | None) -> pd.DataFrame:
    """Columns of a wide data frame that are genes: those named in `genes`, or else all.

    Raises
    ------
    ValueError
        If one does not exist, holds no numbers, or, where no genes are named, is called like an annotation.
    """
    columns = columns.set_axis(columns.columns.astype(str), axis=1)
    if genes is not None:
        require_known(genes, list(columns), "genes", ": `adata` has no column")
        columns = columns.loc[:, columns.columns.isin(genes)]
    text = columns.columns.difference(columns.select_dtypes("number").columns, sort=False)
    if len(text):
        msg = f"`adata` is a wide data frame, whose genes must be numbers, which columns {listing(text)} are not. "
        raise ValueError(msg + (_NO_GENES if genes is None else "Convert them with `pd.to_numeric`."))
    beside = [name for name in columns if _ANNOTATION.search(name)]
    if beside and genes is None:
        raise ValueError(
            f"`adata` is a wide data frame, of which columns {listing(beside)} are called like annotations. {_NO_GENES}"
        )
    return columns


_NO_GENES = (
    "All columns but the labels are taken for genes: name the genes with `genes=`, contexts with `context_key=`, or "
    "leave these columns out (an AnnData has them in `.obs`). Of a long table, call the column of genes `gene`."
)
_MAKE_ONE = (
    "A reference has one row for each perturbation and context: keep one, average them, or make what tells them apart "
    "(dose, time, guide) part of the names; name the column of contexts with `context_key=`."
)


def read_responses(adata: AnnData, *, unit: str, layer: str | None, naming: str | None = None) -> Expression:
    """Responses of rows by genes, without genes that some row lacks, and their standard errors where there are any.

    Raises
    ------
    ValueError
        If there are no values, gene names repeat, no gene is there in all rows, or values are not what `unit` says.
    """
    if not adata.n_obs:
        raise ValueError("`adata` has no rows.")
    place = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    stored, offered = stored_expression(adata, layer, "adata", "Name the layer with `layer=`.", counted=False)
    values = dense(stored).astype(np.float32)
    naming = naming or (SYMBOL if SYMBOL in offered else next(iter(offered)))
    genes = offered.get(naming, list(adata.var_names))
    require_unique(genes, f"genes of {place}", "Keep one column each; responses cannot be added.")
    whole = np.asarray(np.isfinite(values).all(axis=0))
    if not whole.any():
        raise ValueError(f"No gene of {place} has a finite value in every row. Leave out the rows that hold few genes.")
    if not whole.all():
        logger.warning(
            "%d of %d genes are left out: some row has no finite value for them.", (~whole).sum(), len(whole)
        )
    check_responses(values[:, whole], unit, place)
    error = next((name for name in _ERRORS if name in adata.layers), None)
    errors = None if error is None else stored_expression(adata, error, "adata", "", counted=False)[0][:, whole]
    complete = [gene for gene, there in zip(genes, whole, strict=True) if there]
    about = normalization(unit, naming, unit=RESPONSE_UNITS[unit], target=float("nan"))
    return Expression(sp.csr_matrix(values[:, whole]), complete, about, errors)


def given_responses(
    screen: Screen, genes: list[str], errors: sp.csr_matrix | None, *, min_cells: int
) -> tuple[AnnData, dict[str, Any]]:
    """Rows of a reference from given responses, and what the header keeps beside them.

    Parameters
    ----------
    screen
        Responses in the place of cells, with their `n_cells` and `reliability`.
    errors
        (rows, genes) standard errors.

    Raises
    ------
    ValueError
        If a perturbation has two rows in a context, or no row is left.
    """
    labels = screen.cells
    known = labels[_keys.N_CELLS].to_numpy()
    use = (labels["used"] & ~labels["control"]).to_numpy()
    few = use & (known > 0) & (known < min_cells)
    at = np.flatnonzero(use & ~few)
    one_row_of_each(labels.iloc[at], OF_ROWS)
    if not len(at):
        raise ValueError(
            f"No response is left of {len(labels)} rows: all are controls, or rest on fewer than {min_cells} cells."
        )
    obs = row_labels(labels.iloc[at])
    obs[_keys.N_CELLS], obs[_keys.N_CONTROLS] = known[at], 0
    obs[_keys.RELIABILITY] = labels[_keys.RELIABILITY].to_numpy()[at]
    order = np.argsort(obs.index.to_numpy(str))
    obs, at = obs.iloc[order], at[order]
    values = dense(screen.values[at]).astype(np.float32)
    layers = {} if errors is None else {_keys.STANDARD_ERROR: dense(errors[at]).astype(np.float32)}
    reference = ad.AnnData(values, obs=obs, var=pd.DataFrame(index=pd.Index(genes, name="gene")), layers=layers)
    contexts = sorted(set(obs[_keys.CONTEXT]))
    means = [values[(obs[_keys.CONTEXT] == context).to_numpy()].mean(axis=0) for context in contexts]
    empty, nothing = np.array([], dtype=str), sp.csr_matrix((0, len(genes)), dtype=np.float32)
    parts = {
        "contexts": {
            "context": np.asarray(contexts, dtype=str),
            "mean": np.asarray(means, dtype=np.float32),
            "n_controls": np.zeros(len(contexts), dtype=np.int64),
        },
        "controls": {"cell": empty, "context": empty, "batch": empty, "values": nothing},
        "treated": {"cell": empty, "row": empty, "values": nothing},
        _keys.CONTROL_CELLS: empty,
    }
    if few.any():
        labels.loc[few, "left_out"] = f"fewer than {min_cells} cells"
        logger.warning("Left out for fewer than %d cells: %s.", min_cells, listing(labels[_keys.PERTURBATION][few]))
    return reference, parts


def given_numbers(obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) numbers of cells, 0 where not given, and reliability, NaN where not given."""
    parts = (obs[name].to_numpy(float) if name in obs else np.full(len(obs), np.nan) for name in _NUMBERS)
    n_cells, reliability = parts
    return np.nan_to_num(n_cells).astype(np.int64), reliability


def one_row_of_each(labels: pd.DataFrame, keys: list[str]) -> None:
    """Raise a `ValueError` if a perturbation has two rows in a context."""
    twice = labels[labels.duplicated(keys)]
    if len(twice):
        repeated = [f"{row[_keys.PERTURBATION]} in {row[_keys.CONTEXT]}" for _, row in twice.iterrows()]
        raise ValueError(f"`adata` has more than one row for {listing(dict.fromkeys(repeated))}. {_MAKE_ONE}")


def check_responses(values: np.ndarray, unit: str, place: str) -> None:
    """Raise a `ValueError` if values are told to be ranks and are not, or the other way round."""
    size = np.abs(values)
    bounded = float(size.max()) <= 1
    if unit == "rank" and not bounded:
        raise ValueError(
            f"{place} reaches from {values.min():.4g} to {values.max():.4g}, but ranks lie from 1 (most up) to -1 "
            "(most down), 0 for genes that are not listed. Scale them: `1 - 2 * (rank - 1) / (n - 1)` for a list of n "
            "genes that starts with the most up. Other values have another `unit`."
        )
    if unit == "rank":
        return
    ends = size.max(axis=1)
    if bounded and min(values.shape[0] * 10, values.shape[1]) >= _FEWEST and float(ends.min()) > _NEAR_ONE:
        raise ValueError(
            f"{place} looks like ranks, not like {RESPONSE_UNITS[unit]}s: every row ends at 1 or close to it "
            f"({ends.min():.4g} to {ends.max():.4g}), and none goes beyond. Ranks have `unit='rank'`: sizes of "
            "effects cannot be told from them."
        )
    if not (values < 0).any() and (values == np.round(values)).all():
        raise ValueError(
            f"{place} holds whole numbers from {values.min():.4g} up: counts of cells or places in ranked lists, not "
            f"{RESPONSE_UNITS[unit]}s. Cells have `unit='counts'`, ranks `unit='rank'` and are scaled from 1 to -1."
        )
