"""`rg.io.read_patches`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._patches import THUMBNAIL_PX, patch_pyramid, shrunk
from ragst_sd._spot_layout import spot_pitch
from ragst_sd._validate import listing, require_positive, require_type, require_unique
from ragst_sd.image.pooling import pool_tiles
from ragst_sd.io._read_hest import donor_of, known_fields, pixel_size, read_metadata, spot_diameter
from ragst_sd.io._readable import existing, readable
from ragst_sd.io._section import SHAPES, TABLE, Origin, assemble, source_details
from ragst_sd.io._st_counts import locate, places_among, read_counts
from ragst_sd.pp._embedding_header import Spots, default_key, write_features
from ragst_sd.pp._tile_features import BARCODES, names_of_spots, read_embedding_file, require_covered

logger = logging.getLogger(__name__)

_MOST = 0.5
_PICTURES = ("img", "imgs", "images")
_CHUNK = 16


def read_patches(
    patches: str | PathLike[str],
    counts: AnnData | pd.DataFrame | str | PathLike[str],
    *,
    embeddings: Mapping[str, str | PathLike[str]] | None = None,
    metadata: str | PathLike[str] | Mapping[str, Any] | None = None,
    sample: str | None = None,
    donor: str | None = None,
    mpp: float = 0.5,
    image_mpp: float | None = None,
) -> SpatialData:
    """Read a section of a benchmark that provides counts and a picture of every spot, but no slide.

    These are the files of HEST-1k and HEST-Bench [HEST2024]_ and of STP-Bench [STPBench]_.

    Parameters
    ----------
    patches
        h5 file with pictures (`img`, square uint8 RGB), `barcode` and, if there are any, `coords`, the top left corners
        in pixels of the slide.
    counts
        h5ad file (or AnnData, or table) with counts of the same spots; matched to the pictures by barcode, never by
        position.
    embeddings
        Precomputed features, by name of the encoder: h5 files in a format of :func:`ragst_sd.io.read_embeddings`.
    metadata
        `metadata/<sample>.json` of HEST, its table of all sections (csv), or a mapping of the same fields, of which
        patient, dataset_title, organ, st_technology, license, citation, pixel_size_um_estimated and spot_diameter are
        used.
    sample
        Name of the section; that of the file of pictures if left out.
    donor
        Whom the section is from. `None` joins `dataset_title` and `patient` of the metadata, as patients are numbered
        anew in every study.
    mpp
        Microns per pixel of the pictures; HEST and STP-Bench cut them at 0.5.
    image_mpp
        Microns per pixel of the slide they were cut of, in whose pixels the coordinates are; `None` takes
        `pixel_size_um_estimated` of the metadata, else `pixel_size_um_embedded`.

    Returns
    -------
    A SpatialData without images:

    shapes["spots"]
        Circles, indexed by barcode, in the frame "global", which are pixels of the slide. Their diameter is the one
        that counts or metadata state, else half the distance between spots.
    tables["table"]
        A row for each picture whose barcode has counts, in the order of the pictures. Counts in `X` (CSR, float32);
        `region`, `spot_id`, `sample`, `donor` in `obs`; tissue, technology, license and citation in
        `uns["ragst"]["source"]`; `mpp` and `edge_px` of the pictures in `uns["ragst"]["patches"]`.
    tables["table"].obsm["patches"]
        The pictures (n, edge, edge, 3), uint8, which stay in their file (dask) until they are needed or written.
        :func:`ragst_sd.pp.embed_tiles` takes tiles from them.
    tables["table"].obsm["thumbnail"]
        The same, small: (n, 64, 64, 3). Figures and references show them, so that `obsm["patches"]` may be deleted once
        all is embedded.
    tables["table"].obsm["spatial"]
        Centres (x, y) of the counts, else top left corners of the pictures, in pixels of the slide.
    tables["table"].obsm["X_<encoder>"]
        The given features, with the header that :func:`ragst_sd.io.read_embeddings` writes.
    attrs["ragst"]["image_mpp"]["patches"]
        Microns per pixel of the slide, where they are known; without them a reference has no `x_um` and `y_um`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If the table of all sections has none of this name.
    TypeError
        If an argument is of another kind.
    ValueError
        If a file is damaged, pictures have no barcodes, no barcode has counts, counts of other spots were given, or
        features cannot be matched to the pictures.

    Notes
    -----
    HEST-1k is licensed CC BY-NC-SA 4.0, and its owners ask users to accept terms. A metadata file counts as one of
    HEST's, so its licence is the section's; a mapping states its own.

    Barcodes of Visium are the same on every slide. Counts of another section are noticed by their coordinates, if both
    files have them.

    References
    ----------
    .. [HEST2024] Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS
       Datasets and Benchmarks (2024).
    .. [STPBench] STP-Bench, https://github.com/NEXGEM/STP-Bench.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_patches(
    ...     "hest_data/patches/TENX95.h5", "hest_data/st/TENX95.h5ad", metadata="hest_data/metadata/TENX95.json"
    ... )
    >>> rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> sorted(sdata.tables["table"].obsm)
    ['X_texture', 'patches', 'spatial', 'thumbnail']
    """
    require_type(patches, (str, PathLike), "patches")
    require_type(embeddings, (Mapping, type(None)), "embeddings", "Give `{name of the encoder: path}`.")
    require_type(metadata, (str, PathLike, Mapping, type(None)), "metadata")
    require_positive(mpp, "mpp")
    require_positive(image_mpp, "image_mpp", optional=True)
    path = existing(patches, "`patches`:", "Pass the h5 file of pictures of one section.")
    sample = path.stem.removesuffix("_patches") if sample is None else str(sample)
    pictures, barcodes, corners = read_patch_file(path)
    features = {
        name: read_embedding_file(existing(given, f"`embeddings[{name!r}]`:", "Pass the h5 file of one section."))
        for name, given in (embeddings or {}).items()
    }
    is_file = isinstance(metadata, (str, PathLike))
    meta = read_metadata(metadata, sample) if is_file else known_fields(metadata or {})  # type: ignore[arg-type]
    image_mpp = pixel_size(meta, None, sample) if image_mpp is None else float(image_mpp)

    adata, rows = _matched(read_counts(counts, None), barcodes, path.name)
    pictures = pictures if len(rows) == len(barcodes) else pictures[rows]
    edge = int(pictures.shape[1])
    corners = None if corners is None else corners[rows]
    if _keys.SPATIAL in adata.obsm or corners is None:
        adata, xy = locate(adata, None)
    else:
        xy = corners
    if corners is not None:
        _check_places(xy, corners, edge * mpp / image_mpp if image_mpp else None, path.name)
    diameter = spot_diameter(adata, meta, image_mpp) or spot_pitch(xy) / 2
    donor = donor_of(meta, sample) if donor is None else donor
    origin = Origin(sample, donor, source_details(meta))
    sdata = assemble(adata, xy, None, origin, radius=diameter / 2, image_mpp=None)
    table = sdata.tables[TABLE]
    table.obsm[_keys.PATCHES], table.obsm[_keys.THUMBNAIL] = pictures, shrunk(pictures, THUMBNAIL_PX)
    table.uns[_keys.ATTRS][_keys.PATCHES] = {"mpp": float(mpp), "edge_px": edge}
    if image_mpp is not None:
        sdata.attrs[_keys.ATTRS] = {_keys.IMAGE_MPP: {_keys.PATCHES: image_mpp}}
    for name, features_file in features.items():
        what = repr(str(embeddings[name]))  # type: ignore[index]
        if features_file.names is not None:
            belongs = places_among(table.obs_names.astype(str), features_file.names, "the table", what)
            embedding = np.full((table.n_obs, features_file.vectors.shape[1]), np.nan, np.float32)
            embedding[belongs >= 0] = features_file.vectors[belongs[belongs >= 0]]
        elif corners is not None and features_file.corners is not None:
            # Corners of the same pictures are the same numbers; a pixel is left to rounding.
            embedding = pool_tiles(features_file.vectors, features_file.corners, corners, edge=2.0, context=(1,))
            require_covered(embedding, features_file.corners, corners, what)
        else:
            raise ValueError(f"{what} holds no barcodes, and {path.name!r} no 'coords': the features cannot be placed.")
        write_features(
            Spots.with_patches(sdata, TABLE, SHAPES),
            default_key(name, None),
            embedding,
            what=what,
            pyramid=patch_pyramid(table)[0],
            model=name,
            weights_hash=_keys.UNKNOWN,
            tile_px=edge,
            mpp=float(mpp),
            context=(1.0,),
            image_mpp=image_mpp,
            upsampling=1.0,
            image_key=_keys.PATCHES,
        )
    logger.info("Read section %r: %d pictures of %d px x %d genes.", sample, len(rows), edge, adata.n_vars)
    return sdata


def _matched(adata: AnnData, barcodes: np.ndarray, name: str) -> tuple[AnnData, np.ndarray]:
    """Counts of the spots that have a picture, in the order of the pictures, and which pictures these are."""
    todo = "Pass the counts of one section, one row per spot, to match pictures to them."
    require_unique(adata.obs_names, "spot names of `counts`", todo)
    place = places_among(barcodes, adata.obs_names.astype(str), repr(name), "`counts`")
    rows, lacking = np.flatnonzero(place >= 0), barcodes[place < 0]
    if len(lacking):
        says = "%d of %d pictures of %r have no counts and are left out, for example %s."
        logger.warning(says, len(lacking), len(place), name, listing(lacking[:3]))
    if len(rows) < adata.n_obs:
        logger.info("%d of %d spots of the counts have no picture in %r.", adata.n_obs - len(rows), adata.n_obs, name)
    return adata[place[rows]].copy(), rows


def _check_places(xy: np.ndarray, corners: np.ndarray, edge: float | None, name: str) -> None:
    """Refuse counts whose spots lie elsewhere than the pictures of the same barcodes: they are of another section."""
    if len(xy) < 2:
        return
    reach = spot_pitch(xy) if edge is None else edge
    offset = xy - corners
    # Centres lie half a picture from its corner, or on it: the unknown part is one and the same for all.
    expected = np.median(offset, axis=0) if edge is None else np.full(2, edge / 2)
    beside = (np.abs(offset - expected) > reach).any(axis=1)
    if beside.mean() > _MOST:
        low, high = (f"x {x:.0f}, y {y:.0f}" for x, y in (offset.min(axis=0), offset.max(axis=0)))
        raise ValueError(
            f"Barcodes of `counts` and of {name!r} are the same, as they are on every slide of one kind, but "
            f"{int(beside.sum())} of {len(xy)} spots lie elsewhere than their pictures (by {low} to {high} px of the "
            "slide). Pass the counts of the section that the pictures are of."
        )


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
        raise ValueError(
            f"{path.name!r} holds the data sets {listing(shapes)}; expected pictures in 'img'. Files of features go to "
            "`rg.io.read_patches(..., embeddings={name: path})`."
        )
    shape, dtype = shapes[key]
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
        raise ValueError(
            f"{key!r} in {path.name!r} holds {dtype} of the shape {shape}; expected one square uint8 RGB picture per "
            "spot: (spots, edge, edge, 3)."
        )
    if barcodes is None:
        raise ValueError(
            f"{path.name!r} holds no barcodes (data sets: {listing(shapes)}), so nothing tells of which spot each of "
            f"its {shape[0]} pictures is. Write the names of the spots into a data set 'barcode', in the order of "
            "the pictures; the order of the counts proves nothing."
        )
    names = names_of_spots(barcodes, shape[0], path.name, "pictures")
    if corners is not None and corners.shape != (shape[0], 2):
        raise ValueError(f"'coords' in {path.name!r} has the shape {corners.shape}; expected ({shape[0]}, 2).")
    where = (str(path.resolve()), path.stat().st_mtime_ns, key)
    chunks = da.core.normalize_chunks((_CHUNK, *shape[1:]), shape, dtype=dtype)
    pictures = da.map_blocks(_some_pictures, *where, chunks=chunks, meta=np.empty((0,) * 4, dtype))
    return pictures, names, corners
