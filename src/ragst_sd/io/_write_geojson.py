"""`rg.io.write_geojson`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import rows_in_order, single_region
from ragst_sd._elements import centers_in_pixels, element_centers, require_sdata, resolve_image, resolve_shapes
from ragst_sd._replacing import replace_text, require_new
from ragst_sd._results import predicted
from ragst_sd._spot_layout import spot_pitch
from ragst_sd._validate import require_type

logger = logging.getLogger(__name__)

_DECIMALS = 2


def write_geojson(
    sdata: SpatialData,
    path: str | os.PathLike[str],
    *,
    genes: str | Sequence[str],
    prediction_key: str = "predicted",
    overwrite: bool = False,
) -> None:
    """Write predictions as GeoJSON that QuPath opens on the slide.

    Parameters
    ----------
    sdata
        Object with a prediction, its shapes and the image.
    path
        File to write.
    genes
        A gene, or several. QuPath keeps all values in memory: choose some.
    prediction_key
        Table written by :func:`ragst_sd.tl.predict`.
    overwrite
        Replace a file that is there.

    Returns
    -------
    `None`. On disk, a collection of features, one for each spot that has a prediction. Its outline lies in pixels of
    the image at full resolution: circles become polygons, points circles of half the distance between them. It is a
    detection, named after the spot, whose `measurements` are the predicted values of the genes, in the unit of the
    prediction, and `out_of_reference` (1 or 0).

    Raises
    ------
    FileExistsError
        If the file is there and `overwrite` is not set.
    KeyError
        If the table or a gene does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the table was not predicted, the image is not in the object, or no spot has a prediction.

    Notes
    -----
    In QuPath, drop the file on the open image; "Measure > Show measurement maps" colours spots by a gene [QuPath2017]_.
    A section that came without its slide (:func:`ragst_sd.io.read_patches`) is written in pixels of that slide.

    References
    ----------
    .. [QuPath2017] Bankhead et al., QuPath: open source software for digital pathology image analysis, Sci. Rep. 7
       (2017).

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> rg.io.write_geojson(query, "predicted.geojson", genes=reference.var_names[:2])
    """
    require_sdata(sdata)
    require_type(prediction_key, str, "prediction_key")
    prediction = predicted(sdata, prediction_key)
    table, header, columns = prediction.table, prediction.header, prediction.genes(genes)
    path = Path(path)
    require_new(path, overwrite=overwrite)
    outlines = _outlines(sdata, header, resolve_shapes(sdata, single_region(table)), table, prediction_key)
    values = np.asarray(table.X[:, columns], dtype=float)
    known = np.isfinite(values)
    rows = np.flatnonzero(known.any(axis=1))
    if not len(rows):
        raise ValueError(f"No spot of {prediction_key!r} has a prediction of these genes: nothing was written.")
    if len(rows) < table.n_obs:
        logger.info("%d of %d spots have no prediction and are left out.", table.n_obs - len(rows), table.n_obs)
    names = table.var_names[columns].astype(str)
    flagged = table.obs[_keys.OUT_OF_REFERENCE].to_numpy(dtype=float)
    measured = [
        {
            **{names[k]: float(f"{values[row, k]:.6g}") for k in np.flatnonzero(known[row])},
            _keys.OUT_OF_REFERENCE: flagged[row],
        }
        for row in rows
    ]
    columns_of = {"objectType": "detection", "name": table.obs_names[rows].astype(str), "measurements": measured}
    replace_text(path, gpd.GeoDataFrame(columns_of, geometry=outlines[rows]).to_json(drop_id=True))
    logger.info("Wrote %d spots with %d genes to %s.", len(rows), len(columns), path)


def _outlines(
    sdata: SpatialData, header: dict[str, Any], shapes_key: str, table: Any, prediction_key: str
) -> np.ndarray:
    """Outlines of a table's spots in pixels of the image."""
    image_key = str(header["image_key"])
    if image_key == _keys.PATCHES and image_key not in sdata.images:
        (xy, index), affine = element_centers(sdata, shapes_key), np.eye(3)
    else:
        where = {"image_key": resolve_image(sdata, image_key), "coordinate_system": str(header["coordinate_system"])}
        xy, index, affine, _ = centers_in_pixels(sdata, shapes_key=shapes_key, **where)
    order, element = rows_in_order(table, prediction_key, shapes_key, index), sdata[shapes_key]
    if "geometry" not in element:
        outlines = shapely.buffer(shapely.points(xy), spot_pitch(xy) / 4, quad_segs=4)
    else:
        outlines = element.geometry.to_numpy()
        if "radius" in element:
            outlines = shapely.buffer(outlines, element["radius"].to_numpy(float), quad_segs=4)
        (a, b, x), (c, d, y) = affine[:2]
        outlines = gpd.GeoSeries(outlines).affine_transform([a, b, c, d, x, y]).to_numpy()
    return shapely.transform(outlines[order], lambda corners: corners.round(_DECIMALS))
