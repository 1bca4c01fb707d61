"""`rg.io.write_table`."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from uuid import uuid4

from ragst_sd._elements import require_sdata
from ragst_sd._validate import require_key

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_BESIDE = ".ragst_sd-new-"


def write_table(sdata: SpatialData, name: str) -> None:
    """Write a table into the store of its object, replacing an older version safely.

    The new version is written beside the old one before that is removed, so that the store holds a complete table at
    every moment. `sdata` must have been written or read before (`sdata.write(path)`).

    Parameters
    ----------
    sdata
        Object with a store.
    name
        Table to write.

    Returns
    -------
    `None`. On disk `<store>/tables/<name>` is the table as it is in memory.

    Raises
    ------
    KeyError
        If the table does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the object has no store.

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
        msg = "`sdata` has no store yet. Write it once with `sdata.write(path)`."
        raise ValueError(msg)
    stored = {path.rsplit("/", 1)[-1] for path in sdata.elements_paths_on_disk()}
    for leftover in sorted(one for one in stored if re.fullmatch(rf"{re.escape(name)}{_BESIDE}[0-9a-f]{{8}}", one)):
        # An interrupted call left it; the names are ours alone.
        sdata.delete_element_from_disk(leftover)
        sdata.tables.pop(leftover, None)
    beside = f"{name}{_BESIDE}{uuid4().hex[:8]}"
    if name not in stored:
        sdata.write_element(name)
    else:
        sdata.tables[beside] = sdata.tables[name]
        try:
            sdata.write_element(beside)
            sdata.delete_element_from_disk(name)
            sdata.write_element(name)
            sdata.delete_element_from_disk(beside)
        finally:
            del sdata.tables[beside]
    sdata.write_attrs()
    logger.info("Wrote table %r to %s.", name, sdata.path)
