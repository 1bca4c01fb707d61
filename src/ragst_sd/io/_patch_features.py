"""Features of the pictures of spots, from files: whose they are, and how they become an embedding of the spots."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing
from ragst_sd.pp._embedding_header import add_embedding, embedding_header

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.image.embedding import Pyramid
    from ragst_sd.io._embedding_file import EmbeddingFile

logger = logging.getLogger(__name__)


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
