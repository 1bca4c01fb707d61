"""`rg.io.read_embeddings`."""

from __future__ import annotations

import logging
from os import PathLike
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import empty_table, resolve_table, rows_in_order, single_region
from ragst_sd._elements import (
    centers_in_pixels,
    image_pyramid,
    require_sdata,
    resolve_image,
    squares_on_image,
)
from ragst_sd._resolution import image_mpp_of
from ragst_sd._validate import listing, require_positive, require_type
from ragst_sd.io._embedding_file import read_embedding_file
from ragst_sd.io._readable import existing
from ragst_sd.pp._embedding_header import add_embedding, default_key, embedding_header

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from ragst_sd.image.embedding import Pyramid
    from ragst_sd.io._embedding_file import EmbeddingFile

logger = logging.getLogger(__name__)

_TILES, _TILES_TABLE = "tiles", "tiles_table"
_WIDTH_TOLERANCE = 0.1


def read_embeddings(
    sdata: SpatialData,
    path: str | PathLike[str],
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    model: str | None = None,
    weights_hash: str = _keys.UNKNOWN,
    tile_px: int | None = None,
    mpp: float | None = None,
    image_mpp: float | None = None,
    key_added: str | None = None,
) -> None:
    """Read embeddings of tiles that TRIDENT, CLAM or HEST have made.

    Parameters
    ----------
    sdata
        Object with the image that was embedded, and with spots or without.
    path
        h5 file with `features` and `coords` (TRIDENT, CLAM), or `embeddings` and `barcodes` (HEST).
    image_key
        Image in `sdata.images`; may be left out if there is only one.
    table_key
        Table that annotates the spots; may be left out if there is only one. In an object without tables the tiles of
        the file become shapes and a table.
    coordinate_system
        The frame that image and spots share; may be left out if they share just one.
    model
        Name of the encoder; `None` takes the one in the file (TRIDENT).
    weights_hash
        What tells weights of one name apart. Embeddings compare only if it is the same.
    tile_px
        Edge of a tile in pixels, as the encoder saw it; `None` takes the one in the file (TRIDENT).
    mpp
        Microns per pixel of a tile, as it was asked for; `None` takes 10 / magnification from the file (TRIDENT).
    image_mpp
        Microns per pixel of the image; else the value kept by :func:`ragst_sd.pp.set_image_mpp` is used.
    key_added
        Key of `.obsm`; `X_<model>`, made legal, if left out.

    Returns
    -------
    `None`. Written to the table:

    `.obsm[key_added]`
        float32 (n, d); NaN rows for spots that no tile belongs to.
    `.uns["ragst"]["embeddings"][key_added]`
        Header, as :func:`ragst_sd.pp.embed_tiles` writes it. `predict` and `build_reference` accept these embeddings
        only beside others of the same encoder name, `weights_hash`, tile size and resolution; never beside those that
        `embed_tiles` has made, as nothing proves that they are comparable.
    `.obsm["spatial"]`
        Centres (x, y) in image pixels, if the table has none.

    In an object without tables, also `.shapes["tiles"]`, squares in the image's frames, and `.tables["tiles_table"]`.

    Raises
    ------
    KeyError
        If a key does not exist.
    FileNotFoundError
        If there is no such file.
    TypeError
        If `sdata` is no SpatialData, `path` no path or `model` no name.
    ValueError
        If the file is damaged or lacks what it takes, no spot belongs to a tile, or encoder, tile size or resolution
        are neither in the file nor given.

    Notes
    -----
    The files are those of TRIDENT (https://github.com/mahmoodlab/TRIDENT), CLAM (https://github.com/mahmoodlab/CLAM)
    and HEST (https://github.com/mahmoodlab/HEST). Barcodes, if the file holds them, decide which vector belongs to
    which spot. Else `coords` do: they are the top left corners of tiles in pixels of the finest level, and a spot
    takes the nearest tile of those whose centre lies within half a tile of its own.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_slide("slide.tif", mpp=0.5)
    >>> rg.io.read_embeddings(sdata, "features_uni_v1/slide.h5", image_key="he")  # made by TRIDENT
    >>> list(sdata.tables["tiles_table"].obsm)
    ['X_uni_v1', 'spatial']
    """
    require_sdata(sdata)
    require_type(path, (str, PathLike), "path")
    path = existing(path, "`path`:", "Pass the h5 file of one slide.")
    image_key = resolve_image(sdata, image_key)
    image_mpp = image_mpp_of(sdata, image_key, image_mpp)
    table_key = resolve_table(sdata, table_key, None)
    file = read_embedding_file(path)
    model, tile_px, mpp = _stated(file, path.name, model=model, tile_px=tile_px, mpp=mpp)
    by_place = table_key is None or file.barcodes is None
    squares = _squares(file, path.name, tile_px=tile_px, mpp=mpp, image_mpp=image_mpp) if by_place else np.empty((0, 3))
    key_added = default_key(model, None) if key_added is None else key_added

    shapes = None
    if table_key is None:
        shapes, frame = _tiles(sdata, squares, image_key, coordinate_system, path.name)
        xy, affine, rows = squares[:, :2] + squares[:, 2:] / 2, np.eye(3), np.arange(len(squares))
        table, table_key, shapes_key = empty_table(shapes.index, _TILES), _TILES_TABLE, _TILES
    else:
        table = sdata.tables[table_key]
        shapes_key = single_region(table)
        all_xy, index, affine, frame = centers_in_pixels(
            sdata, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system
        )
        xy = all_xy[rows_in_order(table, table_key, shapes_key, index)]
        rows = rows_by_place(squares, xy, path.name) if by_place else rows_by_name(file, table, path.name)
    add_features(
        table,
        key_added,
        file,
        rows,
        name=path.name,
        table_key=table_key,
        pyramid=image_pyramid(sdata, image_key),
        affine=affine,
        xy=xy,
        model=model,
        weights_hash=weights_hash,
        tile_px=tile_px,
        mpp=mpp,
        image_mpp=image_mpp,
        upsampling=1.0 if image_mpp is None else max(1.0, image_mpp / mpp),
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=frame,
    )
    if shapes is not None:
        sdata.shapes[shapes_key], sdata.tables[table_key] = shapes, table
        logger.info("Adding `sdata.shapes[%r]` and `sdata.tables[%r]`: %d tiles.", shapes_key, table_key, len(xy))
    logger.info("Adding `sdata.tables[%r].obsm[%r]` %s.", table_key, key_added, table.obsm[key_added].shape)


def add_features(
    table: AnnData,
    key_added: str,
    file: EmbeddingFile,
    rows: np.ndarray,
    *,
    name: str,
    table_key: str,
    pyramid: Pyramid,
    affine: np.ndarray,
    xy: np.ndarray,
    model: str,
    weights_hash: str,
    **geometry: Any,
) -> None:
    """Write vectors of a file, and the header of an embedding of which no more is known, to a table.

    `rows` are those of the file, -1 where a spot has none, which becomes NaN.
    """
    lost = rows < 0
    if lost.any():
        logger.warning(
            "%d of %d spots of table %r have no tile in %r, for example %s: NaN.",
            int(lost.sum()),
            len(rows),
            table_key,
            name,
            listing(table.obs_names[lost][:5]),
        )
    embedding = np.full((table.n_obs, file.vectors.shape[1]), np.nan, np.float32)
    embedding[~lost] = file.vectors[rows[~lost]]
    encoder = SimpleNamespace(
        name=model, weights_hash=weights_hash, mean=(), std=(), input_px=None, precision=_keys.UNKNOWN
    )
    header = embedding_header(
        pyramid,
        affine,
        xy,
        encoder=encoder,  # type: ignore[arg-type]
        context=(1.0,),
        origin=name,
        **geometry,
    )
    add_embedding(table, key_added, embedding, header, xy=xy, inside=~lost)


def _stated(
    file: EmbeddingFile, name: str, *, model: str | None, tile_px: int | None, mpp: float | None
) -> tuple[str, int, float]:
    """Encoder, tile size and resolution: given, else from the file."""
    model = file.encoder if model is None else model
    tile_px = file.tile_px if tile_px is None else tile_px
    mpp = file.mpp if mpp is None else mpp
    stated = {"model": model, "tile_px": tile_px, "mpp": mpp}
    missing = [f"`{what}=`" for what, value in stated.items() if value is None]
    if missing:
        msg = (
            f"{name!r} does not say which encoder made it of which tiles. Pass {', '.join(missing)}: embeddings can be "
            "compared only if these are the same."
        )
        raise ValueError(msg)
    require_type(model, str, "model")
    require_positive(tile_px, "tile_px", whole=True)
    require_positive(mpp, "mpp")
    return str(model), int(tile_px), float(mpp)  # type: ignore[arg-type]


def _squares(file: EmbeddingFile, name: str, *, tile_px: int, mpp: float, image_mpp: float | None) -> np.ndarray:
    """(n, 3) left, top and edge of the tiles, in pixels of the finest level."""
    if file.corners is None:
        msg = f"{name!r} holds barcodes but no 'coords', and the object has no table to match them with."
        raise ValueError(msg)
    derived = None if image_mpp is None else tile_px * mpp / image_mpp
    if file.edge_px is None and derived is None:
        msg = (
            f"{name!r} does not say how wide its tiles are on the slide. Give the resolution of the image with "
            "`image_mpp=` or `rg.pp.set_image_mpp`."
        )
        raise ValueError(msg)
    if file.edge_px is not None and derived is not None and abs(file.edge_px / derived - 1) > _WIDTH_TOLERANCE:
        logger.warning(
            "Tiles of %r are %.4g px wide on the slide; %d px of %.4g microns on an image of %.4g microns per pixel "
            "would be %.4g. Check that the file is of this slide, and the resolution of both.",
            name,
            file.edge_px,
            tile_px,
            mpp,
            image_mpp,
            derived,
        )
    edge = derived if file.edge_px is None else file.edge_px
    return np.column_stack([file.corners, np.full(len(file.corners), edge)])


def rows_by_name(file: EmbeddingFile, table: AnnData, name: str) -> np.ndarray:
    """Row of the file for each spot, -1 where there is none."""
    import pandas as pd

    rows = pd.Index(file.barcodes).get_indexer(table.obs_names.astype(str))
    if (rows < 0).all():
        msg = (
            f"No spot of the table (for example {listing(table.obs_names[:3])}) is among the barcodes of {name!r} (for "
            f"example {listing(file.barcodes[:3])}). Check that both are of one section."  # type: ignore[index]
        )
        raise ValueError(msg)
    return rows


def rows_by_place(squares: np.ndarray, xy: np.ndarray, name: str) -> np.ndarray:
    """Row of the nearest tile for each spot, -1 where its centre is farther than half a tile, in x or y."""
    from scipy.spatial import KDTree

    centers, half = squares[:, :2] + squares[:, 2:] / 2, squares[0, 2] / 2
    # In this metric "within half a tile" is the tile itself.
    distance, rows = KDTree(centers).query(xy, p=np.inf)
    rows = np.where(distance <= half, rows, -1)
    if (rows < 0).all():
        msg = (
            f"No spot lies in a tile of {name!r}: centres of tiles cover x {centers[:, 0].min():.0f} to "
            f"{centers[:, 0].max():.0f} and y {centers[:, 1].min():.0f} to {centers[:, 1].max():.0f}, spots x "
            f"{xy[:, 0].min():.0f} to {xy[:, 0].max():.0f} and y {xy[:, 1].min():.0f} to {xy[:, 1].max():.0f}, in "
            "pixels of the finest level. Check that both are of one image at one resolution."
        )
        raise ValueError(msg)
    return rows


def _tiles(
    sdata: SpatialData, squares: np.ndarray, image_key: str, coordinate_system: str | None, name: str
) -> tuple[GeoDataFrame, str]:
    """Shapes for the tiles of the file, and the frame of the image that is meant."""
    from spatialdata.transformations import get_transformation

    taken = [own for _, own, _ in sdata.gen_elements() if own.lower() in (_TILES, _TILES_TABLE)]
    if taken:
        msg = (
            f"The object has no table, so the tiles of {name!r} would become one, but the name {taken[0]!r} is taken. "
            "Give the shapes that are there a table (`rg.pp.embed_tiles` does), or remove them."
        )
        raise ValueError(msg)
    frames = dict(get_transformation(sdata.images[image_key], get_all=True))
    if coordinate_system is None and len(frames) == 1:
        coordinate_system = next(iter(frames))
    if coordinate_system is None or coordinate_system not in frames:
        msg = f"Say with `coordinate_system=` which frame of image {image_key!r} is meant: {listing(frames)}."
        raise ValueError(msg)
    return squares_on_image(sdata, image_key, squares[:, :2], squares[:, 2]), coordinate_system
