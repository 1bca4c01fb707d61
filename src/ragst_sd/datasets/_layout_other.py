"""Arrays of Spatial Transcriptomics, sections of HEST, and pictures or counts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import read_h5ad
from spatialdata import SpatialData
from spatialdata.models import TableModel

from ragst_sd import _keys
from ragst_sd._resolution import keep_image_mpp
from ragst_sd.datasets._sample_files import Sample
from ragst_sd.io._readable import readable

# As the schema of CELLxGENE names the donor.
_DONOR_ID = "donor_id"


def read_st_tsv(sample: Sample) -> SpatialData:
    """`counts` (spots x genes, tsv), `image`, and `coordinates` (a table) or `transformation` (array to pixels)."""
    counts: Any = sample.path("counts")
    coordinates: Any = None
    if "coordinates" in sample.roles:
        coordinates = sample.path("coordinates")
    elif "transformation" in sample.roles:
        counts = pd.read_csv(counts, sep="\t", index_col=0)
        coordinates = array_to_pixels(list(counts.index), sample.path("transformation"))
    return _read(sample, counts, coordinates)


def read_st_h5ad(sample: Sample) -> SpatialData:
    """`counts` (h5ad with `obsm["spatial"]` in pixels) and `image`."""
    return _read(sample, sample.path("counts"), None)


def read_picture(sample: Sample) -> SpatialData:
    """`image`: a plain picture without counts. There are no spots, so nowhere to write a donor."""
    from ragst_sd.io._st_image import image_element, read_rgb

    sdata = SpatialData(images={"he": image_element(read_rgb(sample.path("image")))})
    sdata.attrs[_keys.ATTRS] = {_keys.SOURCE: dict(sample.details)}
    if sample.image_mpp is not None:
        keep_image_mpp(sdata, "he", sample.image_mpp)
    return sdata


def _read(sample: Sample, counts: Any, coordinates: Any) -> SpatialData:
    from ragst_sd.io import read_st

    # What a donor's array measures beats a number that stands for a whole data set.
    resolution: dict[str, Any] = {"um_between_centers": sample.um_between_centers}
    if sample.um_between_centers is None:
        resolution = {"image_mpp": sample.image_mpp}
    return read_st(
        counts,
        sample.path("image"),
        coordinates=coordinates,
        sample=sample.name,
        donor=sample.donor,
        source=sample.details,
        **resolution,
    )


def array_to_pixels(names: list[str], transformation: Path) -> np.ndarray:
    """(n, 2) pixels (x, y) of spots named `<x>x<y>` by their places in the array.

    Parameters
    ----------
    names
        Names of the spots.
    transformation
        File of the nine numbers of a 3 x 3 matrix M, by rows: (x, y, 1) in the array times M is (x, y, 1) in pixels.
    """
    numbers = np.array(transformation.read_text().split(), dtype=float)
    if len(numbers) != 9 or not np.allclose(numbers[[2, 5, 8]], (0, 0, 1)):
        msg = f"{transformation.name!r} must hold the nine numbers of an affine matrix, ending its rows in 0, 0 and 1."
        raise ValueError(msg)
    try:
        places = np.array([name.split("x") for name in names], dtype=float).reshape(-1, 2)
    except ValueError as error:
        msg = f"Spots must be named by their places in the array, such as '16.9x9.0'; found {names[:3]}."
        raise ValueError(msg) from error
    return (np.column_stack([places, np.ones(len(places))]) @ numbers.reshape(3, 3))[:, :2]


def read_hest_sample(sample: Sample) -> SpatialData:
    """`counts`, `image` and `metadata`, in folders named st, wsis and metadata."""
    from ragst_sd.io import read_hest

    folders = {sample.path(role).parent.parent for role in ("counts", "image", "metadata")}
    if len(folders) != 1:
        msg = (
            f"The files of section {sample.name!r} lie in {len(folders)} folders; st, wsis and metadata must share one."
        )
        raise ValueError(msg)
    stem = sample.path("counts").stem
    details = {name: value for name, value in sample.details.items() if name in ("license", "citation")}
    sdata = read_hest(folders.pop(), sample=stem, donor=sample.donor)
    table = sdata.tables["table"]
    source = table.uns[_keys.ATTRS][_keys.SOURCE]
    # The metadata of a section name its own study; the catalogue, the collection.
    table.uns[_keys.ATTRS][_keys.SOURCE] = details | {k: v for k, v in source.items() if v != _keys.UNKNOWN}
    return sdata


def read_slide_sample(sample: Sample) -> SpatialData:
    """`image`: a slide without expression. There are no spots, so nowhere to write a donor."""
    from ragst_sd.io import read_slide

    sdata = read_slide(sample.path("image"))
    if _keys.IMAGE_MPP not in sdata.attrs.get(_keys.ATTRS, {}) and sample.image_mpp is not None:
        sdata = read_slide(sample.path("image"), mpp=sample.image_mpp)
    sdata.attrs[_keys.ATTRS] = {**sdata.attrs.get(_keys.ATTRS, {}), _keys.SOURCE: dict(sample.details)}
    return sdata


def read_h5ad_sample(sample: Sample) -> SpatialData:
    """`counts`: an h5ad without a picture, single cells for instance. The table annotates nothing."""
    with readable(sample.path("counts"), "h5ad"):
        table = read_h5ad(sample.path("counts"))
    table.uns.pop(TableModel.ATTRS_KEY, None)
    table.obs[_keys.SAMPLE] = sample.name
    if _keys.DONOR not in table.obs:
        own = table.obs.get(_DONOR_ID, sample.donor)
        if own is not None:
            table.obs[_keys.DONOR] = own
    table.uns[_keys.ATTRS] = {_keys.SOURCE: dict(sample.details)}
    return SpatialData(tables={"table": TableModel.parse(table)})
