"""`rg.io.read_hest`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._validate import listing, only_one, require_key, require_positive, require_type, require_unique
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._readable import existing, readable
from ragst_sd.io._section import Origin, assemble, check_inside, source_details, stored_diameter
from ragst_sd.io._slide_file import open_slide
from ragst_sd.io._st_counts import locate, read_counts

logger = logging.getLogger(__name__)


HEST_LICENSE = "CC BY-NC-SA 4.0 (HEST-1k)"
_MPP_TOLERANCE = 0.05
_IDS = ("id", "sample_id")


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
        If a file is missing, or the folder holds no sections.
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
    folder = Path(path)
    sample = _resolve_sample(folder, sample)
    suffixes = {"st": ".h5ad", "wsis": ".tif", "metadata": ".json"}
    files = {kind: folder / kind / f"{sample}{suffix}" for kind, suffix in suffixes.items()}
    missing = [str(file.relative_to(folder)) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{listing(missing)} of section {sample!r} not found in {str(folder)!r}. A section of HEST needs "
            "three files: counts, picture and metadata. "
            f'`rg.datasets.load("hest_1k", samples=[{sample!r}])` downloads them.'
        )
    meta = read_metadata(files["metadata"], sample)
    adata, xy = locate(read_counts(files["st"], None), None)
    # HEST reads slides by OpenSlide, which does not turn them.
    slide = open_slide(files["wsis"].resolve(), as_stored=True)
    height, width = slide.levels[0].shape[1:]
    check_inside(xy, xy, (width, height))
    mpp = pixel_size(meta, slide.mpp, sample) if image_mpp is None else float(image_mpp)
    if mpp is None:
        raise ValueError(
            f"Microns per pixel of section {sample!r} are in neither its metadata (pixel_size_um_estimated, "
            "pixel_size_um_embedded) nor its picture. Pass `image_mpp=`."
        )
    diameter = spot_diameter(adata, meta, mpp)
    if diameter is None:
        raise ValueError(
            f"The diameter of spots of section {sample!r} is in neither `uns['spatial']` of its h5ad nor "
            "`spot_diameter` of its metadata. Write it (microns) into the metadata."
        )
    donor = donor_of(meta, sample) if donor is None else donor
    origin = Origin(sample, donor, source_details(meta, source))
    sdata = assemble(adata, xy, pyramid_element(slide.levels), origin, radius=diameter / 2, image_mpp=mpp)
    logger.info("Read HEST section %r: %d spots x %d genes, picture %d x %d px.", sample, *adata.shape, width, height)
    return sdata


def _resolve_sample(folder: Path, sample: str | None) -> str:
    todo = "Pass the folder that holds st, wsis and metadata."
    existing(folder, "`path`:", todo, folder=True)
    present, where = sorted(file.stem for file in (folder / "st").glob("*.h5ad")), str(folder / "st")
    if not present:
        raise FileNotFoundError(f"{where!r} holds no sections (<sample>.h5ad). {todo}")
    if sample is None:
        return only_one(present, "sample", f"sections are in {where!r}") or present[0]
    require_key(sample, present, where)
    return sample


def read_metadata(path: str | PathLike[str], sample: str) -> dict[str, Any]:
    """Fields of a section that are known, of `metadata/<sample>.json` or of the table of all sections (csv).

    Licence and citation are those of HEST.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If it is a table without the section.
    ValueError
        If it cannot be read, or has several lines for the section.
    """
    path = existing(path, "`metadata`:", "Pass the json file of the section, or the csv table of all sections.")
    if path.suffix.lower() == ".csv":
        stated = _line_of(path, sample)
    else:
        with readable(path, "json"):
            # Not strictly JSON: HEST writes NaN where a field is unknown.
            stated = dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))
    meta = known_fields(stated)
    study = ", ".join(str(meta[name]) for name in ("dataset_title", "study_link") if name in meta)
    # Whatever HEST distributes is under its licence.
    return {
        **meta,
        "license": f"{HEST_LICENSE}; original: {meta['license']}" if "license" in meta else HEST_LICENSE,
        "citation": f"{study}; in HEST-1k (Jaume et al. 2024)" if study else "HEST-1k (Jaume et al. 2024)",
    }


def known_fields(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that hold something."""
    return {name: value for name, value in stated.items() if value not in (None, "") and value == value}


def _line_of(path: Path, sample: str) -> dict[str, Any]:
    with readable(path, "csv"):
        table = pd.read_csv(path)
    column = next((name for name in _IDS if name in table), _IDS[0])
    require_key(column, table, path.name, "It names the section of each line.")
    names = table[column].astype(str)
    require_key(sample, names, path.name, "Name a section of the table with `sample=`.")
    lines = names == sample
    require_unique(names[lines], f"lines of {path.name!r}")
    return table[lines].iloc[0].to_dict()


def pixel_size(meta: Mapping[str, Any], stated: tuple[float, float] | None, sample: str) -> float | None:
    """Microns per pixel of the slide: of the metadata, else `stated` by its file; `None` if unknown."""
    known = {name: meta[name] for name in ("pixel_size_um_estimated", "pixel_size_um_embedded") if name in meta}
    if stated is not None:
        known["the picture's file"] = sum(stated) / 2
    if not known:
        return None
    name, mpp = next(iter(known.items()))
    require_positive(mpp, name)
    scanner = known.get("pixel_size_um_embedded", mpp)
    if abs(scanner / mpp - 1) > _MPP_TOLERANCE:
        logger.warning(
            "Section %r: HEST estimates %.4g microns per pixel from the spots, the scanner stated %.4g. The estimate "
            "is taken; pass `image_mpp=` to decide otherwise.",
            sample,
            mpp,
            scanner,
        )
    return float(mpp)


def spot_diameter(adata: AnnData, meta: Mapping[str, Any], mpp: float | None) -> float | None:
    """Diameter of spots in pixels of the slide: of the counts, else of the metadata; `None` if unknown."""
    libraries = dict(adata.uns.get(_keys.SPATIAL, {})).values()
    stored = next(filter(None, map(stored_diameter, libraries)), None)
    if stored is not None or mpp is None or "spot_diameter" not in meta:
        return stored
    require_positive(meta["spot_diameter"], "spot_diameter")
    return float(meta["spot_diameter"]) / mpp


def donor_of(meta: Mapping[str, Any], sample: str) -> str | None:
    """Study and patient, as patients are numbered anew in every study; `None` if neither is known."""
    if _keys.DONOR in meta:
        return str(meta[_keys.DONOR])
    study, patient = meta.get("dataset_title"), meta.get("patient")
    if study is None and patient is None:
        says = (
            "The metadata of %r name neither study nor patient: no column 'donor'. Pass `donor=`: a reference needs it."
        )
        logger.info(says, sample)
        return None
    if patient is None:
        logger.info(
            "The metadata of %r name no patient: all sections of the study %r count as one donor, so that none is "
            "predicted from another of the same patient. Pass `donor=` if you know better.",
            sample,
            study,
        )
    return f"{study or _keys.UNKNOWN}: {patient or 'patient not stated'}"
