"""`rg.io.write_table`."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import zarr
from spatialdata import SpatialData
from spatialdata._io.format import SpatialDataContainerFormats

from ragst_sd._elements import require_sdata
from ragst_sd._replacing import OLD, leftovers, link_target, locked, move_in, place_beside, without_notices
from ragst_sd._validate import require_key

logger = logging.getLogger(__name__)

_TABLES, _OLD = "tables", "old"


def write_table(sdata: SpatialData, name: str) -> None:
    """Write a table into the store of its object, replacing an older version safely.

    The new version is written next to the store and then replaces the old one by two renames. If the process is killed
    between them, the next call for this store restores the old table. So no table is lost, even if the disk is full. A
    hidden file `.<store>.lock` next to the store prevents two processes from writing at once. `sdata` must be backed by
    a store (`sdata.write(path)`).

    Parameters
    ----------
    sdata
        Object with a store.
    name
        Table to write.

    Returns
    -------
    `None`. On disk `<store>/tables/<name>` is the table as it is in memory, in the zarr format of the store, and
    `sdata.attrs` are written. The store is opened once before this function returns.

    Raises
    ------
    FileNotFoundError
        If the store was moved or deleted.
    KeyError
        If the table does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the object has no store, or the store holds another element of that name.
    BlockingIOError
        If another process or thread is writing to the same store.
    RuntimeError
        If the store cannot be read after the table was written.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.datasets.synthetic(n_donors=1, image_px=500)["donor1"]
    >>> sdata.write("donor1.zarr")
    >>> rg.pp.embed_tiles(sdata, progress=False)
    >>> rg.io.write_table(sdata, "table")
    """
    require_sdata(sdata)
    require_key(name, sdata.tables, "sdata.tables")
    if not sdata.is_backed():
        raise ValueError("`sdata` has no store yet. Write it once with `sdata.write(path)`.")
    store = link_target(Path(sdata.path))
    if not store.exists():
        raise FileNotFoundError(
            f"The store of `sdata`, {store}, is not there: it was moved or deleted. Read the object again from where "
            "its store lies now (`spatialdata.read_zarr`), or write it to a new one with `sdata.write(path)`."
        )
    with locked(store):
        _recover(store)
        place = store / _TABLES / name
        if not place.exists() and name in {path.rsplit("/", 1)[-1] for path in sdata.elements_paths_on_disk()}:
            raise ValueError(f"The store {store} has another element named {name!r}. Choose another name.")
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        # Of stores written before spatialdata 0.5, all parts have to stay in zarr format 2.
        written = group.metadata.zarr_format
        container = next(kind for kind in SpatialDataContainerFormats.values() if kind.zarr_format == written)
        with place_beside(store) as fresh:
            # A store of its own: the elements that the table annotates are not in it.
            with without_notices():
                warnings.filterwarnings("ignore", message=".*annotat.*", category=UserWarning)
                SpatialData(tables={name: sdata.tables[name]}).write(fresh, sdata_formats=container)
                SpatialData.read(fresh)
            (fresh / _OLD).mkdir()
            sdata.write_attrs(sdata_format=container)
            group.require_group(_TABLES)
            move_in(fresh / _TABLES / name, place, old=fresh / _OLD / name)
        if sdata.has_consolidated_metadata():
            sdata.write_consolidated_metadata()
        try:
            with warnings.catch_warnings(action="ignore"):
                SpatialData.read(store)
        except Exception as error:
            raise RuntimeError(
                f"Table {name!r} was written, but {store} cannot be read now: {error!r}. Write the object to a new "
                "store."
            ) from error
    logger.info("Wrote table %r to %s.", name, sdata.path)


def _recover(store: Path) -> None:
    """Bring back tables that a stopped writer moved away, and remove what it had not finished."""
    for fresh in leftovers(store):
        # Earlier releases moved a table to the second place, under a name with a suffix.
        for old in (*(fresh / _OLD).glob("*"), *(fresh / _TABLES).glob(f"*{OLD}")):
            place = store / _TABLES / old.name.removesuffix(OLD)
            if not place.exists():
                old.rename(place)
        shutil.rmtree(fresh)
