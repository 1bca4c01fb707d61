"""Predictions of more spots than fit into memory: block by block into a table on disk."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._replacing import alone, followed, fresh_folder, put_right
from ragst_sd._workers import spread_over_workers
from ragst_sd.tl._intervals import Intervals, limits_around
from ragst_sd.tl._retrieve import Bank, Chosen, Retrieved, blocks_of_spots, values_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from anndata import AnnData

    from ragst_sd.tl._intervals import IntervalRule

# A chunk holds all spots of a block, so that no two blocks, and no two workers, write to the same one.
_CHUNK_GENES = 4096
_AGAIN = "Call `rg.tl.predict` again, with another `store` if both tables are wanted"
# Of spots x genes; the last two where intervals are asked for.
_ARRAYS = ["X", *(f"layers/{name}" for name in (_keys.EVIDENCE, _keys.DISAGREEMENT, _keys.LOWER, _keys.UPPER))]


@contextmanager
def new_store(path: str | os.PathLike[str], n: int, n_genes: int, *, intervals: bool) -> Iterator[Path]:
    """An empty table on disk, which takes the place of `path` when it has been filled and the block ends well.

    Raises
    ------
    FileExistsError
        If `path` holds anything but a predicted table.
    """
    import zarr

    path = followed(Path(path))
    with alone(path, "predicted into"):
        put_right(path)
        if path.exists() and not (path / "uns" / _keys.RETRIEVAL).is_dir():
            msg = f"{path} exists and is not a table that `rg.tl.predict` wrote; it is not replaced. Choose another `store`."
            raise FileExistsError(msg)
        with fresh_folder(path) as place:
            group = zarr.open_group(place, mode="w", zarr_format=3)
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            layers = group.create_group("layers")
            layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            rows = max(1, len(range(n)[blocks_of_spots(n, n_genes)[0]]))
            for name in _ARRAYS if intervals else _ARRAYS[:-2]:
                array = group.create_array(
                    name, shape=(n, n_genes), chunks=(rows, min(n_genes, _CHUNK_GENES)), dtype="float32", fill_value=0.0
                )
                array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            yield place


def fill(
    place: Path, bank: Bank, chosen: Chosen, finite: np.ndarray, rule: IntervalRule | None
) -> tuple[Retrieved, Intervals | None]:
    """Write all blocks, here or on the workers of a cluster, and give the table's arrays and limits as they lie on disk."""
    import anndata as ad
    import zarr

    n = len(chosen.rows)
    blocks = blocks_of_spots(n, len(bank.genes))
    tasks = ((spots.start, chosen.some(spots), finite[spots]) for spots in blocks)
    share = np.empty(n)
    write = partial(_fill_block, str(place.absolute()), rule)
    for spots, own in zip(blocks, spread_over_workers(write, tasks, bank), strict=True):
        share[spots] = own
    group = zarr.open_group(place, mode="r")
    prediction, *layers = (ad.experimental.read_elem_lazy(group[name]) for name in _ARRAYS if name in group)
    found = chosen.with_values(share, prediction, *layers[:2])
    return found, None if rule is None else Intervals(rule, *layers[2:])


def _fill_block(place: str, rule: IntervalRule | None, bank: Bank, task: tuple[int, Chosen, np.ndarray]) -> np.ndarray:
    """Write one block; done twice it writes the same."""
    import zarr

    start, chosen, finite = task
    values = values_of(bank, chosen, with_disagreement=True)
    blocks = [values.prediction, values.evidence, np.asarray(values.disagreement)]
    if rule is not None:
        blocks += limits_around(rule, values.prediction, np.asarray(values.disagreement), chosen)
    group: Any = zarr.open_group(place, mode="r+")
    for name, block in zip(_ARRAYS, blocks, strict=False):
        block[~finite] = np.nan
        group[name][start : start + len(block)] = block
    return values.share


def finish(place: Path, table: AnnData) -> None:
    """Write all parts of the table that are in memory beside the arrays on disk."""
    import anndata as ad
    import zarr

    group = zarr.open_group(place, mode="r+")
    for name in ("obs", "var"):
        ad.io.write_elem(group, name, getattr(table, name))
    for name in ("obsm", "varm", "obsp", "varp", "uns"):
        ad.io.write_elem(group, name, dict(getattr(table, name)))
    zarr.consolidate_metadata(group.store)


def opened(path: str | os.PathLike[str], version: tuple[int, int, int]) -> AnnData:
    """A stored table whose spots x genes arrays stay on disk; reading them after they were replaced is an error."""
    from ragst_sd.io._pinned_store import PinnedStore, opened_lazily

    # Absolute, so that the table outlives a change of the working directory.
    store = PinnedStore(Path(path).resolve(), version=version, opened_with="rg.tl.predict(store=...)", again=_AGAIN)
    return opened_lazily(store, parts=("X", "layers"))
