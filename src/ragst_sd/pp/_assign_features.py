"""The steps of `rg.pp.use_features` and `rg.io.read_embeddings`: features of tiles are assigned to spots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from ragst_sd import _keys
from ragst_sd._annotation import (
    empty_table,
    is_predicted,
    regions_of,
    resolve_annotation,
    resolve_table,
    rows_in_order,
    table_attrs,
)
from ragst_sd._elements import (
    centers_in_pixels,
    image_pyramid,
    require_free,
    resolve_image,
    resolve_shapes,
    squares_on_image,
)
from ragst_sd._resolution import image_mpp_of
from ragst_sd._validate import listing, only_one, require_between, require_positive, require_type
from ragst_sd.image.frames import similarity_scale
from ragst_sd.image.pooling import pool_tiles
from ragst_sd.io._st_counts import places_among
from ragst_sd.pp._embedding_header import Spots, default_key, write_features
from ragst_sd.pp._tile_features import TileFeatures, require_covered

logger = logging.getLogger(__name__)

_TILES, _TILES_TABLE = "tiles", "tiles_table"
_WIDTH_TOLERANCE = 0.1


def assign_features(
    sdata: SpatialData,
    features: TileFeatures,
    given: Mapping[str, Any],
    *,
    image_key: str | None,
    table_key: str | None,
    coordinate_system: str | None,
    key_added: str | None,
    shapes_key: str | None = None,
    image_mpp: float | None = None,
    weights_hash: str = _keys.UNKNOWN,
    context: Sequence[float] = (1.0,),
) -> None:
    """Assign features of tiles to spots, and write them as an embedding; `given` holds `model`, `tile_px` and `mpp`.

    An image is needed for tiles that are known by their corners in its pixels, and else used where there is one.
    """
    for field in context:
        require_positive(field, "context")
        require_between(field, 1, np.inf, "context", "Features of whole tiles cannot be divided: ask for 1 and more.")
    if image_key is not None or features.corners is not None or len(sdata.images):
        image_key = resolve_image(sdata, image_key)
        image_mpp = image_mpp_of(sdata, image_key, image_mpp)
    target = _target_keys(sdata, features, table_key, shapes_key)
    spots = None if target is None else Spots.on_image(sdata, *target, image_key or target[1], coordinate_system)
    tiles, edge = None, features.edge_px
    if spots is not None and features.table is not None:
        tiles, edge = _tiles_of_table(sdata, features, image_key or spots.shapes_key, spots.frame)
    features = _completed(features, edge, image_mpp, given)
    edge = _edge_px(features, edge, image_mpp)
    if features.corners is not None and edge is not None:
        tiles = features.corners + edge / 2
    if spots is None:
        spots = _new_spots(sdata, features, tiles, edge, str(image_key), coordinate_system)

    # Features are known by the row of their spot, or else by the place of their tile.
    rows = _feature_rows(features, spots)
    known = np.isfinite(features.vectors).all(axis=1)
    if rows is None:
        vectors, tiles = features.vectors[known], _require_known(tiles, features)[known]
    else:
        matched = np.flatnonzero((rows >= 0) & known[rows])
        vectors, tiles = features.vectors[rows[matched]], spots.xy[matched]
    if rows is not None and tuple(context) == (1,):
        embedding = np.full((len(rows), vectors.shape[1]), np.nan, np.float32)
        embedding[matched] = vectors
    else:
        embedding = pool_tiles(vectors, tiles, spots.xy, edge=float(_require_known(edge, features)), context=context)
    require_covered(embedding, tiles, spots.xy, features.what)
    key_added = default_key(features.model, None) if key_added is None else key_added
    write_features(
        spots,
        key_added,
        embedding,
        what=features.what,
        pyramid=None if image_key is None else image_pyramid(sdata, image_key),
        model=str(features.model),
        weights_hash=weights_hash,
        tile_px=features.tile_px,
        mpp=features.mpp,
        image_mpp=image_mpp,
        context=context,
        upsampling=1.0 if image_mpp is None else max(1.0, image_mpp / features.mpp),  # type: ignore[operator]
        image_key=image_key or "",
    )
    spots.add_to(sdata, key_added)


def _target_keys(
    sdata: SpatialData, features: TileFeatures, table_key: str | None, shapes_key: str | None
) -> tuple[str, str] | None:
    """Names of table and shapes that take the features; `None` for a slide without a table, whose tiles do."""
    if table_key is None and features.table is None:
        table_key = features.rows_of
    if table_key is None and shapes_key is None:
        if features.table is None:
            table_key = resolve_table(sdata, None, None)
            if table_key is None and features.corners is not None:
                return None
        else:
            # The spots are what another table annotates, or the tiles themselves.
            measured = {name: regions_of(table) for name, table in sdata.tables.items() if not is_predicted(table)}
            others = [name for name, regions in measured.items() if regions not in ([], [features.shapes_key])]
            table_key = only_one(others, "table_key", f"tables could take {features.what}")
            if table_key is None:
                table_key, shapes_key = features.rows_of, features.shapes_key
    elif table_key is None and shapes_key == features.shapes_key:
        table_key = features.rows_of
    return resolve_annotation(sdata, table_key, shapes_key)


def _new_spots(
    sdata: SpatialData,
    features: TileFeatures,
    tiles: np.ndarray | None,
    edge: float | None,
    image_key: str,
    coordinate_system: str | None,
) -> Spots:
    """The tiles of a file as shapes, and a table for them, in the frame of the image that is meant."""
    todo = "The object has no table: give the shapes that are there one (`rg.pp.embed_tiles` does), or remove them."
    require_free(sdata, _TILES, f"tiles of {features.what}", todo)
    require_free(sdata, _TILES_TABLE, f"tiles of {features.what}", todo)
    frames = list(get_transformation(sdata.images[image_key], get_all=True))
    frame = frames[0] if coordinate_system is None and len(frames) == 1 else coordinate_system
    if frame not in frames:
        raise ValueError(f"Say with `coordinate_system=` which frame of {image_key!r} is meant: {listing(frames)}.")
    xy, width = _require_known(tiles, features), float(_require_known(edge, features))
    shapes = squares_on_image(sdata, image_key, xy - width / 2, width)
    table = empty_table(shapes.index, _TILES)
    return Spots(_TILES_TABLE, table, _TILES, xy, np.eye(3), str(frame), shapes)


def _tiles_of_table(
    sdata: SpatialData, features: TileFeatures, onto: str, frame: str
) -> tuple[np.ndarray, float | None]:
    """(m, 2) centres of the tiles that a table annotates, and their edge if they are squares."""
    shapes_key = resolve_shapes(sdata, features.shapes_key)
    shared = frame if frame in get_transformation(sdata[shapes_key], get_all=True) else None
    centers = centers_in_pixels(sdata, shapes_key=shapes_key, image_key=onto, coordinate_system=shared)
    name = features.rows_of or "features"
    rows = rows_in_order(features.table, name, shapes_key, centers.index)  # type: ignore[arg-type]
    element = sdata[shapes_key]
    # Outlines of spots and cells are not what the encoder saw.
    if "geometry" not in element or not (element.geometry.count_coordinates() == 5).all():
        return centers.xy[rows], None
    edge = float(np.median(np.sqrt(element.geometry.area.to_numpy()[rows])))
    return centers.xy[rows], edge * similarity_scale(centers.affine)


def _feature_rows(features: TileFeatures, spots: Spots) -> np.ndarray | None:
    """Row of the features for each spot, -1 where there is none; `None` where tiles are found by place."""
    if spots.shapes is not None or features.rows_of == spots.table_key:
        return np.arange(len(spots.xy))
    if features.table is not None:
        if features.shapes_key != spots.shapes_key:
            return None
        spot_ids, tile_ids = (table.obs[table_attrs(table)["instance_key"]] for table in (spots.table, features.table))
        return pd.Index(tile_ids).get_indexer(spot_ids)
    if features.names is None:
        return None
    return places_among(spots.table.obs_names.astype(str), features.names, "the table", features.what)


def _completed(
    features: TileFeatures, edge: float | None, image_mpp: float | None, given: Mapping[str, Any]
) -> TileFeatures:
    """The features with encoder, tile size and resolution, as given, else as they say; a `ValueError` if unknown."""
    stated = {what: getattr(features, what) if value is None else value for what, value in given.items()}
    missing = [f"`{what}=`" for what, value in stated.items() if value is None]
    if missing:
        wide = "" if edge is None or image_mpp is None else f" (they are {edge * image_mpp:.4g} microns wide)"
        raise ValueError(
            f"{features.what} does not say which encoder made it of which tiles{wide}. Pass {', '.join(missing)}: "
            "embeddings can be compared only if these are the same."
        )
    require_type(stated["model"], str, "model")
    require_positive(stated["tile_px"], "tile_px", whole=True)
    require_positive(stated["mpp"], "mpp")
    other = [
        what for what, value in given.items() if value is not None and getattr(features, what) not in (None, value)
    ]
    if other:
        says, writes = (", ".join(f"{what} {at[what]}" for what in other) for at in (vars(features), stated))
        logger.warning("%s says %s; what was given is written: %s.", features.what, says, writes)
    return replace(features, model=stated["model"], tile_px=int(stated["tile_px"]), mpp=float(stated["mpp"]))


def _edge_px(features: TileFeatures, edge: float | None, image_mpp: float | None) -> float | None:
    """Edge of a tile in pixels of the image: as it lies there, else by the resolution of the image."""
    derived = None if image_mpp is None else features.tile_px * features.mpp / image_mpp  # type: ignore[operator]
    if edge is None or derived is None:
        return derived if edge is None else edge
    if abs(edge / derived - 1) > _WIDTH_TOLERANCE:
        logger.warning(
            "Tiles of %s are %.4g px wide on the slide; %d px of %.4g microns on an image of %.4g microns per pixel "
            "would be %.4g. Check that the features are of this slide, and the resolution of both.",
            *(features.what, edge, features.tile_px, features.mpp, image_mpp, derived),
        )
    return edge


def _require_known(geometry: Any, features: TileFeatures) -> Any:
    """Centres or edge of the tiles; a `ValueError` if they are not known."""
    if geometry is None:
        raise ValueError(
            f"{features.what} does not say how wide its tiles are on the slide. Give the resolution of the image with "
            "`rg.pp.set_image_mpp`."
        )
    return geometry
