"""Thumbnails of the spots of a reference."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._elements import image_pyramid
from ragst_sd.image.embedding import plan_fields
from ragst_sd.image.tiles import iter_tiles

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ragst_sd.tl._sections import Section

logger = logging.getLogger(__name__)

THUMBNAIL_PX = 32


def thumbnails(section: Section, sdata: SpatialData) -> np.ndarray:
    """(n, 32, 32, 3) uint8 pictures of the tiles that were embedded; white where the image is not at hand."""
    header, n = section.header, len(section.obs)
    out = np.full((n, THUMBNAIL_PX, THUMBNAIL_PX, 3), 255, dtype=np.uint8)
    image_key = str(header["image_key"])
    if image_key not in sdata.images:
        logger.warning("%s: image %r is not in the object; thumbnails stay white.", section.sample, image_key)
        return out
    pyramid = image_pyramid(sdata, image_key)
    # The thumbnail shows what the tile covers, in fewer and therefore larger pixels.
    coarser = int(header["tile_px"]) / THUMBNAIL_PX
    mpp = float(header["mpp"])
    native = np.isnan(mpp)
    field = plan_fields(
        pyramid,
        tile_px=THUMBNAIL_PX,
        mpp=None if native else mpp * coarser,
        image_mpp=None if native else float(header["image_mpp"]),
        context=(coarser if native else 1.0,),
    )[0]
    batches = iter_tiles(
        pyramid.levels[field.level],
        section.xy,
        field,
        chunk=pyramid.chunks[field.level],
        value_max=pyramid.value_max,
        batch_size=256,
    )
    for index, tiles in batches:
        out[index] = tiles.permute(0, 2, 3, 1).numpy()
    return out
