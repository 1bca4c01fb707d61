"""One section as a SpatialData: image `he`, circles `spots`, table `table`, all in the frame "global"."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from xarray import DataArray, DataTree

from ragst_sd import _keys
from ragst_sd._outlines import extent_of
from ragst_sd._resolution import keep_image_mpp
from ragst_sd._validate import require_known, require_positive, require_type
from ragst_sd.image.colours import thinned
from ragst_sd.image.tissue import tissue_mask

logger = logging.getLogger(__name__)

IMAGE, SHAPES, TABLE = "he", "spots", "table"
SOURCE_FIELDS = (_keys.TISSUE, _keys.TECHNOLOGY, "license", "citation")

_OVERVIEW_PX, _ON_TISSUE = 1024, 0.5
# Share of the spots by which another reading of the coordinates must fit the tissue better. Spots of a region of
# interest fit other tissue as well by chance: the box around them must have most of the area of the tissue.
_FITS_BETTER, _MOST = 0.1, 0.7
_REGION, _INSTANCE = "region", "spot_id"


class Origin(NamedTuple):
    """Where a section is from."""

    sample: str
    donor: str | None
    """Nothing is written if it is `None`."""
    details: Mapping[str, str]
    """Tissue, technology, license and citation, kept in `uns["ragst"]["source"]`."""


Image = DataArray | DataTree | None


def assemble(
    adata: AnnData, xy: np.ndarray, image: Image, origin: Origin, *, radius: float, image_mpp: float | None
) -> SpatialData:
    """Put counts, centres and image together.

    Parameters
    ----------
    adata
        Counts, an AnnData of one's own: columns are added to `obs`, and what describes another object is taken out of
        `uns`.
    xy
        (n, 2) centres (x, y) in pixels of the image.
    image
        SpatialData image in the frame "global"; `None` if there is none.
    origin
        Names and source.
    radius
        Of the spots, in pixels.
    image_mpp
        Microns per pixel, if known.
    """
    ids = adata.obs_names.astype(str).to_numpy()
    columns = {_REGION: SHAPES, _INSTANCE: ids, _keys.SAMPLE: origin.sample}
    if origin.donor is not None:
        columns[_keys.DONOR] = str(origin.donor)
    for name, values in columns.items():
        if name in adata.obs and not (adata.obs[name].astype(str) == values).all():
            renamed = f"{name}_original"
            logger.info("Column %r of the counts is kept as %r: a column of this name is written.", name, renamed)
            adata.obs[renamed] = adata.obs.pop(name)
        adata.obs[name] = values
        if name != _INSTANCE:
            adata.obs[name] = adata.obs[name].astype("category")
    adata.obsm[_keys.SPATIAL] = xy
    # These describe the object the counts came from, not this one.
    for name in (_keys.SPATIAL, _keys.ATTRS, TableModel.ATTRS_KEY):
        adata.uns.pop(name, None)
    adata.uns[_keys.ATTRS] = {_keys.SOURCE: dict(origin.details)}
    table = TableModel.parse(adata, region=SHAPES, region_key=_REGION, instance_key=_INSTANCE)
    circles = ShapesModel.parse(xy, geometry=0, radius=radius, index=ids)
    images = {} if image is None else {IMAGE: image}
    sdata = SpatialData(images=images, shapes={SHAPES: circles}, tables={TABLE: table})
    if image is not None and image_mpp is not None:
        keep_image_mpp(sdata, IMAGE, image_mpp)
    return sdata


def check_inside(
    low: np.ndarray,
    high: np.ndarray,
    size: tuple[int, int],
    what: str = "spots",
    *,
    otherwise: str = "multiply the coordinates by the ratio of the sizes",
) -> None:
    """Raise a `ValueError` if all spots or outlines lie outside the picture, and warn if some do.

    Both name the likely cause.

    Parameters
    ----------
    low, high
        (n, 2) upper left and lower right corners (x, y) of outlines, in pixels; of points they are the same.
    size
        Width and height of the picture.
    what
        As the messages call them.
    otherwise
        What can be done where the picture that the pixels are of is not at hand.
    """
    n_outside = int(((high < 0) | (low >= size)).any(axis=1).sum())
    if n_outside == 0:
        return
    reach = high.max(axis=0)
    if ((low[:, ::-1] >= 0) & (high[:, ::-1] < size)).all():
        todo = "x and y look swapped: with their columns exchanged all lie inside."
    elif (reach > size).any():
        factor = float((reach / size).max())
        todo = (
            f"They look like pixels of a picture at least {factor:.1f} times as large (another resolution, or uncut): "
            f"read that picture, or {otherwise}."
        )
    else:
        todo = "Check their origin and unit: pixels count from the top left corner of the picture."
    extent = extent_of(np.concatenate([low, high]))
    says = f"{what} lie outside the picture of {size[0]} x {size[1]} px: they cover {extent}. {todo}"
    if n_outside == len(low):
        raise ValueError(f"All {len(low)} {says}")
    logger.warning("%d of %d %s", n_outside, len(low), says)


def warn_beside_tissue(xy: np.ndarray, pixels: np.ndarray) -> None:
    """Warn if most spots lie beside the tissue of an RGB picture (3, y, x), or fit it better swapped or mirrored."""
    mask, _ = tissue_mask(thinned(pixels, _OVERVIEW_PX))
    size = np.array(pixels.shape[:0:-1])

    def on_tissue(xy: np.ndarray) -> np.ndarray:
        inside = xy[((xy >= 0) & (xy < size)).all(axis=1)]
        x, y = (inside * np.array(mask.shape[::-1]) / size).astype(int).T
        return mask[y, x]

    here, (x, y) = on_tissue(xy), xy.T
    otherwise = {
        "with x and y swapped": xy[:, ::-1],
        "with x counted from the right": np.column_stack([size[0] - x, y]),
        "with y counted from the bottom": np.column_stack([x, size[1] - y]),
    }
    shares = {how: float(on_tissue(places).sum() / len(xy)) for how, places in otherwise.items()}
    best, share = max(shares, key=lambda how: shares[how]), float(here.mean())
    whole = np.ptp(xy, axis=0).prod() > _MOST * mask.mean() * size.prod()
    if mask.any() and whole and shares[best] > here.sum() / len(xy) + _FITS_BETTER:
        logger.warning(
            "%.0f %% of the spots lie on what looks like tissue in the picture, and %.0f %% %s: look at both before "
            "you go on.",
            100 * share,
            100 * shares[best],
            best,
        )
    elif mask.any() and share < _ON_TISSUE:
        logger.warning(
            "Only %.0f %% of the spots lie on what looks like tissue in the picture. Are x and y swapped, the "
            "coordinates of another picture or unit, or are there spots beside the tissue?",
            100 * share,
        )


def stored_diameter(library: Mapping[str, Any]) -> float | None:
    """Diameter of spots in pixels, where an entry of `uns["spatial"]` states it."""
    stored = library.get("scalefactors", {}).get("spot_diameter_fullres")
    require_positive(stored, "spot_diameter_fullres", optional=True)
    return None if stored is None else float(stored)


def source_details(meta: Mapping[str, Any], source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tissue, technology, licence and citation: as `source` gives them, else as the metadata state them.

    Raises
    ------
    ValueError
        If `source` has other fields.
    """
    given = {} if source is None else source
    require_type(given, Mapping, "source")
    require_known(given, SOURCE_FIELDS, "source", " has unknown fields")
    stated = {
        _keys.TISSUE: meta.get("organ", meta.get("tissue")),
        _keys.TECHNOLOGY: meta.get("st_technology", meta.get("technology")),
        "license": meta.get("licence", meta.get("license")),
        "citation": meta.get("source", meta.get("citation")),
    }
    return {name: str(given.get(name) or stated[name] or _keys.UNKNOWN) for name in SOURCE_FIELDS}
