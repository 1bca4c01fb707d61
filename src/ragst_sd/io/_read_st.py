"""Spots with pixel coordinates and a plain picture of the section, as one SpatialData."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._spot_layout import array_pitch, spot_pitch
from ragst_sd._validate import require_positive
from ragst_sd.io._section import (
    Origin,
    assemble,
    check_inside,
    source_details,
    stored_diameter,
    warn_beside_tissue,
)
from ragst_sd.io._st_counts import libraries_of, locate, read_counts, rows_of_section
from ragst_sd.io._st_image import image_element, read_rgb

logger = logging.getLogger(__name__)


def read_st(
    counts: AnnData | pd.DataFrame | str | PathLike[str],
    image: str | PathLike[str] | np.ndarray,
    *,
    coordinates: np.ndarray | pd.DataFrame | str | PathLike[str] | None = None,
    layer: str | None = None,
    sample: str | None = None,
    donor: str | None = None,
    image_mpp: float | None = None,
    value_max: float | None = None,
    um_between_centers: float | None = None,
    spot_diameter_px: float | None = None,
    source: Mapping[str, str] | None = None,
) -> SpatialData:
    """Read spots with pixel coordinates and a plain image of their section.

    Use it for a table of counts with a jpg, png or tif: the original Spatial Transcriptomics arrays, or deposits of
    processed data. Read outputs of the 10x pipelines with `spatialdata-io`.

    Parameters
    ----------
    counts
        Counts, spots x genes: an AnnData, the path of an h5ad file, or a table with spot names in its first column (a
        DataFrame, or the path of a tsv or csv file, gzipped or not).
    image
        Path of the picture, or its pixels with axes y, x, c. It is RGB; transparent pixels are laid onto white.
    coordinates
        Spot centres (x, y) in pixels of the picture. `None` takes `obsm["spatial"]` of the counts; an (n, 2) array
        follows the rows of the counts; a table, or its path, is joined by spot name and holds the columns `pixel_x`
        and `pixel_y` (or `pxl_col_in_fullres` and `pxl_row_in_fullres`, or `x` and `y`). Columns `x` and `y` next to
        pixel columns are array positions: these rows belong to spots named `<x>x<y>`. Rows whose column `selected`
        or `in_tissue` is 0, and spots without a row, are dropped with a logged count.
    layer
        Layer of an AnnData that holds the counts; `None` takes `X`.
    sample
        Name of the section; `None` takes the one that the counts name in `obs["sample"]` or `uns["meta"]`, else the
        file's name. Where the counts hold several (libraries of `uns["spatial"]`, or values of `obs["library_id"]` or
        `obs["sample"]`), the one to read.
    donor
        Whom the section is from. `None` keeps a column `donor` of the counts or takes the patient named in the file;
        if there is none, no donor is written.
    image_mpp
        Microns per pixel of the picture.
    value_max
        Pixel value of full brightness; `None` tells it from type and values.
    um_between_centers
        Microns between the centres of neighbouring spots, to derive `image_mpp` from the array: 200 for Spatial
        Transcriptomics with 1,000 spots, 100 for Visium.
    spot_diameter_px
        Diameter of a spot in pixels. `None` takes the one in the file, else half the distance between spots.
    source
        Where the data are from: any of `tissue`, `technology`, `license`, `citation`.

    Returns
    -------
    A SpatialData, all in the frame "global" (pixels of the picture):

    images["he"]
        The picture, uint8, a pyramid if it is large.
    shapes["spots"]
        Circles, indexed by spot name.
    tables["table"]
        Counts in `X` (CSR, float32); the columns of the counts and `region`, `spot_id`, `sample`, `donor` in `obs`;
        centres in `obsm["spatial"]`; tissue, technology, license and citation in `uns["ragst"]["source"]`.
    attrs["ragst"]["image_mpp"]["he"]
        Microns per pixel, where they are known.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If counts are not counts or of several sections, the picture is not RGB or has a flag to be shown rotated or
        mirrored, spots have no coordinates or lie outside it, names do not match or are double, or a source has unknown
        fields.

    Notes
    -----
    In an h5ad file `uns["meta"]` may name `um_per_px`, `patient`, `section`, `tissue`, `technology`, `licence` and
    `source`, and `uns["spatial"][<section>]["scalefactors"]["spot_diameter_fullres"]` the diameter of spots in pixels.
    They hold where the arguments are not given. The picture is read into memory.

    Examples
    --------
    From files, as the original Spatial Transcriptomics data are deposited (`ST` is a folder with them):

    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_st(
    ...     "ST/counts.tsv.gz", "ST/he.jpg", coordinates="ST/selection.tsv", donor="B", um_between_centers=200
    ... )
    >>> round(sdata.attrs["ragst"]["image_mpp"]["he"], 1)
    2.0

    Or from what is in memory:

    >>> import numpy as np, pandas as pd
    >>> counts = pd.DataFrame([[3, 0], [1, 5]], index=["10x10", "10x11"], columns=["EPCAM", "COL1A1"])
    >>> picture, centres = np.full((200, 300, 3), 230, dtype="uint8"), np.array([[80, 100], [220, 100]])
    >>> sdata = rg.io.read_st(counts, picture, coordinates=centres, donor="B", image_mpp=1.4)
    >>> sdata.tables["table"].shape
    (2, 2)
    """
    lengths = {"image_mpp": image_mpp, "um_between_centers": um_between_centers}
    lengths |= {"spot_diameter_px": spot_diameter_px, "value_max": value_max}
    for name, value in lengths.items():
        require_positive(value, name, optional=True)
    if image_mpp is not None and um_between_centers is not None:
        raise ValueError("Give `image_mpp` or `um_between_centers`, not both: each one determines the other.")
    adata = read_counts(counts, layer)
    meta = adata.uns.get("meta")
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    rows, library = rows_of_section(adata, sample)
    adata, xy = locate(adata, coordinates, rows)
    pixels = read_rgb(image, value_max)
    height, width = pixels.shape[1:]
    check_inside(xy, xy, (width, height))
    warn_beside_tissue(xy, pixels)

    if sample is None:
        names = adata.obs[_keys.SAMPLE].astype(str).unique() if _keys.SAMPLE in adata.obs else []
        stated = names[0] if len(names) == 1 else meta.get("section")
        sample = str(stated or _stem(counts) or _stem(image) or _keys.SAMPLE)
    if len(np.unique(xy, axis=0)) < len(xy):
        logger.warning("Spots of section %r lie at the same place as others: are they of several sections?", sample)
    pitch = None if len(xy) < 2 else spot_pitch(xy)
    mpp = _find_mpp(image_mpp, um_between_centers, xy, meta)
    if spot_diameter_px is None:
        spot_diameter_px = _find_diameter(adata, library, pitch)
    if donor is None and _keys.DONOR not in adata.obs:
        donor = meta.get("patient")
        if donor is None:
            logger.info("No donor is known for section %r. Pass `donor=`: a reference needs it.", sample)
    origin = Origin(sample, donor, source_details(meta, source))
    sdata = assemble(adata, xy, image_element(pixels), origin, radius=spot_diameter_px / 2, image_mpp=mpp)
    at = "" if mpp is None else f" at {mpp:.4g} um per px"
    logger.info("Read section %r: %d spots x %d genes, picture %d x %d px%s.", sample, *adata.shape, width, height, at)
    return sdata


def _find_mpp(
    image_mpp: float | None, um_between_centers: float | None, xy: np.ndarray, meta: dict[str, Any]
) -> float | None:
    """Microns per pixel of the picture: given, from the pitch of the spots, or as the metadata state them."""
    if image_mpp is not None:
        return float(image_mpp)
    if um_between_centers is not None:
        return um_between_centers / array_pitch(xy, "Spots")
    if meta.get("um_per_px") is not None:
        require_positive(meta["um_per_px"], "uns['meta']['um_per_px']")
        return float(meta["um_per_px"])
    logger.info("Microns per pixel are unknown: pass `image_mpp` or `um_between_centers`, or `rg.pp.set_image_mpp`.")
    return None


def _find_diameter(adata: AnnData, library: str | None, pitch: float | None) -> float:
    """Diameter of spots in pixels: as the counts state it, else half the pitch."""
    stored = stored_diameter(libraries_of(adata).get(library or "", {}))
    if stored is not None:
        return stored
    if not pitch:
        raise ValueError("The diameter of spots cannot be derived from a single spot. Pass `spot_diameter_px=`.")
    logger.info("Spots are drawn %.4g px wide, half the distance between them. Pass `spot_diameter_px=`.", pitch / 2)
    return pitch / 2


def _stem(path: object) -> str | None:
    return Path(path).name.split(".")[0] if isinstance(path, (str, PathLike)) else None
