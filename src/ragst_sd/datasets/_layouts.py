"""How the files of a section are arranged: outputs of 10x, Spatial Transcriptomics, HEST, pictures or counts alone.

Visium is not read by the readers of spatialdata-io, which want the pipeline's whole folder under its own names
(deposits rename files and leave some out) and give the picture as one chunk.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import TableModel
from spatialdata.transformations import Affine, set_transformation
from xarray import DataArray, DataTree

from ragst_sd import _keys
from ragst_sd._resolution import image_mpp_of, keep_image_mpp
from ragst_sd._spot_layout import spot_pitch
from ragst_sd.datasets._sample_files import Sample
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._readable import readable
from ragst_sd.io._section import IMAGE, SHAPES, TABLE, Origin, assemble, check_inside
from ragst_sd.io._slide_file import open_slide
from ragst_sd.io._st_counts import read_counts
from ragst_sd.io._st_image import image_element, read_rgb

logger = logging.getLogger(__name__)

_POSITIONS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
_PLAIN = (".jpg", ".jpeg", ".png")
_DIAMETER_UM, _PITCH_UM = 55.0, 100.0
_BIN_UM = 16
_LEFT_OUT = ["cells_boundaries", "nucleus_boundaries", "cells_labels", "nucleus_labels", "transcripts"]
_LEFT_OUT += ["morphology_mip", "morphology_focus", "aligned_images"]
_BUNDLE = ("experiment.xenium", "cell_feature_matrix.h5", "cells.parquet", "cells.zarr.zip")

# As the schema of CELLxGENE names the donor.
_DONOR_ID = "donor_id"


def read_visium(sample: Sample) -> SpatialData:
    """`counts` (10x h5), `image` at full resolution, and an archive `spatial`, or `positions` and `scalefactors`.

    Without `image` the overview of the archive stands in, with a warning.
    """
    if "spatial" in sample.roles:
        positions = sample.find("spatial", "tissue_positions.csv", "tissue_positions_list.csv")[0]
        scalefactors = sample.find("spatial", "scalefactors_json.json")[0]
    else:
        # Named anew by some deposits.
        positions, scalefactors = sample.path("positions"), sample.path("scalefactors")
    scales = json.loads(scalefactors.read_text())
    if "image" in sample.roles:
        image, factor = _picture(sample.path("image")), 1.0
    else:
        image = image_element(read_rgb(sample.find("spatial", "tissue_hires_image.png")[0]))
        factor = float(scales["tissue_hires_scalef"])
        logger.warning(
            "Section %r has no image at full resolution: the overview is used instead, and its tiles have little "
            "detail. Pass `path=` if you have the image.",
            sample.name,
        )
    table = _with_positions(read_10x(sample.path("counts")), read_positions(positions), sample.name)
    return _assembled(sample, table, image, scales["spot_diameter_fullres"], factor=factor)


def read_visium_hd(sample: Sample) -> SpatialData:
    """`bins` (archive of `binned_outputs`) and `image`; bins of 16 microns unless others are asked for."""
    image = _picture(sample.path("image"))
    edge = _BIN_UM if sample.bin_um is None else sample.bin_um
    at = f"square_{edge:03d}um"
    counts = sample.find("bins", f"{at}/filtered_feature_bc_matrix.h5")[0]
    places = sample.find("bins", f"{at}/spatial/tissue_positions.parquet")[0]
    scales = json.loads(sample.find("bins", f"{at}/spatial/scalefactors_json.json")[0].read_text())
    table = _with_positions(read_10x(counts), pd.read_parquet(places).set_index("barcode"), sample.name)
    mpp = float(scales["microns_per_pixel"])
    return _assembled(sample, table, image, scales["spot_diameter_fullres"], mpp=mpp)


def _picture(path: Path) -> DataArray | DataTree:
    if path.suffix.lower() in _PLAIN:
        return image_element(read_rgb(path))
    return pyramid_element(open_slide(path.resolve()).levels)


def read_10x(path: Path) -> AnnData:
    """Counts of genes, spots x genes; symbols made unique, Ensembl ids in `var["gene_ids"]`."""
    import scanpy as sc

    with readable(path, "an h5 file of 10x"):
        table = sc.read_10x_h5(path)
    table.var_names_make_unique()
    return read_counts(table, None)


def read_positions(path: Path) -> pd.DataFrame:
    """Positions of spots by barcode, written with names of columns (Space Ranger 2) or without."""
    named = _PIXELS[0] in pd.read_csv(path, nrows=0)
    return pd.read_csv(path, index_col=0, header=0 if named else None, names=None if named else list(_POSITIONS))


def _with_positions(table: AnnData, positions: pd.DataFrame, sample: str) -> AnnData:
    """The table with the positions of its spots, pixels in `obsm["spatial"]` and the rest in `obs`."""
    lost = table.obs_names[~table.obs_names.isin(positions.index)]
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {table.n_obs} barcodes of section {sample!r} have no position, for example {lost[0]!r} (a "
            f"position is that of {positions.index[0]!r}). The files are not of one section."
        )
    positions = positions.loc[table.obs_names]
    table.obs = table.obs.join(positions.drop(columns=_PIXELS))
    table.obsm["spatial"] = positions[_PIXELS].to_numpy(float)
    return table


def _assembled(
    sample: Sample, table: AnnData, image: Any, diameter: float, *, factor: float = 1.0, mpp: float | None = None
) -> SpatialData:
    """A section as one object; positions and diameter times `factor` are pixels of `image`."""
    xy = np.asarray(table.obsm["spatial"], dtype=float) * factor
    full = image if isinstance(image, DataArray) else next(iter(get_pyramid_levels(image)))
    check_inside(xy, xy, (full.sizes["x"], full.sizes["y"]))
    if mpp is None:
        # Spots are where the instrument put them; what a file states of its pixels may be missing or wrong.
        pitch_um = _PITCH_UM if sample.um_between_centers is None else sample.um_between_centers
        mpp = pitch_um / spot_pitch(xy) if len(xy) > 1 else _DIAMETER_UM / (diameter * factor)
    origin = Origin(sample.name, sample.donor, sample.details)
    return assemble(table, xy, image, origin, radius=diameter * factor / 2, image_mpp=mpp)


def read_xenium(sample: Sample) -> SpatialData:
    """`bundle` (archive of the output folder), `image` and `alignment` (csv), which may also lie in the bundle.

    Cells become the spots. All lies in the frame "global", pixels of the morphology image: cells by a scale, the H&E
    picture by its alignment.
    """
    import spatialdata_io

    experiment = sample.find("bundle", *_BUNDLE)
    folder = next(path.parent for path in experiment if path.name == "experiment.xenium")
    pixel_um = float(json.loads((folder / "experiment.xenium").read_text())["pixel_size"])
    patterns = {"image": "*he_image.ome.tif", "alignment": "*he_imagealignment.csv"}
    files = {
        role: sample.path(role) if role in sample.roles else sample.find("bundle", pattern)[0]
        for role, pattern in patterns.items()
    }
    to_global = np.loadtxt(files["alignment"], delimiter=",").reshape(3, 3)
    read = spatialdata_io.xenium(folder, cells_as_circles=True, **dict.fromkeys(_LEFT_OUT, False))
    image = pyramid_element(open_slide(files["image"].resolve()).levels)
    set_transformation(image, Affine(to_global, input_axes=("x", "y"), output_axes=("x", "y")), "global")
    table = read.tables["table"]
    table.obs["region"] = pd.Categorical([SHAPES] * table.n_obs)
    table.obs[_keys.SAMPLE] = sample.name
    if sample.donor is not None:
        table.obs[_keys.DONOR] = sample.donor
    table.uns[_keys.ATTRS] = {_keys.SOURCE: dict(sample.details)}
    table = TableModel.parse(table, region=SHAPES, region_key="region", instance_key="cell_id", overwrite_metadata=True)
    sdata = SpatialData(images={IMAGE: image}, shapes={SHAPES: read.shapes["cell_circles"]}, tables={TABLE: table})
    mpp = pixel_um * float(np.sqrt(abs(np.linalg.det(to_global[:2, :2]))))
    keep_image_mpp(sdata, IMAGE, mpp)
    return sdata


def read_st_tsv(sample: Sample) -> SpatialData:
    """`counts` (spots x genes, tsv), `image`, and `coordinates` (a table) or `transformation` (array to pixels)."""
    counts: Any = sample.path("counts")
    coordinates: Any = None
    if "coordinates" in sample.roles:
        coordinates = sample.path("coordinates")
    elif "transformation" in sample.roles:
        counts = pd.read_csv(counts, sep="\t", index_col=0)
        coordinates = array_to_pixels(list(counts.index), sample.path("transformation"))
    return _read_st(sample, counts, coordinates)


def read_st_h5ad(sample: Sample) -> SpatialData:
    """`counts` (h5ad with `obsm["spatial"]` in pixels) and `image`."""
    return _read_st(sample, sample.path("counts"), None)


def _read_st(sample: Sample, counts: Any, coordinates: Any) -> SpatialData:
    """A section by `rg.io.read_st`, with what the sample knows."""
    from ragst_sd.io import read_st

    return read_st(
        counts,
        sample.path("image"),
        coordinates=coordinates,
        sample=sample.name,
        donor=sample.donor,
        source=sample.details,
        # What a donor's array measures beats a number that stands for a whole data set.
        image_mpp=sample.image_mpp if sample.um_between_centers is None else None,
        um_between_centers=sample.um_between_centers,
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
    places = np.array([name.split("x") for name in names], dtype=float).reshape(-1, 2)
    return (np.column_stack([places, np.ones(len(places))]) @ numbers.reshape(3, 3))[:, :2]


def read_hest_sample(sample: Sample) -> SpatialData:
    """`counts`, `image` and `metadata`, in folders named st, wsis and metadata."""
    from ragst_sd.io import read_hest

    folders = {sample.path(role).parent.parent for role in ("counts", "image", "metadata")}
    if len(folders) != 1:
        raise ValueError(
            f"The files of section {sample.name!r} lie in {len(folders)} folders; st, wsis and metadata must share one."
        )
    return read_hest(folders.pop(), sample=sample.path("counts").stem, donor=sample.donor)


def read_slide_sample(sample: Sample) -> SpatialData:
    """`image`: a slide or a plain picture without expression. There are no spots, so nowhere to write a donor."""
    from ragst_sd.io import read_slide

    path = sample.path("image")
    is_plain = path.suffix.lower() in _PLAIN
    sdata = SpatialData(images={IMAGE: image_element(read_rgb(path, as_stored=True))}) if is_plain else read_slide(path)
    # The resolution of the catalogue is for files that state none.
    if image_mpp_of(sdata, IMAGE) is None and sample.image_mpp is not None:
        keep_image_mpp(sdata, IMAGE, sample.image_mpp)
    sdata.attrs[_keys.ATTRS] = {**sdata.attrs.get(_keys.ATTRS, {}), _keys.SOURCE: dict(sample.details)}
    return sdata


def read_h5ad_sample(sample: Sample) -> SpatialData:
    """`counts`: an h5ad without a picture, single cells for instance. The table annotates nothing."""
    with readable(sample.path("counts"), "h5ad"):
        table = read_h5ad(sample.path("counts"))
    table.uns.pop(TableModel.ATTRS_KEY, None)
    table.obs[_keys.SAMPLE] = sample.name
    donors = table.obs.get(_DONOR_ID, sample.donor)
    if _keys.DONOR not in table.obs and donors is not None:
        table.obs[_keys.DONOR] = donors
    table.uns[_keys.ATTRS] = {_keys.SOURCE: dict(sample.details)}
    return SpatialData(tables={"table": TableModel.parse(table)})


# What reads a section, by the loader of its data set.
LAYOUTS = {
    "st_tsv": read_st_tsv,
    "st_h5ad": read_st_h5ad,
    "visium": read_visium,
    "visium_hd": read_visium_hd,
    "xenium": read_xenium,
    "hest": read_hest_sample,
    "slide": read_slide_sample,
    "h5ad": read_h5ad_sample,
}
