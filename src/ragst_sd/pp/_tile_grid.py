"""`rg.pp.tile_grid`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import shapely
from skimage.transform import integral_image, integrate
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import empty_table, regions_of, single_region
from ragst_sd._elements import (
    image_pyramid,
    keep_value_max,
    require_free,
    require_sdata,
    resolve_image,
    squares_on_image,
)
from ragst_sd._outlines import areas_in_frame_of
from ragst_sd._resolution import image_mpp_of, require_resolution
from ragst_sd._several import over_sections
from ragst_sd._validate import listing, require_positive, require_type
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.tissue import tissue_mask

logger = logging.getLogger(__name__)

_OVERVIEW_PX = 2048
_MIN_TISSUE = 0.5


@over_sections()
def tile_grid(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image_key: str | None = None,
    tile_px: int = 224,
    mpp: float | None = 0.5,
    image_mpp: float | None = None,
    value_max: float | None = None,
    stride_px: int | None = None,
    tissue: bool | str = True,
    key_added: str = "tiles",
    table_key: str = "tiles_table",
) -> None:
    """Make a grid of square tiles over the tissue of an image without spots.

    Parameters
    ----------
    sdata
        Object with the image, or a list or a mapping of them.
    image_key
        Image in `sdata.images`; may be left out if there is only one.
    tile_px, mpp
        A tile covers `tile_px * mpp` microns; `mpp=None` takes the image's own pixels.
    image_mpp
        Microns per pixel of the image; else the value kept by :func:`ragst_sd.pp.set_image_mpp` is used.
    value_max
        Pixel value of full brightness. By default, the stored value, or inferred from type and values.
    stride_px
        Distance between tiles in tile pixels; `tile_px` (no overlap) if left out.
    tissue
        Keep only tiles of which at least half is tissue: pixels with more colour than Otsu's threshold, taken on an
        overview of the image [Otsu1979]_. Black and grey are no tissue; a field without glass is tissue all over;
        of dark and pale tissue both are found. The name of shapes, such as :func:`ragst_sd.io.read_annotations` adds,
        keeps tiles of which at least half lies in them.
    key_added
        Name of the shapes.
    table_key
        Name of the table.

    Returns
    -------
    `None`. Added to `sdata`:

    `.shapes[key_added]`
        One square per tile, in the image's coordinate systems.
    `.tables[table_key]`
        A table without genes that annotates them, for :func:`ragst_sd.pp.embed_tiles`: `.obs` region, instance_id, row,
        column, tissue_fraction (if `tissue`); `.obsm["spatial"]` centres in image pixels.
    `.attrs["ragst"]["value_max"][image_key]`
        `value_max`, if it was given, for all that looks at the image later.

    Raises
    ------
    KeyError
        If the image, or the shapes named by `tissue`, do not exist.
    TypeError
        If `sdata` is no SpatialData, or `tissue` neither bool nor name.
    ValueError
        If `mpp` is given but the image's resolution is unknown, no tile fits or none holds tissue, or a name is taken.

    References
    ----------
    .. [Otsu1979] Otsu, A threshold selection method from gray-level histograms, IEEE Trans. Syst. Man Cybern. 9 (1979).

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.datasets.synthetic(n_donors=1, image_px=500)["donor1"]
    >>> rg.pp.tile_grid(sdata, image_key="he", tile_px=224, mpp=0.5)
    >>> len(sdata.shapes["tiles"]) == sdata.tables["tiles_table"].n_obs
    True
    """
    sdata = require_sdata(sdata)
    require_positive(tile_px, "tile_px", whole=True)
    require_type(tissue, (bool, str), "tissue", "Give True, False or the name of shapes.")
    stride_px = tile_px if stride_px is None else stride_px
    require_positive(stride_px, "stride_px", whole=True)
    image_key = resolve_image(sdata, image_key)
    image_mpp = image_mpp_of(sdata, image_key, image_mpp)
    require_resolution(mpp, image_mpp, image_key)
    # Width of a pixel of the tile, in pixels of the image.
    width_px = 1.0 if mpp is None or image_mpp is None else mpp / image_mpp
    earlier = set()
    if table_key in sdata.tables and sdata.tables[table_key].uns.get(_keys.ATTRS, {}).get(_keys.TILE_GRID):
        # What an earlier call has made is replaced.
        earlier = {("tables", table_key), ("shapes", single_region(sdata.tables[table_key]))}
    require_free(sdata, key_added, "shapes", ours=earlier)
    require_free(sdata, table_key, "tables", ours=earlier)
    pyramid = image_pyramid(sdata, image_key, value_max)
    height, width = pyramid.shapes[0]
    edge, stride = tile_px * width_px, stride_px * width_px
    xs, ys = (np.arange(edge / 2, size - edge / 2 + 1e-6, stride) for size in (width, height))
    if not len(xs) or not len(ys):
        raise ValueError(
            f"No tile fits: a tile is {edge:.0f} pixels wide, image {image_key!r} is {width} x {height}. "
            "Ask for smaller `tile_px` or `mpp`."
        )
    row, column = np.indices((len(ys), len(xs))).reshape(2, -1)
    centers = np.column_stack([xs[column], ys[row]])
    places = pd.DataFrame({"row": row, "column": column})
    if tissue:
        if isinstance(tissue, str):
            fraction = _annotated_fraction(sdata, tissue, image_key, centers, edge)
            says = (
                f"None of {len(fraction)} tiles of {edge:.0f} pixels lies in {tissue!r} by half (the fullest by "
                f"{fraction.max():.0%}). Check that the annotation is of image {image_key!r}, or ask for smaller "
                "`tile_px` or `mpp`."
            )
        else:
            fraction = tissue_fraction(pyramid, centers, edge, image_key)
            says = (
                f"No tissue found in {len(fraction)} tiles of image {image_key!r} (the fullest holds "
                f"{fraction.max():.0%}). Check that it is H&E on a bright background, or pass `tissue=False`."
            )
        keep = fraction >= _MIN_TISSUE
        if not keep.any():
            raise ValueError(says)
        centers, places = centers[keep], places.assign(tissue_fraction=fraction)[keep]
    _check_dependents(sdata, key_added, table_key, centers)
    sdata.shapes[key_added] = squares_on_image(sdata, image_key, centers - edge / 2, edge)
    table = empty_table(sdata.shapes[key_added].index, key_added)
    for name in places:
        table.obs[name] = places[name].to_numpy()
    table.obsm[_keys.SPATIAL] = centers
    table.uns[_keys.ATTRS] = {_keys.TILE_GRID: True}
    sdata.tables[table_key] = table
    keep_value_max(sdata, image_key, value_max)
    logger.info("Adding `sdata.shapes[%r]` and `sdata.tables[%r]`: %d tiles.", key_added, table_key, len(centers))


def tissue_fraction(pyramid: Pyramid, centers: np.ndarray, edge: float, image_key: str) -> np.ndarray:
    """Share of tissue in squares of `edge` level-0 pixels around centres."""
    mask, no_glass = tissue_mask(pyramid.overview(_OVERVIEW_PX))
    if no_glass:
        logger.info("Image %r shows no glass: all of it that has colour is taken for tissue.", image_key)
    # Rows and columns of the overview, of which the last is a part of the square.
    size, middle = np.array(mask.shape), centers[:, ::-1]
    scale = size / pyramid.shapes[0]
    first = np.clip(np.rint((middle - edge / 2) * scale).astype(int), 0, size - 1)
    last = np.clip(np.rint((middle + edge / 2) * scale).astype(int), first + 1, size) - 1
    return integrate(integral_image(mask), first, last) / (last - first + 1).prod(axis=1)


def _annotated_fraction(
    sdata: SpatialData, annotation_key: str, image_key: str, centers: np.ndarray, edge: float
) -> np.ndarray:
    """Share of squares of `edge` level-0 pixels around centres that lies in the polygons of an annotation."""
    union = shapely.union_all(areas_in_frame_of(sdata, annotation_key, image_key, None).to_numpy())
    shapely.prepare(union)
    (x, y), half = centers.T, edge / 2
    squares = shapely.box(x - half, y - half, x + half, y + half)
    fraction = shapely.covers(union, squares).astype(float)
    # Few squares lie on the rim, and only of these a part has to be cut out.
    rim = (fraction == 0) & shapely.intersects(union, squares)
    fraction[rim] = shapely.area(shapely.intersection(squares[rim], union)) / edge**2
    return fraction


def _check_dependents(sdata: SpatialData, key_added: str, table_key: str, centers: np.ndarray) -> None:
    """Refuse to move tiles from under tables that annotate them."""
    if table_key not in sdata.tables:
        return
    old = np.asarray(sdata.tables[table_key].obsm[_keys.SPATIAL])
    dependents = [name for name, table in sdata.tables.items() if name != table_key and key_added in regions_of(table)]
    if dependents and not np.array_equal(old, centers):
        raise ValueError(
            f"Tables {listing(dependents)} annotate the {len(old)} tiles of {key_added!r}; with {len(centers)} other "
            "tiles they would point to wrong places. Delete them (`del sdata.tables[...]`), or choose another "
            "`key_added` and `table_key`."
        )
