"""Small painted sections for tests of embedding."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

SIZE = (240, 320)


def mean_colour(tiles):
    return tiles.float().mean(dim=(2, 3))


def painted(shape=SIZE, channels=3):
    """An image in which every place has its own colour."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    layers = [x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width), np.full(shape, 255)]
    return np.stack(layers[:channels]).astype(np.uint8)


def annotated(shapes, index, name="spots"):
    obs = pd.DataFrame(
        {"region": pd.Categorical([name] * len(index)), "spot": list(index)}, index=[f"s{i}" for i in index]
    )
    table = AnnData(np.ones((len(index), 1), dtype=np.float32), obs=obs)
    return TableModel.parse(table, region=name, region_key="region", instance_key="spot")


def section(xy, image=None, **parse):
    circles = ShapesModel.parse(np.asarray(xy, dtype=float), geometry=0, radius=5)
    image = painted() if image is None else image
    return SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"), **parse)},
        shapes={"spots": circles},
        tables={"table": annotated(circles, circles.index)},
    )


def copied(sdata):
    """A copy that a test may change; unlike that of spatialdata it computes no pixels, which takes most of the time."""
    return SpatialData(
        images={name: image.copy(deep=True) for name, image in sdata.images.items()},
        labels={name: labels.copy(deep=True) for name, labels in sdata.labels.items()},
        shapes={name: deepcopy(shapes) for name, shapes in sdata.shapes.items()},
        tables={name: table.copy() for name, table in sdata.tables.items()},
        attrs=deepcopy(sdata.attrs),
    )
