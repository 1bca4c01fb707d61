"""Features of tiles from other tools: read from tables, `.obsm` and files, with what these say of encoder and tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd._annotation import is_predicted, regions_of, single_region
from ragst_sd._outlines import extent_of
from ragst_sd._query import dense
from ragst_sd._validate import hint, listing, only_one, require_type, require_unique
from ragst_sd.io._readable import existing, readable

_TODO = "Pass the name of a table or of an `.obsm`, an AnnData, or the path of an h5 file of one slide."
_VECTORS = ("features", "embeddings")
BARCODES = ("barcodes", "barcode")
# TRIDENT and sopa cut tiles at 10 / magnification microns per pixel.
UM_AT_1X = 10.0


@dataclass(frozen=True)
class TileFeatures:
    """Features of tiles; what is not stated is `None`."""

    what: str
    """What messages call these features."""
    vectors: np.ndarray
    """(m, d) float32."""
    rows_of: str | None = None
    """Name of the table that has a row for each vector."""
    table: AnnData | None = None
    """Table whose X they are; its rows are tiles."""
    shapes_key: str | None = None
    """The tiles that `table` annotates."""
    corners: np.ndarray | None = None
    """(m, 2) top left corners (x, y) of the tiles, in pixels of the finest level."""
    edge_px: float | None = None
    """Edge of these tiles, in the same pixels."""
    names: np.ndarray | None = None
    """(m,) names of the spots that the vectors are of."""
    model: str | None = None
    tile_px: int | None = None
    """Edge of a tile as the encoder saw it."""
    mpp: float | None = None
    """Microns per pixel of a tile as the encoder saw it."""

    def __post_init__(self) -> None:
        """Make numbers of what files keep as text, or as a number of numpy."""
        for name, kind in (("edge_px", float), ("tile_px", int), ("mpp", float)):
            stated = getattr(self, name)
            object.__setattr__(self, name, None if stated is None else kind(stated))


def find_features(sdata: SpatialData, features: Any, *, table_key: str | None) -> TileFeatures:
    """Features that the argument `features` names: a table or an `.obsm` of the object, an AnnData, or a file.

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
        return _features_of_table(sdata, features, "`features`", None)
    if not isinstance(features, str):
        return features_of_file(features, "features")
    tables = {name: table for name, table in sdata.tables.items() if not is_predicted(table)}
    having = [name for name in tables if features in tables[name].obsm and table_key in (None, name)]
    if features in tables and having:
        raise ValueError(
            f"{features!r} is both a table and an `.obsm` of {listing(having)}. Pass the one that is meant: "
            f"`sdata.tables[{features!r}]`, or the `.obsm` under another name."
        )
    holder = only_one(having, "table_key", f"tables have `obsm[{features!r}]`")
    if features in tables:
        return _features_of_table(sdata, tables[features], f"table {features!r}", features)
    if holder is not None:
        what = f"`tables[{holder!r}].obsm[{features!r}]`"
        return TileFeatures(what, _checked_vectors(tables[holder].obsm[features], what), rows_of=holder)
    if not Path(features).exists() and Path(features).suffix not in (".h5", ".hdf5"):
        keys = dict.fromkeys(key for table in tables.values() for key in table.obsm)
        raise KeyError(
            f"`features` {features!r} is no table of `sdata` ({listing(tables)}), no `.obsm` of one "
            f"({listing(keys)}), and no file.{hint(features, [*tables, *keys])} {_TODO}"
        )
    return features_of_file(features, "features")


def features_of_file(path: str | PathLike[str], argument: str) -> TileFeatures:
    """Features in a file of TRIDENT, CLAM or HEST."""
    return read_embedding_file(existing(path, f"`{argument}`:", "Pass the h5 file of one slide."))


def require_covered(embedding: np.ndarray, tiles: np.ndarray, xy: np.ndarray, what: str) -> None:
    """Raise a `ValueError` if no spot got features from the tiles."""
    if np.isnan(embedding).any(axis=1).all():
        raise ValueError(
            f"No spot lies in a tile of {what}: centres of tiles cover {extent_of(tiles)}, spots {extent_of(xy)}, in "
            "pixels of the image. Check that both are of one image at one resolution."
        )


def _features_of_table(sdata: SpatialData, table: AnnData, what: str, name: str | None) -> TileFeatures:
    """Features in the X of a table: of tiles that it annotates, or of spots by their names."""
    if table.X is None or not table.n_vars:
        raise ValueError(f"{what} has no X to hold the features; its `.obsm` has {listing(table.obsm)}. {_TODO}")
    vectors = _checked_vectors(table.X, what)
    region = next(iter(regions_of(table)), None)
    if region is None or (name is None and region not in [*sdata.shapes, *sdata.points, *sdata.labels]):
        require_unique(table.obs_names, f"names of rows of {what}", "Each spot has one vector.")
        return TileFeatures(what, vectors, names=table.obs_names.to_numpy(dtype=str))
    region = single_region(table)
    name = next((key for key, each in sdata.tables.items() if each is table), None)
    stated: dict[str, Any] = {}
    # What LazySlide and sopa keep beside their tables; the former as an object while it is in memory.
    specs, config = sdata.attrs.get("tile_spec"), table.uns.get("embedding_config")
    spec = specs.get(region) if isinstance(specs, Mapping) else None
    if isinstance(config, Mapping) and config:
        magnification = config.get("magnification")
        stated = {"model": config.get("model_name"), "tile_px": config.get("patch_width")}
        stated["mpp"] = UM_AT_1X / magnification if magnification else None
    elif spec is not None:
        read = spec.get if isinstance(spec, Mapping) else partial(getattr, spec)
        width, mpp = (read(part, None) for part in ("width", "mpp"))
        model = None if name is None else name.removesuffix(f"_{region}")
        stated = {"model": model, "tile_px": width, "mpp": mpp}
    return TileFeatures(what, vectors, rows_of=name, table=table, shapes_key=region, **stated)


def _checked_vectors(values: Any, what: str) -> np.ndarray:
    """Vectors as (m, d) float32; each has to be finite, or NaN throughout where a tile has none."""
    vectors = dense(values, what).astype(np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"{what} has the shape {vectors.shape}; expected one vector per tile. Pass tile embeddings.")
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


def read_embedding_file(path: Path) -> TileFeatures:
    """Vectors, places and names of tiles, and what the attributes tell of them.

    Raises
    ------
    ValueError
        If the file is damaged, holds no vectors per tile, or vectors that are NaN in part.
    """
    with readable(path, "h5"), h5py.File(path) as file:
        content = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
        attributes = {name: dict(file[name].attrs) for name in content}
    key = next((name for name in _VECTORS if name in content), None)
    if key is None:
        raise ValueError(
            f"{path.name!r} holds the datasets {listing(content)}; expected 'features' (TRIDENT, CLAM) or "
            "'embeddings' (HEST)."
        )
    # Some writers keep a leading axis for the slide.
    slide = {name: values[0] if np.shape(values)[:-2] == (1,) else values for name, values in content.items()}
    vectors, corners = _checked_vectors(slide[key], f"{key!r} in {path.name!r}"), slide.get("coords")
    barcodes = next((slide[name] for name in BARCODES if name in slide), None)
    if barcodes is not None:
        barcodes = names_of_spots(barcodes, len(vectors), path.name, "vectors")
    elif corners is None:
        raise ValueError(
            f"{path.name!r} holds neither 'coords' nor 'barcodes': its {len(vectors)} vectors have no place."
        )
    if corners is not None and corners.shape != (len(vectors), 2):
        raise ValueError(
            f"'coords' in {path.name!r} has the shape {corners.shape}; expected ({len(vectors)}, 2). Is this of a "
            "whole slide?"
        )
    about = attributes.get("coords", {})
    magnification = float(about.get("target_magnification", 0))
    stated: dict[str, Any] = {"edge_px": about.get("patch_size_level0"), "tile_px": about.get("patch_size")}
    stated |= {"model": _text(attributes[key].get("encoder"))}
    stated |= {"mpp": UM_AT_1X / magnification if magnification > 0 else None}
    return TileFeatures(repr(path.name), vectors, corners=corners, names=barcodes, **stated)


def names_of_spots(stored: np.ndarray, n: int, name: str, what: str) -> np.ndarray:
    """Barcodes as texts, one for each of the `n` vectors or pictures that a file holds.

    Raises
    ------
    ValueError
        If there are more or fewer, or some come twice.
    """
    barcodes = np.array([_text(barcode) for barcode in np.ravel(stored)], dtype=str)
    if len(barcodes) != n:
        raise ValueError(f"{name!r} holds {len(barcodes)} barcodes for {n} {what}.")
    require_unique(barcodes, f"barcodes of {name!r}", "Each names one spot.")
    return barcodes


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
