"""Tables that annotate elements: which one, which rows, and where their spots lie."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData, sanitize_name
from spatialdata.models import TableModel

from ragst_sd import _keys
from ragst_sd._elements import centers_in_pixels, resolve_shapes
from ragst_sd._fields import holds_responses
from ragst_sd._validate import listing, only_one, require_key, require_unique

logger = logging.getLogger(__name__)


def regions_of(table: AnnData) -> list[str]:
    """Names of the elements that a table annotates."""
    regions = table.uns.get("spatialdata_attrs", {}).get("region")
    return [] if regions is None else [str(name) for name in np.atleast_1d(regions)]


def single_region(table: AnnData) -> str:
    """The one element that a table annotates."""
    regions = [str(name) for name in np.atleast_1d(table_attrs(table)["region"])]
    if len(regions) != 1:
        raise ValueError(
            f"The table annotates {len(regions)} elements: {listing(regions)}. One section per table is needed: "
            "take the rows of one region (`table[table.obs[region_key] == region].copy()`) and store them with "
            "`spatialdata.models.TableModel.parse(..., overwrite_metadata=True)`."
        )
    return regions[0]


def table_attrs(table: AnnData) -> dict:
    """`spatialdata_attrs` of a table that annotates something."""
    attrs = table.uns.get("spatialdata_attrs")
    if not isinstance(attrs, dict) or not attrs.get("region") or not attrs.get("instance_key"):
        raise ValueError(
            "The table annotates no element (no `uns['spatialdata_attrs']`). Link it to its shapes with "
            "`spatialdata.models.TableModel.parse(table, region=..., region_key=..., instance_key=...)`."
        )
    _require_ids(table, attrs["instance_key"])
    return dict(attrs)


def _require_ids(table: AnnData, instance_key: str) -> None:
    """Raise a `ValueError` if rows have no id, or ids became floats, which cannot be written."""
    require_key(instance_key, table.obs, "table.obs")
    ids, column = table.obs[instance_key], f"table.obs[{instance_key!r}]"
    lost, values = ids.isna().to_numpy(), np.asarray(ids.dropna())
    is_float = values.dtype.kind == "f"
    if not lost.any() and not is_float:
        return
    todo = [f"drop these rows (`table = table[{column}.notna()].copy()`)"] if lost.any() else []
    if is_float and (values == np.rint(values)).all():
        todo.append(f"make them whole numbers (`{column} = {column}.astype(int)`)")
    elif is_float:
        todo.append("write the ids of the element there")
    raise ValueError(
        f"`{column}`, by which rows find their shapes, holds {ids.dtype} values, {int(lost.sum())} of {len(ids)} "
        f"missing; ids are whole numbers or texts. Please {' and '.join(todo)}, and put the table back with "
        "`sdata.tables[table_key] = table`."
    )


def is_predicted(table: AnnData) -> bool:
    """Whether `rg.tl.predict` made a table."""
    header = table.uns.get(_keys.RETRIEVAL)
    return isinstance(header, dict) and "schema_version" in header and "reference_hash" in header


def check_key_added(sdata: SpatialData, key_added: str, *, responses: bool = False) -> None:
    """Raise a `ValueError` for a name that is not legal, or that anything but an earlier prediction has."""
    if sanitize_name(key_added) != key_added:
        raise ValueError(
            f"`key_added` {key_added!r} is not a legal element name; for instance {sanitize_name(key_added)!r} is."
        )
    if key_added in sdata.tables:
        table = sdata.tables[key_added]
        if not is_predicted(table) or (responses and not holds_responses(table.uns[_keys.RETRIEVAL])):
            maker = "perturb" if responses else "predict"
            raise ValueError(
                f"`sdata.tables[{key_added!r}]` exists and was not made by `rg.tl.{maker}`; it is not replaced. "
                "Choose another name with `key_added=`."
            )
        return
    taken = [name for _, name, _ in sdata.gen_elements() if name.lower() == key_added.lower()]
    if taken:
        raise ValueError(f"`key_added` {key_added!r}: the name is taken by element {taken[0]!r}. Choose another one.")


def annotating_tables(sdata: SpatialData, shapes_key: str) -> list[str]:
    """Names of the tables that annotate an element, those written by `predict` left out."""
    tables = sdata.tables.items()
    return [name for name, table in tables if shapes_key in regions_of(table) and not is_predicted(table)]


def resolve_table(sdata: SpatialData, table_key: str | None, shapes_key: str | None) -> str | None:
    """Name of the table: asked for, or the only one that annotates the shapes; `None` if none does."""
    if table_key is not None:
        require_key(table_key, sdata.tables, "sdata.tables")
        return table_key
    names = [name for name, table in sdata.tables.items() if not is_predicted(table)]
    what = "tables found"
    if shapes_key is not None:
        names, what = annotating_tables(sdata, shapes_key), f"tables annotate {shapes_key!r}"
    return only_one(names, "table_key", what)


def resolve_annotation(sdata: SpatialData, table_key: str | None, shapes_key: str | None) -> tuple[str, str]:
    """Names of the table (which may not exist yet) and of the shapes that it annotates."""
    if table_key is not None and table_key not in sdata.tables and shapes_key is not None:
        shapes_key = resolve_shapes(sdata, shapes_key)
        if not annotating_tables(sdata, shapes_key):
            return sanitize_name(table_key), shapes_key
    if table_key is None and shapes_key is None and len(sdata.shapes) != 1:
        table_key = resolve_table(sdata, None, None)
    if table_key is not None:
        require_key(table_key, sdata.tables, "sdata.tables")
        region = single_region(sdata.tables[table_key])
        if shapes_key is not None and shapes_key != region:
            resolve_shapes(sdata, shapes_key)
            raise ValueError(
                f"Table {table_key!r} annotates {region!r}, not {shapes_key!r}. "
                f"Tables that annotate {shapes_key!r}: {annotating_tables(sdata, shapes_key) or 'none'}."
            )
        return table_key, resolve_shapes(sdata, region)
    shapes_key = resolve_shapes(sdata, shapes_key)
    table_key = resolve_table(sdata, None, shapes_key)
    if table_key is not None:
        single_region(sdata.tables[table_key])
    return table_key or sanitize_name(f"{shapes_key}_table"), shapes_key


def empty_table(index: Any, shapes_key: str) -> AnnData:
    obs = pd.DataFrame(
        {"region": pd.Categorical([shapes_key] * len(index)), "instance_id": np.asarray(index)},
        index=[str(name) for name in index],
    )
    return TableModel.parse(AnnData(obs=obs), region=shapes_key, region_key="region", instance_key="instance_id")


def rows_in_order(table: AnnData, table_key: str, shapes_key: str, index: Any) -> np.ndarray:
    """Position of each row of the table in the element's index."""
    attrs = table_attrs(table)
    instance_key, regions = attrs["instance_key"], table.obs[attrs["region_key"]].astype(str)
    ids = table.obs[instance_key]
    if (regions != shapes_key).any():
        elsewhere = regions[regions != shapes_key]
        raise ValueError(
            f"{len(elsewhere)} of {table.n_obs} rows of table {table_key!r} lie in {listing(elsewhere.unique())} by "
            f"`obs[{attrs['region_key']!r}]`, not in {shapes_key!r}. Take the rows of one element: "
            f"`sdata.tables[{table_key!r}] = table[table.obs[{attrs['region_key']!r}] == {shapes_key!r}].copy()`."
        )
    require_unique(ids, f"instance ids in `obs[{instance_key!r}]` of table {table_key!r}", "Each spot needs one row.")
    todo = (
        f"Number the spots (`sdata[{shapes_key!r}] = sdata[{shapes_key!r}].reset_index(drop=True)`), and write the "
        f"numbers into `table.obs[{instance_key!r}]`."
    )
    require_unique(index, f"ids in the index of {shapes_key!r}", todo)
    if table.n_obs == 0:
        raise ValueError(f"Table {table_key!r} has no rows.")
    position = index.get_indexer(np.asarray(ids))
    if (position < 0).any() and (texts := index.map(_text)).is_unique:
        # Numbers that one of the two holds as text.
        position = texts.get_indexer(np.asarray(ids).astype(str))
    if (position < 0).any():
        column = f"table.obs[{instance_key!r}]"
        todo = f"Write ids of {shapes_key!r} into `{column}`."
        if (position >= 0).any():
            known = f"{column}.astype(str).isin(sdata[{shapes_key!r}].index.astype(str))"
            todo = f"Keep the others with `sdata.tables[{table_key!r}] = table[{known}].copy()`."
        raise ValueError(
            f"{int((position < 0).sum())} of {table.n_obs} rows of table {table_key!r} have no shape in "
            f"{shapes_key!r}, for instance {list(ids[position < 0])[:5]}; its index starts with {list(index[:5])}. "
            f"{todo}"
        )
    unused = len(index) - len(position)
    if unused:
        logger.info("%d shapes of %r have no row in table %r and are ignored.", unused, shapes_key, table_key)
    return position


def plain_table(table: AnnData) -> AnnData:
    """A table whose X and layers are arrays in memory, as they were predicted: the table itself, or a copy."""
    layers = {name: values for name, values in table.layers.items() if name is not None}
    if not table.isbacked and not any(map(sp.issparse, (table.X, *layers.values()))):
        return table
    table = table.to_memory()
    table.X, *values = (m.toarray() if sp.issparse(m) else m for m in (table.X, *map(table.layers.get, layers)))
    table.layers.update(zip(layers, values, strict=True))
    return table


def _text(name: Any) -> str:
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def spot_centers(
    sdata: SpatialData, table: AnnData, *, table_key: str, image_key: str, coordinate_system: str | None
) -> np.ndarray:
    """(rows, 2) centres (x, y) of a table's spots in level-0 pixels of an image."""
    shapes_key = resolve_shapes(sdata, single_region(table))
    centers = centers_in_pixels(sdata, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    return centers.xy[rows_in_order(table, table_key, shapes_key, centers.index)]


def embedded_centers(sdata: SpatialData, table: AnnData, *, table_key: str, header: Mapping[str, Any]) -> np.ndarray:
    """(rows, 2) centres of a table's spots on the image of an embedding; NaN where the object has come without it."""
    image_key = str(header["image_key"])
    if image_key not in sdata.images:
        # Spots that came with pictures of their own lie in pixels of the slide that these were cut of.
        known = image_key == _keys.PATCHES and _keys.SPATIAL in table.obsm
        return np.asarray(table.obsm[_keys.SPATIAL], dtype=float) if known else np.full((table.n_obs, 2), np.nan)
    return spot_centers(
        sdata, table, table_key=table_key, image_key=image_key, coordinate_system=str(header["coordinate_system"])
    )
