"""Features of tiles as other tools leave them: tables, `.obsm`, files; whose they are, and what is said of them."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd._annotation import is_predicted, regions_of, single_region
from ragst_sd._embedding import dense
from ragst_sd._outlines import extent_of
from ragst_sd._validate import hint, listing, only_one, require_type, require_unique
from ragst_sd.io._embedding_file import UM_AT_1X, TileFeatures, read_embedding_file
from ragst_sd.io._readable import existing

logger = logging.getLogger(__name__)

_TODO = "Pass the name of a table or of an `.obsm`, an AnnData, or the path of an h5 file of one slide."


def find_features(sdata: SpatialData, features: Any, *, table_key: str | None) -> TileFeatures:
    """Features by the name of a table or of an `.obsm`, from an AnnData, or from a file.

    Raises
    ------
    KeyError
        If nothing has the name.
    FileNotFoundError
        If there is no such file.
    TypeError
        If it is nothing of that kind.
    ValueError
        If several have the name, or values are missing or no numbers.
    """
    require_type(features, (str, PathLike, AnnData), "features", _TODO)
    if isinstance(features, AnnData):
        return _of_table(sdata, features, "`features`", None)
    if not isinstance(features, str):
        return of_file(features, "features")
    tables = {name: table for name, table in sdata.tables.items() if not is_predicted(table)}
    having = [name for name in tables if features in tables[name].obsm and table_key in (None, name)]
    if features in tables and having:
        raise ValueError(
            f"{features!r} is both a table and an `.obsm` of {listing(having)}. Pass the one that is meant: "
            f"`sdata.tables[{features!r}]`, or the `.obsm` under another name."
        )
    holder = only_one(having, "table_key", f"tables have `obsm[{features!r}]`")
    if features in tables:
        return _of_table(sdata, tables[features], f"table {features!r}", features)
    if holder is not None:
        what = f"`tables[{holder!r}].obsm[{features!r}]`"
        return TileFeatures(what, _vectors(tables[holder].obsm[features], what), rows_of=holder)
    if not Path(features).exists() and Path(features).suffix not in (".h5", ".hdf5"):
        keys = dict.fromkeys(key for table in tables.values() for key in table.obsm)
        raise KeyError(
            f"`features` {features!r} is no table of `sdata` ({listing(tables)}), no `.obsm` of one "
            f"({listing(keys)}), and no file.{hint(features, [*tables, *keys])} {_TODO}"
        )
    return of_file(features, "features")


def of_file(path: str | PathLike[str], argument: str) -> TileFeatures:
    """Features in a file of TRIDENT, CLAM or HEST."""
    return read_embedding_file(existing(path, f"`{argument}`:", "Pass the h5 file of one slide."))


def require_covered(embedding: np.ndarray, tiles: np.ndarray, xy: np.ndarray, what: str) -> None:
    """Raise a `ValueError` if no spot got features from the tiles."""
    if np.isnan(embedding).any(axis=1).all():
        raise ValueError(
            f"No spot lies in a tile of {what}: centres of tiles cover {extent_of(tiles)}, spots {extent_of(xy)}, in pixels "
            "of the image. Check that both are of one image at one resolution."
        )


def _of_table(sdata: SpatialData, table: AnnData, what: str, name: str | None) -> TileFeatures:
    """Features in the X of a table: of tiles that it annotates, or of spots by their names."""
    if table.X is None or not table.n_vars:
        raise ValueError(f"{what} has no X to hold the features; its `.obsm` has {listing(table.obsm)}. {_TODO}")
    vectors = _vectors(table.X, what)
    region = next(iter(regions_of(table)), None)
    if region is None or (name is None and region not in [*sdata.shapes, *sdata.points, *sdata.labels]):
        require_unique(table.obs_names, f"names of rows of {what}", "Each spot has one vector.")
        return TileFeatures(what, vectors, names=table.obs_names.to_numpy(dtype=str))
    region = single_region(table)
    name = next((key for key, each in sdata.tables.items() if each is table), None)
    stated: dict[str, Any] = {}
    # What LazySlide and sopa keep beside their tables; the former as an object while it is in memory.
    spec, config = (sdata.attrs.get("tile_spec") or {}).get(region), table.uns.get("embedding_config")
    if config:
        magnification = config.get("magnification")
        stated = {"model": config.get("model_name"), "tile_px": config.get("patch_width")}
        stated["mpp"] = UM_AT_1X / magnification if magnification else None
    elif spec is not None:
        stated = {"model": None if name is None else name.removesuffix(f"_{region}")}
        for field, of_spec in (("tile_px", "width"), ("mpp", "mpp")):
            stated[field] = spec.get(of_spec) if hasattr(spec, "get") else getattr(spec, of_spec, None)
    return TileFeatures(what, vectors, rows_of=name, table=table, shapes_key=region, **stated)


def _vectors(values: Any, what: str) -> np.ndarray:
    """(m, d) float32, NaN throughout where there is no vector."""
    vectors = dense(values, what).astype(np.float32)
    broken = ~np.isfinite(vectors).all(axis=1) & ~np.isnan(vectors).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{what} is NaN or infinite in {int(broken.sum())} of {len(vectors)} rows (first: row "
            f"{int(np.flatnonzero(broken)[0])}). A tile without features is NaN in every column; fill or drop the "
            "others."
        )
    if np.isnan(vectors).all():
        raise ValueError(f"{what} holds no features: all {len(vectors)} rows are NaN.")
    return vectors
