"""`rg.io.read_hest`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from spatialdata import SpatialData

from ragst_sd._validate import hint, listing, require_positive, require_type
from ragst_sd.io._hest_metadata import donor_of, hest_source, pixel_size, read_metadata, spot_diameter
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._readable import existing
from ragst_sd.io._section import assemble, check_inside, checked_source, source_details
from ragst_sd.io._slide_file import open_slide
from ragst_sd.io._st_counts import locate, read_counts

logger = logging.getLogger(__name__)


def read_hest(
    path: str | PathLike[str],
    *,
    sample: str | None = None,
    donor: str | None = None,
    image_mpp: float | None = None,
    source: Mapping[str, str] | None = None,
) -> SpatialData:
    """Read a section of HEST-1k, or of data in its layout.

    Parameters
    ----------
    path
        Folder that holds `st/<sample>.h5ad`, `wsis/<sample>.tif` and `metadata/<sample>.json` [Jaume2024]_. Patches,
        thumbnails and segmentations are not read.
    sample
        Id of the section, such as "TENX95"; may be left out if the folder holds one.
    donor
        Whom the section is from. `None` joins `dataset_title` and `patient` of the metadata, as patients are numbered
        anew in every study; sections of a study that states no patients count as one donor.
    image_mpp
        Microns per pixel. `None` takes `pixel_size_um_estimated` of the metadata (derived by HEST from the distance
        between spots), else `pixel_size_um_embedded`, else what the picture's file states.
    source
        Overrides for `tissue`, `technology`, `license`, `citation`.

    Returns
    -------
    A SpatialData, all in the frame "global" (pixels of the picture):

    images["he"]
        The picture, a pyramid that stays in its file and is read region by region.
    shapes["spots"]
        Circles, indexed by barcode; their diameter is `spot_diameter_fullres` of the h5ad, else `spot_diameter` of the
        metadata, in microns.
    tables["table"]
        Counts in `X` (CSR, float32); the columns of the h5ad and `region`, `spot_id`, `sample`, `donor` in `obs`;
        centres in `obsm["spatial"]`; tissue (`organ`), technology (`st_technology`), license and citation in
        `uns["ragst"]["source"]`.
    attrs["ragst"]["image_mpp"]["he"]
        Microns per pixel.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If there is no such sample.
    TypeError
        If `path` is no path.
    ValueError
        If no resolution or no spot diameter is known, or spots and picture do not fit.

    Notes
    -----
    HEST-1k is licensed CC BY-NC-SA 4.0, and its owners ask users to accept terms; `rg.datasets.load("hest_1k", ...)`
    says how. Sections of Xenium are binned into pseudo-spots by HEST.

    References
    ----------
    .. [Jaume2024] Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS
       Datasets and Benchmarks (2024).

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_hest("hest_data", sample="TENX95")  # the folder holds st/, wsis/ and metadata/
    >>> sorted(sdata.tables["table"].uns["ragst"]["source"])
    ['citation', 'license', 'technology', 'tissue']
    """
    require_type(path, (str, PathLike), "path")
    require_positive(image_mpp, "image_mpp", optional=True)
    given = checked_source(source)
    folder = Path(path)
    sample = _resolve_sample(folder, sample)
    suffixes = {"st": ".h5ad", "wsis": ".tif", "metadata": ".json"}
    files = {kind: folder / kind / f"{sample}{suffix}" for kind, suffix in suffixes.items()}
    missing = [str(file.relative_to(folder)) for file in files.values() if not file.is_file()]
    if missing:
        msg = (
            f"{listing(missing)} of section {sample!r} not found in {str(folder)!r}. A section of HEST needs "
            "three files: counts, picture and metadata. "
            f'`rg.datasets.load("hest_1k", samples=[{sample!r}])` downloads them.'
        )
        raise FileNotFoundError(msg)
    meta = read_metadata(files["metadata"], sample)
    found = read_counts(files["st"], None)
    found, xy = locate(found, None)
    slide = open_slide(files["wsis"].resolve())
    height, width = slide.levels[0].shape[1:]
    check_inside(xy, width, height)
    mpp = pixel_size(meta, slide.mpp, sample) if image_mpp is None else float(image_mpp)
    if mpp is None:
        msg = (
            f"Microns per pixel of section {sample!r} are in neither its metadata (pixel_size_um_estimated, "
            "pixel_size_um_embedded) nor its picture. Pass `image_mpp=`."
        )
        raise ValueError(msg)
    diameter = spot_diameter(found, meta, mpp)
    if diameter is None:
        msg = (
            f"The diameter of spots of section {sample!r} is in neither `uns['spatial']` of its h5ad nor "
            "`spot_diameter` of its metadata. Write it (microns) into the metadata."
        )
        raise ValueError(msg)
    sdata = assemble(
        found,
        xy,
        pyramid_element(slide.levels),
        radius=diameter / 2,
        sample=sample,
        donor=donor_of(meta, sample) if donor is None else donor,
        details=source_details(hest_source(meta), given),
        image_mpp=mpp,
    )
    logger.info(
        "Read HEST section %r: %d spots x %d genes, picture of %d x %d px.", sample, *found.shape, width, height
    )
    return sdata


def _resolve_sample(folder: Path, sample: str | None) -> str:
    existing(folder, "`path`:", "Pass the folder that holds st, wsis and metadata.", folder=True)
    present = sorted(file.stem for file in (folder / "st").glob("*.h5ad"))
    if sample is not None:
        if sample not in present:
            msg = (
                f"No section {sample!r} in {str(folder / 'st')!r}. Available: "
                f"{listing(present)}.{hint(sample, present)}"
            )
            raise KeyError(msg)
        return sample
    if len(present) != 1:
        msg = f"`sample` is needed: {str(folder / 'st')!r} holds {len(present)} sections: {listing(present)}."
        raise ValueError(msg)
    return present[0]
