"""Features as other tools leave them: tables of LazySlide, sopa and squidpy, files of TRIDENT."""

from __future__ import annotations

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

TILE_PX, MPP = 32, 2.0
EDGE = 64  # of such a tile on images of 1 micron per pixel


def corners_over(sdata, edge=EDGE, start=0):
    """(m, 2) corners of a grid of tiles over the image."""
    height, width = sdata.images["he"]["scale0"]["image"].shape[1:]
    x, y = np.meshgrid(np.arange(start, width - edge, edge), np.arange(start, height - edge, edge))
    return np.column_stack([x.ravel(), y.ravel()])


def colours(sdata, corners, edge=EDGE):
    """What an encoder makes of tiles: mean and spread of their colours."""
    pixels = np.asarray(sdata.images["he"]["scale0"]["image"], dtype=np.float32)
    tiles = [pixels[:, y : y + edge, x : x + edge].reshape(3, -1) for x, y in corners]
    return np.array([[*tile.mean(axis=1), *tile.std(axis=1)] for tile in tiles], dtype=np.float32)


def _squares(sdata, corners, edge, **columns):
    low = corners.astype(float)
    frame = gpd.GeoDataFrame(columns, geometry=shapely.box(*low.T, *(low + edge).T))
    return ShapesModel.parse(frame, transformations=get_transformation(sdata.images["he"], get_all=True))


def add_lazyslide(sdata, model="uni2", vectors=None, corners=None):
    """Tiles with their specification in `attrs`, and a table `<model>_tiles`."""
    corners = corners_over(sdata) if corners is None else corners
    ids = np.arange(len(corners))
    sdata.shapes["tiles"] = _squares(sdata, corners, EDGE, tile_id=ids, tissue_id=0)
    spec = {"height": TILE_PX, "width": TILE_PX, "stride_height": TILE_PX, "stride_width": TILE_PX, "mpp": MPP}
    sdata.attrs["tile_spec"] = {"tiles": spec}
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical(["tiles"] * len(ids))}, index=ids.astype(str))
    table = AnnData(colours(sdata, corners) if vectors is None else vectors, obs=obs)
    sdata.tables[f"{model}_tiles"] = TableModel.parse(
        table, region="tiles", region_key="library_id", instance_key="tile_id"
    )
    return corners


def add_sopa(sdata, magnification=5.0):
    """Patches, and a table `<model>_embeddings` that says in `uns` how it was made."""
    corners = corners_over(sdata)
    sdata.shapes["embeddings_patches"] = _squares(sdata, corners, EDGE, ilocs=list(range(len(corners))))
    table = AnnData(colours(sdata, corners))
    table.obs["region"] = "embeddings_patches"
    table.obs["instance"] = np.arange(len(corners))
    table = TableModel.parse(table, region="embeddings_patches", region_key="region", instance_key="instance")
    table.obsm["spatial"] = corners + EDGE / 2
    table.uns["embedding_config"] = {
        "patch_width": TILE_PX,
        "patch_overlap": 0,
        "magnification": magnification,
        "level": 1,
        "level_downsample": 2.0,
        "tile_resize_factor": 1.0,
        "model_name": "hoptimus0",
    }
    sdata.tables["hoptimus0_embeddings"] = table
    return corners


def add_squidpy(sdata, key="img_features"):
    """A data frame in `.obsm`, one row per spot, as `squidpy.im.calculate_image_features` leaves it."""
    table = sdata.tables["table"]
    values = colours(sdata, np.rint(table.obsm["spatial"] - EDGE / 2).clip(0).astype(int))
    names = [f"summary_ch-{channel}_{what}" for what in ("mean", "std") for channel in range(3)]
    table.obsm[key] = pd.DataFrame(values, index=table.obs_names, columns=names)
    return values


def write_trident(path, sdata, vectors=None, encoder="uni_v1"):
    corners = corners_over(sdata)
    with h5py.File(path, "w") as file:
        file["features"] = colours(sdata, corners) if vectors is None else vectors
        file["coords"] = corners
        file["features"].attrs["encoder"] = encoder
        about = {"patch_size": TILE_PX, "patch_size_level0": EDGE, "level0_magnification": 10}
        file["coords"].attrs.update(about | {"target_magnification": 5, "overlap": 0})
    return corners


def write_clam(path, sdata):
    corners = corners_over(sdata)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = colours(sdata, corners), corners
    return corners
