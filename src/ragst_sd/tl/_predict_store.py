"""Predictions of more spots than fit into memory: block by block into a table on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._fields import TISSUE, stored_fields
from ragst_sd._replacing import fresh_folder, link_target, locked, recover, version_of, without_notices
from ragst_sd._workers import spread_blocks
from ragst_sd.io._read_reference import PinnedStore, opened_lazily
from ragst_sd.retrieval.bank import Selection
from ragst_sd.retrieval.run import Part, Values, blocks_of_queries, values_of

# A chunk holds all spots of a block, so that no two blocks, and no two workers, write to the same one.
_CHUNK_GENES = 4096
_AGAIN = "Call `rg.tl.predict` again, with another `store` if both tables are wanted"


def predict_into(
    path: str | os.PathLike[str],
    part: Part,
    selection: Selection,
    finite: np.ndarray,
    assembled: Callable[[Values], AnnData],
) -> AnnData:
    """Predict block by block into a table on disk, which is read from there; `assembled` makes a table of the values."""
    with _new_store(path, len(finite), len(part.genes), intervals=part.intervals is not None) as place:
        _finish(place, assembled(_fill(place, part, selection, finite)))
        version = version_of(place)
    # Absolute, so that the table outlives a change of the working directory.
    store = PinnedStore(Path(path).resolve(), version=version, opened_with="rg.tl.predict(store=...)", again=_AGAIN)
    return opened_lazily(store, parts=("X", "layers"))


@contextmanager
def _new_store(path: str | os.PathLike[str], n: int, n_genes: int, *, intervals: bool) -> Iterator[Path]:
    """An empty table on disk, which takes the place of `path` when it has been filled and the block ends well.

    Raises
    ------
    FileExistsError
        If `path` holds anything but a predicted table.
    ValueError
        If `path` lies inside another store, which cannot be read with a folder in it that it does not know of.
    """
    path = link_target(Path(path))
    outer = [
        parent for parent in path.absolute().parents if (parent / "zarr.json").exists() or (parent / ".zgroup").exists()
    ]
    if outer:
        raise ValueError(
            f"{path} lies inside the store {outer[-1]}, which could not be read any more with an unregistered table. "
            "Choose a `store` outside, or predict without `store` and call `rg.io.write_table`."
        )
    with locked(path, "predicted into"):
        recover(path)
        if path.exists() and not (path / "uns" / _keys.RETRIEVAL).is_dir():
            raise FileExistsError(
                f"{path} exists and is not a table that `rg.tl.predict` wrote; it is not replaced. Choose another "
                "`store`."
            )
        with fresh_folder(path) as place:
            group = zarr.open_group(place, mode="w", zarr_format=3)
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            layers = group.create_group("layers")
            layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            rows = max(1, len(range(n)[blocks_of_queries(n, n_genes)[0]]))
            for field in stored_fields(TISSUE, intervals=intervals):
                array = group.create_array(
                    "X" if field.place == "X" else f"layers/{field.name}",
                    shape=(n, n_genes),
                    chunks=(rows, min(n_genes, _CHUNK_GENES)),
                    dtype="float32",
                    fill_value=0.0,
                )
                array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            yield place


def _fill(place: Path, part: Part, selection: Selection, finite: np.ndarray) -> Values:
    """Write all blocks, here or on the workers of a cluster, and give the table's arrays as they lie on disk."""
    n = len(selection.rows)
    blocks = blocks_of_queries(n, len(part.genes))
    tasks = ((queries.start, selection.some(queries), finite[queries]) for queries in blocks)
    write = partial(_fill_block, str(place.absolute()))
    per_spot = pd.concat(list(spread_blocks(write, tasks, part)))
    arrays = _arrays(zarr.open_group(place, mode="r"))
    lazily = {name: ad.experimental.read_elem_lazy(array) for name, array in arrays.items()}
    return {name: column.to_numpy() for name, column in per_spot.items()} | lazily


def _arrays(group: Any) -> dict[str, zarr.Array]:
    """What is stored of spots and genes, by the names of the fields."""
    return {"prediction": group["X"], **dict(group["layers"].arrays())}


def _fill_block(place: str, part: Part, task: tuple[int, Selection, np.ndarray]) -> pd.DataFrame:
    """Write what one block has of spots and genes, and give what it has per spot; done twice it writes the same."""
    start, selection, finite = task
    values = values_of(part, selection)
    for name, array in _arrays(zarr.open_group(place, mode="r+")).items():
        block = values.pop(name)
        block[~finite] = np.nan
        array[start : start + len(block)] = block
    return pd.DataFrame(values)


def _finish(place: Path, table: AnnData) -> None:
    """Write all parts of the table that are in memory beside the arrays on disk."""
    group = zarr.open_group(place, mode="r+")
    with without_notices():
        for name in ("obs", "var"):
            ad.io.write_elem(group, name, getattr(table, name))
        for name in ("obsm", "varm", "obsp", "varp", "uns"):
            ad.io.write_elem(group, name, dict(getattr(table, name)))
    zarr.consolidate_metadata(group.store)
