"""`rg.pp.label_spots`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData

from ragst_sd._annotation import empty_table, resolve_annotation, rows_in_order
from ragst_sd._elements import element_centers, require_sdata
from ragst_sd._outlines import areas_in_frame_of, extent_of
from ragst_sd._several import over_sections
from ragst_sd._validate import require_key, require_type

logger = logging.getLogger(__name__)


@over_sections()
def label_spots(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    annotation_key: str = "annotations",
    label_key: str = "classification",
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    key_added: str = "label",
    overwrite: bool = False,
) -> None:
    """Label spots by the annotation that contains their centre.

    Parameters
    ----------
    sdata
        Object with spots and an annotation, such as :func:`ragst_sd.io.read_annotations` adds; or a list or a mapping
        of them.
    annotation_key
        Polygons in `sdata.shapes`.
    label_key
        Column of the annotation with the labels.
    shapes_key
        Spots; may be left out if a table tells.
    table_key
        Table that annotates the spots; may be left out if there is only one. If none does, an empty one is made, named
        `<shapes_key>_table`.
    coordinate_system
        The frame that spots and annotation share; may be left out if they share just one.
    key_added
        Column of `.obs` to write. `"label"` is where :func:`ragst_sd.tl.evaluate` looks.
    overwrite
        Replace a column of this name.

    Returns
    -------
    `None`. Written to the table:

    `.obs[key_added]`
        Categories, missing for spots that lie in no outline. Where outlines overlap, the smallest counts: a vessel in
        a tumour is a vessel.

    Raises
    ------
    KeyError
        If a key does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If no spot lies in an outline, spots and annotation share no frame, the annotation holds no polygons, or the
        column is there.

    Examples
    --------
    >>> import geopandas, shapely
    >>> import ragst_sd as rg
    >>> from spatialdata.models import ShapesModel
    >>> sdata = rg.datasets.synthetic(n_donors=1, image_px=500)["donor1"]
    >>> drawn = geopandas.GeoDataFrame({"classification": ["Tumor"]}, geometry=[shapely.box(0, 0, 250, 500)])
    >>> sdata.shapes["annotations"] = ShapesModel.parse(drawn)
    >>> rg.pp.label_spots(sdata, key_added="annotation")
    >>> sdata.tables["table"].obs["annotation"].cat.categories.tolist()
    ['Tumor']
    """
    sdata = require_sdata(sdata)
    require_type(key_added, str, "key_added")
    table_key, shapes_key = resolve_annotation(sdata, table_key, shapes_key)
    outlines = areas_in_frame_of(sdata, annotation_key, shapes_key, coordinate_system)
    annotation = sdata.shapes[annotation_key]
    require_key(label_key, annotation, f"sdata.shapes[{annotation_key!r}]")
    xy, index = element_centers(sdata, shapes_key)
    table = sdata.tables[table_key] if table_key in sdata.tables else empty_table(index, shapes_key)
    if key_added in table.obs and not overwrite:
        raise ValueError(
            f"`obs[{key_added!r}]` of table {table_key!r} is there already. Pass `overwrite=True` to replace it, or "
            "choose another `key_added`."
        )
    xy = xy[rows_in_order(table, table_key, shapes_key, index)]
    by_size = np.argsort(outlines.area.to_numpy(), kind="stable")
    spot, outline = shapely.STRtree(outlines.to_numpy()[by_size]).query(shapely.points(xy), predicate="intersects")
    if not len(spot):
        raise ValueError(
            f"None of the {len(xy)} spots lies in an outline of {annotation_key!r}: spots cover "
            f"{extent_of(xy)}, outlines {extent_of(outlines.total_bounds.reshape(2, 2))}, in units of {shapes_key!r}. "
            "Check that the annotation is of this section, and its unit (`rg.io.read_annotations(..., mpp=...)`)."
        )
    smallest = np.full(len(xy), len(outlines))
    np.minimum.at(smallest, spot, outline)
    inside = smallest < len(outlines)
    labels = np.full(len(xy), None, dtype=object)
    labels[inside] = annotation[label_key].astype(object).to_numpy()[by_size][smallest[inside]]
    table.obs[key_added] = pd.Categorical(labels)
    if table_key not in sdata.tables:
        sdata.tables[table_key] = table
    of, several = f"{inside.sum()} of {len(xy)}", (np.bincount(spot) > 1).sum()
    what = "Adding `sdata.tables[%r].obs[%r]`: %s spots lie in an outline, %d in several."
    logger.info(what, table_key, key_added, of, several)
