"""Counts of a section and where its spots lie in the picture: AnnData, h5ad files and plain tables."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_matrix

from ragst_sd import _keys
from ragst_sd._labels import ON_TISSUE, on_tissue
from ragst_sd._validate import listing, require_key, require_type, require_unique
from ragst_sd.io._readable import existing_file, readable
from ragst_sd.reference.normalize import find_unit

logger = logging.getLogger(__name__)

_TABLES = (".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".txt.gz")
_PIXEL_COLUMNS = (("pixel_x", "pixel_y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("x", "y"))
_LIBRARY = "library_id"
# Columns that say which spots to take.
_CHOICES = ("selected", ON_TISSUE)
# What tables of spots hold beside genes, none of which is called so.
_NO_GENES = {name for pair in _PIXEL_COLUMNS for name in pair} | {
    "in_tissue", "selected", "array_row", "array_col", "total", "total_counts", "n_counts", "n_genes",
    "n_genes_by_counts", "ncount_rna", "nfeature_rna", "ncount_spatial", "nfeature_spatial", "row", "col", "cluster",
}  # fmt: skip
_SAME_SECTION = "Check that both are of one section."
_ROW_PER_SPOT = "Every row must be one spot: sum or drop the repeats, and read sections one by one."
_ARRAY_NAME = re.compile(r"(?:.*_)?([+-]?\d+(?:\.\d+)?)x([+-]?\d+(?:\.\d+)?)")


def read_counts(counts: AnnData | pd.DataFrame | str | PathLike[str], layer: str | None) -> AnnData:
    """Counts as an AnnData of its own, X a CSR matrix of float32."""
    require_type(counts, (AnnData, pd.DataFrame, str, PathLike), "counts")
    with warnings.catch_warnings():
        # Sections may share names of spots, which `locate` looks at; genes may share a name.
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        if isinstance(counts, AnnData):
            adata = counts.to_memory() if counts.isbacked else counts.copy()
        elif isinstance(counts, pd.DataFrame):
            adata = _from_table(counts, "`counts`")
        else:
            path = existing_file(counts, "counts", (".h5ad", *_TABLES))
            if path.suffix.lower() == ".h5ad":
                with readable(path, "h5ad"):
                    adata = read_h5ad(path)
            else:
                adata = _from_table(_read_table(path), repr(path.name))
    if layer is not None:
        require_key(layer, adata.layers, "counts.layers")
        adata.X = adata.layers.pop(layer)
    if adata.X is None:
        raise ValueError(
            f"`counts` has no X. `rg.io.read_st(..., layer=...)` takes a layer; layers: {listing(_layers(adata))}."
        )
    adata.X = _checked_csr(adata.X, adata)
    return adata


def locate(adata: AnnData, coordinates: Any, rows: np.ndarray | None = None) -> tuple[AnnData, np.ndarray]:
    """Spots that have coordinates, and their centres (x, y) in pixels.

    Parameters
    ----------
    adata
        Counts.
    coordinates
        `None` for `obsm["spatial"]`, an (n, 2) array in the order of the rows, or a table or its path.
    rows
        Those of the section; left out, all are.
    """
    section = adata if rows is None or len(rows) == adata.n_obs else adata[rows].copy()
    require_unique(section.obs_names, "spot names of `counts`", _ROW_PER_SPOT)
    if coordinates is None:
        if _keys.SPATIAL not in adata.obsm:
            raise ValueError(
                f"`counts` has no coordinates: no `obsm['spatial']` (found {listing(adata.obsm)}). Pass "
                "`rg.io.read_st(..., coordinates=...)`: an (n, 2) array of x, y in image pixels, a table with columns "
                "pixel_x and pixel_y, or its path."
            )
        coordinates = adata.obsm[_keys.SPATIAL]
    if isinstance(coordinates, (str, PathLike)):
        coordinates = _read_table(existing_file(coordinates, "coordinates", _TABLES))
        column = coordinates.index.name
        if column in ("x", "pixel_x"):
            coordinates = coordinates.reset_index().astype({column: float})
    elif not isinstance(coordinates, pd.DataFrame):
        xy = np.asarray(coordinates)
        return section, _checked_xy(xy[rows] if rows is not None and len(xy) == adata.n_obs else xy, section)
    spots, positions = _matched(section, coordinates)
    if len(spots) < section.n_obs:
        lost = section.n_obs - len(spots)
        logger.info("Dropped %d of %d spots of the counts: no coordinates.", lost, section.n_obs)
    section = section[spots].copy()
    return section, _checked_xy(positions, section)


def libraries_of(adata: AnnData) -> Mapping[str, Any]:
    """What scanpy and squidpy keep of every section in `uns["spatial"]`, by its name."""
    libraries = adata.uns.get(_keys.SPATIAL)
    return libraries if isinstance(libraries, Mapping) else {}


def rows_of_section(adata: AnnData, sample: str | None) -> tuple[np.ndarray, str | None]:
    """Rows of one section that lie on tissue, and its name; several sections are refused unless one of them is named.

    Raises
    ------
    ValueError
        If the counts are of several sections, and `sample` is none of them.
    """
    libraries = list(libraries_of(adata))
    tissue = on_tissue(adata.obs)
    if not tissue.all():
        logger.info("Left out %d of %d spots whose %r is 0.", int((~tissue).sum()), adata.n_obs, ON_TISSUE)
    columns = [name for name in (_LIBRARY, _keys.SAMPLE) if name in adata.obs]
    texts = adata.obs.select_dtypes(exclude=("number", "bool"))
    # Any column may say it, if it holds the names of the libraries.
    holding = [name for name in dict.fromkeys((*columns, *texts)) if adata.obs[name].astype(str).isin(libraries).any()]
    column = next(iter(holding or columns), None)
    section_of = None if column is None else adata.obs[column].astype(str).to_numpy()
    names = libraries if section_of is None else list(dict.fromkeys(section_of))
    if len(names) < 2:
        return np.flatnonzero(tissue), next(iter(libraries if len(libraries) == 1 else names), None)
    if section_of is not None and sample in names:
        return np.flatnonzero((section_of == sample) & tissue), sample
    todo = "Choose one with `sample=`"
    if section_of is None:
        todo = f"Write into `obs[{_LIBRARY!r}]` which of them each spot is of"
    asked = "" if sample is None else f", none of which is {sample!r}"
    raise ValueError(
        f"`counts` holds {len(names)} sections: {listing(names)}{asked}. {todo}, and pass the picture of that one."
    )


def _from_table(table: pd.DataFrame, what: str) -> AnnData:
    words = [str(name) for name, dtype in table.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if words or table.shape[1] == 0:
        raise ValueError(
            f"{what} must be a table of counts, spots x genes, with spot names in its first column; "
            f"columns that hold no numbers: {listing(words)} (of {table.shape[1]})."
        )
    others = [name for name in map(str, table.columns) if name.lower() in _NO_GENES]
    if others:
        raise ValueError(
            f"{what} has columns that are no genes: {listing(others)}. Leave them out: every column is taken as one."
        )
    # Before an AnnData is made, which warns of what is refused here.
    require_unique(table.index.astype(str), "spot names of `counts`", _ROW_PER_SPOT)
    values = csr_matrix(table.to_numpy(dtype=np.float32))
    obs, var = (pd.DataFrame(index=names.rename(None)) for names in (table.index.astype(str), table.columns))
    return AnnData(values, obs=obs, var=var)


def _read_table(path: Path) -> pd.DataFrame:
    """A table with the names of spots and genes as they are written: not 1 for `001`, nor `G.1` for a second `G`."""
    options: dict[str, Any] = {"sep": "," if ".csv" in path.suffixes[-2:] else "\t"}
    table = pd.read_csv(path, index_col=0, **options)
    options |= {"header": None, "dtype": str, "keep_default_na": False}
    head = pd.read_csv(path, nrows=1, **options).iloc[0].tolist()
    names = pd.read_csv(path, skiprows=1, usecols=[0], **options)[0]
    table.columns = head[len(head) - table.shape[1] :]
    return table.set_index(pd.Index(names, name=table.index.name))


def _layers(adata: AnnData) -> list[str]:
    # anndata 0.13 lists X among the layers, under the name None
    return [name for name in adata.layers if name is not None]


def _checked_csr(matrix: Any, adata: AnnData) -> csr_matrix:
    matrix = csr_matrix(matrix, dtype=np.float32)
    unit = find_unit(matrix)
    todo = f"Pass raw counts; `rg.io.read_st(..., layer=...)` takes a layer (found {listing(_layers(adata))})."
    if unit.kind in ("not finite", "negative"):
        raise ValueError(f"`counts` holds {unit.why}, so these are no counts. {todo}")
    if unit.kind not in ("counts", "estimated counts"):
        logger.warning("The counts hold %s: they may have been normalised. %s", unit.why, todo)
    return matrix


def _checked_xy(xy: np.ndarray, adata: AnnData) -> np.ndarray:
    if xy.shape != (adata.n_obs, 2):
        raise ValueError(
            f"Coordinates have the shape {xy.shape}; expected ({adata.n_obs}, 2): x, y in image pixels, one row for "
            "each row of `counts`."
        )
    xy = xy.astype(np.float64)
    lost = ~np.isfinite(xy).all(axis=1)
    if lost.any():
        raise ValueError(
            f"{int(lost.sum())} of {adata.n_obs} spots have NaN coordinates, for example "
            f"{listing(adata.obs_names[lost][:3])}. Drop these spots, or give their pixels."
        )
    return xy


def _matched(adata: AnnData, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the counts that the table of positions knows, and their pixels."""
    pair = next((pair for pair in _PIXEL_COLUMNS if set(pair) <= set(table.columns)), None)
    if pair is None:
        wanted = ", ".join(" and ".join(pair) for pair in _PIXEL_COLUMNS)
        raise ValueError(f"`coordinates` has the columns {listing(table.columns)}; expected one pair of {wanted}.")
    for name in set(_CHOICES) & set(table.columns):
        chosen = table[name].to_numpy().astype(bool)
        if not chosen.all():
            logger.info("Left out %d of %d positions whose %r is 0.", int((~chosen).sum()), len(table), name)
        table = table[chosen]
    if not all(pd.api.types.is_numeric_dtype(table[name]) for name in pair):
        raise ValueError(
            f"{' and '.join(map(repr, pair))} of `coordinates` hold no numbers, but "
            f"{table[list(pair)].iloc[0].tolist()}."
        )
    names, known = adata.obs_names, table.index.astype(str)
    if not names.isin(known).any() and {"x", "y"} < set(table.columns) and pair != ("x", "y"):
        known = pd.Index([_array_name(f"{x}x{y}") for x, y in zip(table["x"], table["y"], strict=True)])
        names = pd.Index([_array_name(name) for name in names])
    for where, index in (("coordinates", known), ("counts", names)):
        require_unique(index, f"spots of `{where}`", "Keep one row of each.")
    turned = pd.Index([_array_name(name) for name in adata.var_names]).isin(known).any()
    todo = "The counts are genes x spots: transpose them." if turned else _SAME_SECTION
    place = places_among(names, known, "`counts`", "`coordinates`", todo)
    rows = np.flatnonzero(place >= 0)
    return rows, table[list(pair)].to_numpy(dtype=float)[place[rows]]


def places_among(names: Any, known: Any, whose: str, others: str, todo: str = _SAME_SECTION) -> np.ndarray:
    """Where each name stands among those that are known, -1 where it does not; a `ValueError` if none of them does."""
    place = pd.Index(known).get_indexer(names)
    if (place < 0).all():
        raise ValueError(
            f"No spot of {whose} (for example {listing(names[:3])}) is among the {len(known)} spots of {others} (for "
            f"example {listing(known[:3])}). {todo}"
        )
    return place


def _array_name(name: str) -> str:
    """`B4_10x14`, `10x14` and `10.0x14.0` are one spot."""
    match = _ARRAY_NAME.fullmatch(str(name))
    return "x".join(f"{float(number):.10g}" for number in match.groups()) if match else str(name)
