"""Pictures of spots that a table holds where there is no slide: as the image whose tiles are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from ragst_sd import _keys
from ragst_sd._spot_layout import spot_pitch
from ragst_sd._validate import require_key
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.tiles import resize_tiles

# Edge of the pictures that a reference keeps of its spots.
THUMBNAIL_PX = 64
_ROUNDING = 1.01
_BATCH = 128


def holds_patches(sdata: SpatialData, image_key: str | None) -> bool:
    """Whether tiles come from pictures of spots: `image_key` says so, or a table has them and there is no image."""
    if _keys.PATCHES in sdata.images or image_key not in (None, _keys.PATCHES):
        return False
    held = any(_keys.PATCHES in table.obsm for table in sdata.tables.values())
    return held and (image_key is not None or not len(sdata.images))


def patch_pyramid(table: AnnData) -> tuple[Pyramid, np.ndarray]:
    """The pictures of a table, one under the other as one image, and the centre (x, y) of each in its pixels."""
    pictures = table.obsm[_keys.PATCHES]
    n, edge = pictures.shape[:2]
    strip = pictures.transpose(3, 0, 1, 2).reshape(3, n * edge, edge)
    rows = pictures.chunksize[0] if hasattr(pictures, "chunksize") else n
    centers = np.column_stack([np.full(n, edge / 2), (np.arange(n) + 0.5) * edge])
    return Pyramid((strip,), ((rows * edge, edge),)), centers


def patch_mpp(table: AnnData | None, table_key: str) -> float:
    """Microns per pixel of the pictures.

    Raises
    ------
    KeyError
        If the table holds none.
    """
    todo = "Read it with `rg.io.read_patches`, or name the table that holds pictures with `table_key=`."
    require_key(_keys.PATCHES, {} if table is None else table.obsm, f"sdata.tables[{table_key!r}].obsm", todo)
    about = table.uns.get(_keys.ATTRS, {}).get(_keys.PATCHES, {})  # type: ignore[union-attr]
    require_key("mpp", about, f"sdata.tables[{table_key!r}].uns['{_keys.ATTRS}']['{_keys.PATCHES}']", todo)
    return float(about["mpp"])


def patch_edge(table: AnnData, image_mpp: float | None, xy: np.ndarray) -> float:
    """Edge of a picture in pixels of the slide; where its resolution is unknown, the distance between spots."""
    about = table.uns[_keys.ATTRS][_keys.PATCHES]
    return spot_pitch(xy) if image_mpp is None else float(about["edge_px"]) * float(about["mpp"]) / image_mpp


def frame_of(sdata: SpatialData, shapes_key: str) -> str:
    """The coordinate system of shapes, the first if they have several."""
    return next(iter(get_transformation(sdata[shapes_key], get_all=True)))


def require_in_patches(
    table: AnnData, *, tile_px: int, mpp: float | None, pixel_mpp: float, context: Sequence[float]
) -> None:
    """Raise a `ValueError` if a field of view is wider than the pictures: what lies beside them is not at hand."""
    shown = table.obsm[_keys.PATCHES].shape[1] * pixel_mpp
    asked = tile_px * (pixel_mpp if mpp is None else mpp) * max(context)
    if asked > _ROUNDING * shown:
        raise ValueError(
            f"The pictures in `obsm[{_keys.PATCHES!r}]` show {shown:.4g} microns around a spot; fields of view of up "
            f"to {asked:.4g} were asked for (`tile_px` * `mpp` * `context`). Ask for less, or read the section with "
            "its slide."
        )


def shrunk(pictures: Any, edge_px: int) -> np.ndarray:
    """Pictures resized to (n, edge_px, edge_px, 3), some at a time, as they may lie on disk."""
    out = np.empty((len(pictures), edge_px, edge_px, 3), np.uint8)
    for start in range(0, len(out), _BATCH):
        windows = np.moveaxis(np.asarray(pictures[start : start + _BATCH]), -1, 1)
        tiles = resize_tiles(np.ascontiguousarray(windows), edge_px)
        out[start : start + len(tiles)] = tiles.permute(0, 2, 3, 1).numpy()
    return out
