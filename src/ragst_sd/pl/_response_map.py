"""The map of a predicted response on the tissue: how large it is where, and what stands against reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import rows_in_order, single_region
from ragst_sd._elements import resolve_shapes
from ragst_sd.image.embedding import Pyramid
from ragst_sd.pl import _style
from ragst_sd.pl._maps import Map, limits_of
from ragst_sd.pl._section import Section, draw_spots, read_section

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

_AIR = 1.0


def response_section(sdata: SpatialData, table: AnnData, header: dict[str, Any], prediction_key: str) -> Section:
    """The spots on their picture; on white where the object has none."""
    if str(header["image_key"]) in sdata.images:
        return read_section(sdata, table, header, prediction_key)
    region = resolve_shapes(sdata, single_region(table))
    element = sdata[region]
    order = rows_in_order(table, prediction_key, region, element.index)
    if hasattr(element, "compute"):
        centers, shapes = element[["x", "y"]].compute().to_numpy(float)[order], None
    else:
        shapes = element.iloc[order]
        centroids = shapes.geometry.centroid
        centers = np.column_stack([centroids.x, centroids.y])
    # Spots do not reach the rim of the white picture, whatever frame they lie in.
    low, high = centers.min(axis=0), centers.max(axis=0)
    reach = 0.0 if shapes is None or "radius" not in shapes else float(shapes["radius"].max())
    rim = 1.2 * reach + 0.08 * float((high - low).max()) + _AIR
    affine = np.eye(3)
    affine[:2, 2] = rim - low
    width, height = (int(np.ceil(edge)) for edge in high - low + 2 * rim)
    # Takes no memory, whatever the units of the element are.
    white = np.broadcast_to(np.uint8(255), (3, height, width))
    stated = float(header["image_mpp"])
    mpp = stated if np.isfinite(stated) else None
    return Section(Pyramid((white,), ((height, width),), 255.0), mpp, centers + affine[:2, 2], shapes, affine)


def response_map(
    table: AnnData,
    header: dict[str, Any],
    perturbation: str,
    cmap: str | Colormap,
    vmin: float | None,
    vmax: float | None,
) -> Map:
    """What the map shows and says."""
    from matplotlib.colors import ListedColormap

    values = table.obs[_keys.RESPONSE_MAGNITUDE].to_numpy(float)
    constant, far = bool(header["constant"]), float(header["far_from_screen"])
    if constant and len(np.atleast_1d(header["variance_shuffled"])):
        words = "no more variation over the tissue than among shuffled spots"
    else:
        words = "the same response for every state"
    note = f"constant ({_style.number(values[0], 3)}): {words}"
    if not constant:
        p_value = _style.number(float(header["variance_p_value"]), 2)
        note = f"varies more than among shuffled spots (p = {p_value})"
    if far > 0:
        note += f". ringed: far from the screen's cells ({_style.percent(far)} of spots)"
    one_colour = ListedColormap([_style.OTHERS])
    return Map(
        "map",
        f"Response to {perturbation}",
        values,
        limits_of(values, vmin, vmax),
        one_colour if constant else cmap,
        "" if constant else "root mean square response",
        note,
    )


def ring_far_spots(ax: Axes, section: Section, table: AnnData) -> None:
    """Draw a ring around spots that the screen holds no cells like."""
    far = np.flatnonzero(table.obs[_keys.FAR_FROM_SCREEN].to_numpy(bool))
    if len(far):
        style = {"facecolors": "none", "edgecolors": "0.15", "linewidths": 0.8, "zorder": 4}
        draw_spots(ax, section, far, label="far from the screen", **style)
