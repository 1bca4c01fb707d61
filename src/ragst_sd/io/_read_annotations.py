"""`rg.io.read_annotations`."""

from __future__ import annotations

import gzip
import json
import logging
from os import PathLike
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from geopandas import GeoDataFrame, GeoSeries
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from ragst_sd._elements import image_pyramid, require_free, require_sdata, resolve_image
from ragst_sd._outlines import AREAS, made_valid
from ragst_sd._resolution import image_mpp_of
from ragst_sd._validate import listing, require_positive, require_type
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.tissue import tissue_mask
from ragst_sd.io._readable import existing, readable
from ragst_sd.io._section import check_inside

logger = logging.getLogger(__name__)

UNCLASSIFIED = "unclassified"
_OVERVIEW_PX = 512
_ON_GLASS, _ON_TISSUE = 0.1, 0.5


def read_annotations(
    sdata: SpatialData,
    path: str | PathLike[str],
    *,
    image_key: str | None = None,
    mpp: float | None = None,
    key_added: str = "annotations",
    overwrite: bool = False,
) -> None:
    """Read outlines from QuPath or TRIDENT as shapes.

    Parameters
    ----------
    sdata
        Object with the image that was annotated.
    path
        GeoJSON file (`.gz` too): a collection of features, a list of them, or a single one.
    image_key
        The image in `sdata.images`; may be left out if there is only one.
    mpp
        Microns per unit of the file's coordinates, where they are no pixels of the full resolution: 1 if they are
        microns. `None` takes them for pixels, as QuPath and TRIDENT write them.
    key_added
        Name of the shapes.
    overwrite
        Replace shapes of this name.

    Returns
    -------
    `None`. Added to `sdata`:

    `.shapes[key_added]`
        Polygons and multipolygons in pixels of the image and in all of its frames, with the columns `classification`
        (names of QuPath's classes, "unclassified" where there is none) and `name`. Points and lines, which have no
        area, are left out and counted in a log line; outlines that cross themselves are made valid.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If the image does not exist.
    TypeError
        If `sdata` is no SpatialData or `path` no path.
    ValueError
        If the file is damaged, no GeoJSON, or without polygons; all of them lie outside the image; they lie beside the
        tissue, but on it if their coordinates are microns; or the name is taken.

    Notes
    -----
    QuPath and TRIDENT write pixels of the full resolution, from the upper left corner of the slide [QuPath]_
    [TRIDENT]_. So the image has to be the one that was annotated, at full resolution and not cropped. QuPath leaves out
    the empty rim of some slides (mrxs) that OpenSlide reads, unless it is told not to crop.

    References
    ----------
    .. [QuPath] Bankhead et al., QuPath: open source software for digital pathology image analysis, Sci. Rep. 7 (2017).
    .. [TRIDENT] TRIDENT, https://github.com/mahmoodlab/TRIDENT.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_slide("slide.tif", mpp=0.5)
    >>> rg.io.read_annotations(sdata, "slide.geojson")
    >>> list(sdata.shapes["annotations"]["classification"])
    ['Tumor', 'Stroma']
    """
    require_sdata(sdata)
    require_type(path, (str, PathLike), "path")
    require_type(key_added, str, "key_added")
    path = existing(path, "`path`:", "Pass a GeoJSON file.")
    image_key = resolve_image(sdata, image_key)
    image_mpp = image_mpp_of(sdata, image_key)
    if mpp is not None:
        require_positive(mpp, "mpp")
        if image_mpp is None:
            raise ValueError(
                f"`mpp` was given, but the resolution of image {image_key!r} is unknown. Give it with "
                "`rg.pp.set_image_mpp` first."
            )
    todo = "Choose another `key_added`" + (", or pass `overwrite=True`." if key_added in sdata.shapes else ".")
    require_free(sdata, key_added, "shapes", todo, ours=[("shapes", key_added)] if overwrite else [])
    areas = _areas(path)
    pyramid = image_pyramid(sdata, image_key)
    if mpp is not None:
        areas = areas.set_geometry(_scaled(areas.geometry, mpp / image_mpp))  # type: ignore[operator]
    bounds, (height, width) = areas.geometry.bounds.to_numpy(), pyramid.shapes[0]
    otherwise = "give the microns per unit of the file with `mpp=`"
    check_inside(bounds[:, :2], bounds[:, 2:], (width, height), f"outlines of {path.name!r}", otherwise=otherwise)
    if mpp is None and image_mpp is not None:
        _check_unit(areas.geometry, pyramid, image_mpp, path.name)
    frames = dict(get_transformation(sdata.images[image_key], get_all=True))
    if key_added in sdata.shapes:
        del sdata.shapes[key_added]
    sdata.shapes[key_added] = ShapesModel.parse(areas, transformations=frames)
    kinds = listing(sorted(set(areas.classification)))
    logger.info("Adding `sdata.shapes[%r]`: %d outlines, of %s.", key_added, len(areas), kinds)


def _areas(path: Path) -> GeoDataFrame:
    """Valid polygons of the file, whichever way its features are packed, with the names that were given to them."""
    with readable(path, "GeoJSON, as QuPath exports it ('Export as GeoJSON')"):
        content = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        features = content.get("features", [content]) if isinstance(content, dict) else content
        drawn = [feature for feature in features if feature["geometry"]]
        outlines = gpd.GeoSeries([shapely.geometry.shape(feature["geometry"]) for feature in drawn])
    properties = [feature.get("properties") or {} for feature in drawn]
    columns = {
        "classification": [_class_name(each.get("classification")) for each in properties],
        "name": [str(each.get("name") or "") for each in properties],
    }
    # `buffer` of what is made valid would hide that it never was an area.
    is_area = outlines.geom_type.isin(AREAS).to_numpy() & ~outlines.is_empty.to_numpy()
    left_out = sorted(set(outlines.geom_type[~is_area]))
    if left_out:
        logger.info(
            "%d features of %r have no area and are left out: %s", (~is_area).sum(), path.name, listing(left_out)
        )
    if not is_area.any():
        raise ValueError(
            f"{path.name!r} holds no polygons: {len(features)} features, of {listing(left_out)}. Draw areas, or export "
            "annotations and not points."
        )
    flat = outlines[is_area].force_2d()
    frame = gpd.GeoDataFrame(columns)[is_area].set_geometry(made_valid(flat, repr(path.name)))
    return frame[~frame.geometry.is_empty].reset_index(drop=True)


def _class_name(classification: Any) -> str:
    """The name of a class, which QuPath writes alone or as a list of what it is derived from."""
    if isinstance(classification, dict):
        classification = classification.get("name") or ": ".join(map(str, classification.get("names") or ()))
    return str(classification or UNCLASSIFIED)


def _scaled(outlines: GeoSeries, factor: float) -> GeoSeries:
    return outlines.scale(factor, factor, origin=(0, 0))


def _check_unit(outlines: GeoSeries, pyramid: Pyramid, image_mpp: float, name: str) -> None:
    """Refuse outlines that lie on glass as pixels and on tissue as microns."""
    mask, no_glass = tissue_mask(pyramid.overview(_OVERVIEW_PX))
    if no_glass:
        return
    as_pixels, as_microns = (_tissue_share(_scaled(outlines, by), mask, pyramid) for by in (1.0, 1 / image_mpp))
    if as_pixels < _ON_GLASS and as_microns > _ON_TISSUE:
        raise ValueError(
            f"{name!r} looks as if it were in microns: taken as pixels, {as_pixels:.0%} of what it outlines is tissue; "
            f"as microns (of {image_mpp:.4g} per pixel), {as_microns:.0%}. Pass `mpp=1` if it is. Outlines in another "
            "unit need `mpp=` as well."
        )
    logger.info("%.0f%% of what %r outlines is tissue.", 100 * as_pixels, name)


def _tissue_share(outlines: GeoSeries, mask: np.ndarray, pyramid: Pyramid) -> float:
    """Share of tissue among the pixels of an overview that lie in outlines; 0 if they lie beside the image."""
    (height, width), (rows, columns) = pyramid.shapes[0], mask.shape
    y, x = np.mgrid[:rows, :columns] + 0.5
    union = shapely.union_all(outlines.to_numpy())
    shapely.prepare(union)
    inside = shapely.contains_xy(union, x * width / columns, y * height / rows)
    return float(mask[inside].mean()) if inside.any() else 0.0
