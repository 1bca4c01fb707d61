"""Sections of HEST, slides without expression, and tables without a picture."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragst_sd import _keys
from ragst_sd.io._readable import readable

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ragst_sd.datasets._sample_files import Sample

logger = logging.getLogger(__name__)

# As the schema of CELLxGENE names the donor.
_DONOR_ID = "donor_id"


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
    from anndata import read_h5ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

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
