"""Output bundles of Xenium with an aligned H&E picture, read by spatialdata-io."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._section import IMAGE, SHAPES, TABLE
from ragst_sd.io._slide_file import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from ragst_sd.datasets._sample_files import Sample

logger = logging.getLogger(__name__)

_LEFT_OUT = ("cells_boundaries", "nucleus_boundaries", "cells_labels", "nucleus_labels", "transcripts")
_LEFT_OUT += ("morphology_mip", "morphology_focus", "aligned_images")
_BUNDLE = ("experiment.xenium", "cell_feature_matrix.h5", "cells.parquet", "cells.zarr.zip")


def read_xenium(sample: Sample) -> SpatialData:
    """`bundle` (archive of the output folder), `image` and `alignment` (csv), which may also lie in the bundle.

    Cells become the spots. All lies in the frame "global", pixels of the morphology image: cells by a scale, the H&E
    picture by its alignment.
    """
    import spatialdata_io
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import Affine, set_transformation

    experiment = sample.find("bundle", *_BUNDLE)
    folder = next(path.parent for path in experiment if path.name == "experiment.xenium")
    pixel_um = float(json.loads((folder / "experiment.xenium").read_text())["pixel_size"])
    image_file, alignment_file = _picture(sample)
    to_global = np.loadtxt(alignment_file, delimiter=",").reshape(3, 3)
    read = spatialdata_io.xenium(folder, cells_as_circles=True, **dict.fromkeys(_LEFT_OUT, False))
    image = pyramid_element(open_slide(image_file.resolve()).levels)
    set_transformation(image, Affine(to_global, input_axes=("x", "y"), output_axes=("x", "y")), "global")
    table = read.tables["table"]
    table.obs["region"] = SHAPES
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs[_keys.SAMPLE] = sample.name
    if sample.donor is not None:
        table.obs[_keys.DONOR] = sample.donor
    table.uns[_keys.ATTRS] = {_keys.SOURCE: dict(sample.details)}
    table = TableModel.parse(table, region=SHAPES, region_key="region", instance_key="cell_id", overwrite_metadata=True)
    sdata = SpatialData(images={IMAGE: image}, shapes={SHAPES: read.shapes["cell_circles"]}, tables={TABLE: table})
    mpp = pixel_um * float(np.sqrt(abs(np.linalg.det(to_global[:2, :2]))))
    sdata.attrs[_keys.ATTRS] = {_keys.IMAGE_MPP: {IMAGE: mpp}}
    return sdata


def _picture(sample: Sample) -> tuple[Path, Path]:
    patterns = {"image": "*he_image.ome.tif", "alignment": "*he_imagealignment.csv"}
    image, alignment = (
        sample.path(role) if sample.has(role) else sample.find("bundle", pattern)[0]
        for role, pattern in patterns.items()
    )
    return image, alignment
