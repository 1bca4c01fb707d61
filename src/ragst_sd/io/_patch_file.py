"""Pictures of spots in the h5 files of HEST and STP-Bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np

from ragst_sd._validate import listing
from ragst_sd.io._embedding_file import BARCODES, names_of_spots
from ragst_sd.io._readable import readable

_PICTURES = ("img", "imgs", "images")
_CHUNK = 16


def _some_pictures(path: str, stamp: int, name: str, block_info: Any = None) -> np.ndarray:
    """A chunk of a data set of an h5 file, which is opened for it: open files cannot be sent to other processes."""
    first, last = block_info[None]["array-location"][0]
    with h5py.File(path) as file:
        return file[name][first:last]


def read_patch_file(path: Path) -> tuple[da.Array, np.ndarray, np.ndarray | None]:
    """Pictures of spots, their names, and where they were cut.

    Returns
    -------
    (n, edge, edge, 3) uint8, read when they are needed; (n,) names of spots; (n, 2) top left corners (x, y) in pixels
    of the slide, where the file has them.

    Raises
    ------
    ValueError
        If the file is damaged, holds no RGB pictures, or does not tell of which spots they are.
    """
    with readable(path, "h5"), h5py.File(path) as file:
        shapes = {name: (item.shape, item.dtype) for name, item in file.items() if isinstance(item, h5py.Dataset)}
        key = next((name for name in _PICTURES if name in shapes), None)
        named = next((name for name in BARCODES if name in shapes), None)
        barcodes = None if named is None else file[named][()]
        corners = np.asarray(file["coords"][()], dtype=float) if "coords" in shapes else None
    if key is None:
        msg = (
            f"{path.name!r} holds the data sets {listing(shapes)}; expected pictures in 'img'. Files of features go to "
            "`rg.io.read_patches(..., embeddings={name: path})`."
        )
        raise ValueError(msg)
    shape, dtype = shapes[key]
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
        msg = (
            f"{key!r} in {path.name!r} holds {dtype} of the shape {shape}; expected one square uint8 RGB picture per "
            "spot: (spots, edge, edge, 3)."
        )
        raise ValueError(msg)
    if barcodes is None:
        msg = (
            f"{path.name!r} holds no barcodes (data sets: {listing(shapes)}), so nothing tells of which spot each of "
            f"its {shape[0]} pictures is. Write the names of the spots into a data set 'barcode', in the order of "
            "the pictures; the order of the counts proves nothing."
        )
        raise ValueError(msg)
    names = names_of_spots(barcodes, shape[0], path.name, "pictures")
    if corners is not None and corners.shape != (shape[0], 2):
        msg = f"'coords' in {path.name!r} has the shape {corners.shape}; expected ({shape[0]}, 2)."
        raise ValueError(msg)
    pictures = da.map_blocks(
        _some_pictures,
        str(path.resolve()),
        path.stat().st_mtime_ns,
        key,
        chunks=da.core.normalize_chunks((_CHUNK, *shape[1:]), shape, dtype=dtype),
        meta=np.empty((0,) * 4, dtype),
    )
    return pictures, names, corners
