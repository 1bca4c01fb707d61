"""`rg.pp.set_image_mpp`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from spatialdata import SpatialData

from ragst_sd._elements import centers_in_pixels, require_sdata, resolve_image, resolve_shapes
from ragst_sd._resolution import keep_image_mpp
from ragst_sd._several import over_sections
from ragst_sd._spot_layout import array_pitch
from ragst_sd._validate import listing, require_positive

logger = logging.getLogger(__name__)


@over_sections()
def set_image_mpp(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image_key: str | None = None,
    mpp: float | None = None,
    shapes_key: str | None = None,
    um_between_centers: float = 100.0,
    coordinate_system: str | None = None,
) -> None:
    """Store the microns per pixel of an image, given or derived from the spot pitch.

    Parameters
    ----------
    sdata
        Object with the image, or a list or a mapping of them.
    image_key
        Image in `sdata.images`; may be left out if there is only one.
    mpp
        Microns per pixel of the finest level. If left out it is derived as `um_between_centers` over the median
        distance in pixels from the spots to their four nearest neighbours.
    shapes_key
        Spots or bins whose pitch is known; may be left out if there is only one shapes element. Cells have none.
    um_between_centers
        Their pitch in microns: 100 for Visium, 200 for ST (1k arrays), the bin edge for Visium HD.
    coordinate_system
        The frame that image and spots share; may be left out if they share just one.

    Returns
    -------
    `None`. Written: `sdata.attrs["ragst"]["image_mpp"][image_key]`, and beside it under `"image_pixels"` the size and
    the frames of the image, which distinguish cropped from resampled versions.

    Raises
    ------
    KeyError
        If a key does not exist.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If `mpp` is not positive, or the pitch cannot be measured: fewer than two spots, or cells, which lie on no
        array.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.datasets.synthetic(n_donors=1, image_px=500)["donor1"]
    >>> rg.pp.set_image_mpp(sdata, image_key="he", shapes_key="spots", um_between_centers=100)
    >>> round(sdata.attrs["ragst"]["image_mpp"]["he"], 2)
    1.0
    """
    sdata = require_sdata(sdata)
    image_key = resolve_image(sdata, image_key)
    if mpp is None:
        require_positive(um_between_centers, "um_between_centers")
        if shapes_key is None and len(sdata.shapes) != 1:
            raise ValueError(
                f"Give the microns per pixel with `mpp=`, or name the spots to derive it from with `shapes_key=` and "
                f"`um_between_centers=`. Found {len(sdata.shapes)} elements in `sdata.shapes`: {listing(sdata.shapes)}."
            )
        shapes_key = resolve_shapes(sdata, shapes_key)
        centers = centers_in_pixels(
            sdata, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system
        )
        mpp = um_between_centers / array_pitch(centers.xy, f"Shapes {shapes_key!r}")
        logger.info("Image %r: %.4g microns per pixel from the pitch of %r.", image_key, mpp, shapes_key)
    require_positive(mpp, "mpp")
    keep_image_mpp(sdata, image_key, mpp)
