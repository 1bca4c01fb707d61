"""Spots that get an embedding, and its header: what made it, from which pixels, and whether it can be reused."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData, sanitize_name

from ragst_sd import _keys
from ragst_sd._annotation import empty_table, rows_in_order
from ragst_sd._elements import centers_in_pixels
from ragst_sd._patches import frame_of
from ragst_sd._query import statistics
from ragst_sd._spot_layout import warn_of_other_order
from ragst_sd._validate import listing
from ragst_sd.image.colours import Colours
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.encoder import Encoder
from ragst_sd.reference.schema import same_value

logger = logging.getLogger(__name__)

_STATISTICS = {"section_mean", "section_std", "n_spots", "n_outside"}
_HASH_ROWS = 4096


def default_key(name: str | None, model: object) -> str:
    """`X_<model>`, with characters that cannot be a key replaced."""
    if name is None:
        name = getattr(model, "__name__", type(model).__name__)
    short = name.split("/")[-1].removeprefix("timm:")
    return f"X_{sanitize_name(short.replace('<', '').replace('>', '') or 'custom')}"


class Spots(NamedTuple):
    """Spots that get an embedding, with the table and the shapes that they are rows of."""

    table_key: str
    table: AnnData
    shapes_key: str
    xy: np.ndarray
    """(n, 2) centres in pixels of the image; without an image, in units of the shapes."""
    affine: np.ndarray
    """3 x 3 affine from units of the shapes to pixels of the image."""
    frame: str
    """Coordinate system that shapes and image share."""
    shapes: GeoDataFrame | None = None
    """Shapes that are not in the object yet: the tiles of a file, on a slide without spots."""

    @classmethod
    def on_image(
        cls, sdata: SpatialData, table_key: str, shapes_key: str, image_key: str, coordinate_system: str | None
    ) -> Spots:
        """Spots on an image, in the order of their table, or with an empty table where there is none yet."""
        centers = centers_in_pixels(
            sdata, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system
        )
        table = sdata.tables[table_key] if table_key in sdata.tables else empty_table(centers.index, shapes_key)
        xy = centers.xy[rows_in_order(table, table_key, shapes_key, centers.index)]
        warn_of_other_order(table, xy, f"Table {table_key!r}")
        return cls(table_key, table, shapes_key, xy, centers.affine, centers.coordinate_system)

    @classmethod
    def with_patches(cls, sdata: SpatialData, table_key: str, shapes_key: str) -> Spots:
        """Spots whose pictures the table holds; without a slide they lie in their own frame."""
        table = sdata.tables[table_key]
        xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=float)
        return cls(table_key, table, shapes_key, xy, np.eye(3), frame_of(sdata, shapes_key))

    def add_embedding(self, key_added: str, embedding: np.ndarray, header: dict[str, Any], inside: np.ndarray) -> None:
        """Write an embedding into the table, with header, statistics of spots `inside`, and centres if it has none."""
        header |= statistics(embedding, inside)
        self.table.obsm[key_added] = embedding
        if _keys.SPATIAL not in self.table.obsm:
            self.table.obsm[_keys.SPATIAL] = self.xy
        attrs = dict(self.table.uns.get(_keys.ATTRS, {}))
        attrs[_keys.EMBEDDINGS] = {**attrs.get(_keys.EMBEDDINGS, {}), key_added: header}
        self.table.uns[_keys.ATTRS] = attrs

    def add_to(self, sdata: SpatialData, key_added: str) -> None:
        """Add the table with the embedding to its object, and the shapes, unless they are there."""
        if self.shapes is not None:
            sdata.shapes[self.shapes_key] = self.shapes
        if self.table_key not in sdata.tables:
            sdata.tables[self.table_key] = self.table
            logger.info("Adding `sdata.tables[%r]`, annotating %r.", self.table_key, self.shapes_key)
        shape = self.table.obsm[key_added].shape
        logger.info("Adding `sdata.tables[%r].obsm[%r]` %s.", self.table_key, key_added, shape)


def embedding_header(
    spots: Spots,
    pyramid: Pyramid | None,
    *,
    encoder: Encoder,
    mpp: float | None,
    image_mpp: float | None,
    context: Sequence[float],
    **about: Any,
) -> dict[str, Any]:
    """The header of an embedding; lists become arrays and unknown numbers NaN, so that zarr keeps it unchanged.

    Hashes stand for the image, its transformation and the centres; without an image, those of the image are empty.
    """
    pixels = "" if pyramid is None else image_hash(pyramid)

    def numbers(values: Sequence[float] | None) -> np.ndarray:
        return np.asarray([] if values is None else values, dtype=float)

    return {
        "schema_version": _keys.SCHEMA_VERSION,
        "encoder": encoder.name or "",
        "weights_hash": encoder.weights_hash,
        "mean": numbers(encoder.mean),
        "std": numbers(encoder.std),
        "input_px": encoder.input_px or 0,
        "precision": encoder.precision,
        "mpp": np.nan if mpp is None else float(mpp),
        "image_mpp": np.nan if image_mpp is None else float(image_mpp),
        "context": numbers(context),
        "image_fingerprint": "" if pyramid is None else image_fingerprint(pyramid, spots.affine, pixels),
        "image_hash": pixels,
        "shapes_hash": shapes_hash(spots.xy),
        "shapes_key": spots.shapes_key,
        "coordinate_system": spots.frame,
        **about,
    }


def write_features(
    spots: Spots, key_added: str, embedding: np.ndarray, *, what: str, model: str, weights_hash: str, **about: Any
) -> None:
    """Write features as an embedding of spots, NaN where a spot has none, with a header."""
    lost = np.asarray(np.isnan(embedding).any(axis=1))
    if lost.any():
        of, some = f"{lost.sum()} of {len(lost)}", listing(spots.table.obs_names[lost][:5])
        says = "%s spots of table %r have no tile in %s, for example %s: NaN, and no prediction there."
        logger.warning(says, of, spots.table_key, what, some)
    # It ran outside of this package: no more is known of it.
    unknown: Any = {"mean": (), "std": (), "input_px": None, "precision": _keys.UNKNOWN}
    encoder: Any = SimpleNamespace(name=model, weights_hash=weights_hash, **unknown)
    header = embedding_header(spots, encoder=encoder, origin=what, **about)
    spots.add_embedding(key_added, embedding, header, inside=~lost)


def same_header(stored: Mapping[str, Any] | None, header: Mapping[str, Any]) -> bool:
    """Whether a stored embedding was made in exactly the same way from the same pixels."""
    if stored is None:
        return False
    keys = set(stored) - _STATISTICS
    return keys == set(header) - _STATISTICS and all(same_value(stored[key], header[key]) for key in keys)


def image_fingerprint(pyramid: Pyramid, affine: np.ndarray, pixels: str) -> str:
    """Hash of the image's shape, its transformation, and `pixels`, the hash of its coarsest level."""
    digest = hashlib.sha256(repr([tuple(level.shape) for level in pyramid.levels]).encode())
    digest.update(np.round(affine, 9).tobytes())
    digest.update(pixels.encode())
    return digest.hexdigest()


def image_hash(pyramid: Pyramid) -> str:
    """Hash of the pixels of the coarsest level, read in strips of rows whose height does not depend on the chunks."""
    coarsest = pyramid.levels[-1]
    digest = hashlib.sha256(repr((tuple(coarsest.shape), str(coarsest.dtype))).encode())
    if pyramid.colours != Colours():
        # Other colours of the same numbers are another picture.
        digest.update(repr(pyramid.colours).encode())
    for start in range(0, coarsest.shape[1], _HASH_ROWS):
        digest.update(np.ascontiguousarray(coarsest[:, start : start + _HASH_ROWS, :]).data)
    return digest.hexdigest()


def shapes_hash(xy: np.ndarray) -> str:
    """Hash of the centres, in the order of the table's rows, to a thousandth of a pixel."""
    return hashlib.sha256(np.round(xy, 3).astype(np.float64).tobytes()).hexdigest()
