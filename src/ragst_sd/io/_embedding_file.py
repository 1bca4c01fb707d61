"""Embeddings in the h5 files of TRIDENT, CLAM and HEST."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata import AnnData

from ragst_sd._validate import listing, require_unique
from ragst_sd.io._readable import readable

_VECTORS = ("features", "embeddings")
BARCODES = ("barcodes", "barcode")
# TRIDENT and sopa cut tiles at 10 / magnification microns per pixel.
UM_AT_1X = 10.0


@dataclass(frozen=True)
class TileFeatures:
    """Features of tiles; what is not stated is `None`."""

    what: str
    """As messages call them."""
    vectors: np.ndarray
    """(m, d) float32."""
    rows_of: str | None = None
    """Name of the table whose rows they are of."""
    table: AnnData | None = None
    """Table whose X they are, of tiles in the element `shapes_key`."""
    shapes_key: str | None = None
    corners: np.ndarray | None = None
    """(m, 2) top left corners (x, y) of the tiles, in pixels of the finest level."""
    edge_px: float | None = None
    """Edge of these tiles, alike."""
    names: np.ndarray | None = None
    """(m,) names of spots."""
    model: str | None = None
    tile_px: int | None = None
    """Edge of a tile as the encoder saw it."""
    mpp: float | None = None
    """Microns per pixel of a tile as the encoder saw it."""

    def __post_init__(self) -> None:
        """Files keep numbers as text, or as those of numpy."""
        for name, kind in (("edge_px", float), ("tile_px", int), ("mpp", float)):
            stated = getattr(self, name)
            object.__setattr__(self, name, None if stated is None else kind(stated))


def read_embedding_file(path: Path) -> TileFeatures:
    """Vectors, places and names of tiles, and what the attributes tell of them.

    Raises
    ------
    ValueError
        If the file is damaged, holds no vectors per tile, or values that are NaN.
    """
    with readable(path, "h5"), h5py.File(path) as file:
        content = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
        attributes = {name: dict(file[name].attrs) for name in content}
    key = next((name for name in _VECTORS if name in content), None)
    if key is None:
        raise ValueError(
            f"{path.name!r} holds the datasets {listing(content)}; expected 'features' (TRIDENT, CLAM) or "
            "'embeddings' (HEST)."
        )
    vectors = np.asarray(content[key], dtype=np.float32)
    corners = np.asarray(content["coords"], dtype=float) if "coords" in content else None
    barcodes = next((np.asarray(content[name]) for name in BARCODES if name in content), None)
    # Some writers keep a leading axis for the slide.
    vectors = vectors[0] if vectors.ndim == 3 and len(vectors) == 1 else vectors
    corners = corners[0] if corners is not None and corners.ndim == 3 and len(corners) == 1 else corners
    if barcodes is not None:
        barcodes = names_of_spots(barcodes, len(vectors), path.name, "vectors")
    _check(path.name, key, vectors, corners, is_named=barcodes is not None)
    about = attributes.get("coords", {})
    magnification = float(about.get("target_magnification", 0))
    stated: dict[str, Any] = {"edge_px": about.get("patch_size_level0"), "tile_px": about.get("patch_size")}
    stated |= {"model": _text(attributes[key].get("encoder"))}
    stated |= {"mpp": UM_AT_1X / magnification if magnification > 0 else None}
    return TileFeatures(repr(path.name), vectors, corners=corners, names=barcodes, **stated)


def names_of_spots(stored: np.ndarray, n: int, name: str, what: str) -> np.ndarray:
    """Barcodes as texts, one for each of the `n` vectors or pictures that a file holds.

    Raises
    ------
    ValueError
        If there are more or fewer, or some come twice.
    """
    barcodes = np.array([_text(barcode) for barcode in np.ravel(stored)], dtype=str)
    if len(barcodes) != n:
        raise ValueError(f"{name!r} holds {len(barcodes)} barcodes for {n} {what}.")
    require_unique(barcodes, f"barcodes of {name!r}", "Each names one spot.")
    return barcodes


def _check(name: str, key: str, vectors: np.ndarray, corners: np.ndarray | None, *, is_named: bool) -> None:
    if vectors.ndim != 2:
        raise ValueError(
            f"{key!r} in {name!r} has the shape {vectors.shape}; expected one vector per tile. Pass tile embeddings."
        )
    if not np.isfinite(vectors).all():
        raise ValueError(
            f"{key!r} in {name!r} is NaN or infinite in {int((~np.isfinite(vectors)).any(axis=1).sum())} tiles."
        )
    if corners is None and not is_named:
        raise ValueError(f"{name!r} holds neither 'coords' nor 'barcodes': its {len(vectors)} vectors have no place.")
    if corners is not None and corners.shape != (len(vectors), 2):
        raise ValueError(
            f"'coords' in {name!r} has the shape {corners.shape}; expected ({len(vectors)}, 2). Is this of a whole "
            "slide?"
        )


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
