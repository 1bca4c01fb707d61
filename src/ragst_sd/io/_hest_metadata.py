"""What HEST-1k tells of a section: files of metadata, and what is read out of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_positive
from ragst_sd.io._readable import existing, readable
from ragst_sd.io._section import stored_diameter

logger = logging.getLogger(__name__)

HEST_LICENSE = "CC BY-NC-SA 4.0 (HEST-1k)"
_MPP_TOLERANCE = 0.05
_IDS = ("id", "sample_id")


def read_metadata(path: str | PathLike[str], sample: str) -> dict[str, Any]:
    """Fields of a section that are known, of `metadata/<sample>.json` or of the table of all sections (csv).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or is a table without the section.
    """
    path = existing(path, "`metadata`:", "Pass the json file of the section, or the csv table of all sections.")
    if path.suffix.lower() == ".csv":
        return known_fields(_line_of(path, sample))
    with readable(path, "json"):
        # Not strictly JSON: HEST writes NaN where a field is unknown.
        return known_fields(dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)))


def known_fields(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that hold something."""
    return {name: value for name, value in stated.items() if value not in (None, "") and value == value}


def _line_of(path: Any, sample: str) -> dict[str, Any]:
    with readable(path, "csv"):
        table = pd.read_csv(path)
    column = next((name for name in _IDS if name in table), None)
    names = [] if column is None else table[column].astype(str)
    found = table[names == sample] if column is not None else table[:0]
    if len(found) != 1:
        held = f"the ids {listing(names)}" if column is not None else f"the columns {listing(table.columns)}, no 'id'"
        msg = f"{path.name!r} has {len(found)} lines for section {sample!r}; it holds {held}. Name it with `sample=`."
        raise ValueError(msg)
    return found.iloc[0].to_dict()


def hest_source(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with licence and citation of HEST too: whatever it distributes is under its licence."""
    study = ", ".join(str(meta[name]) for name in ("dataset_title", "study_link") if name in meta)
    return {
        **meta,
        "license": f"{HEST_LICENSE}; original: {meta['license']}" if "license" in meta else HEST_LICENSE,
        "citation": f"{study}; in HEST-1k (Jaume et al. 2024)" if study else "HEST-1k (Jaume et al. 2024)",
    }


def pixel_size(meta: Mapping[str, Any], stated: tuple[float, float] | None, sample: str) -> float | None:
    """Microns per pixel of the slide: of the metadata, else `stated` by its file; `None` if unknown."""
    known = {name: meta[name] for name in ("pixel_size_um_estimated", "pixel_size_um_embedded") if name in meta}
    if stated is not None:
        known["the picture's file"] = sum(stated) / 2
    if not known:
        return None
    name, mpp = next(iter(known.items()))
    require_positive(mpp, name)
    if "pixel_size_um_embedded" in known and abs(known["pixel_size_um_embedded"] / mpp - 1) > _MPP_TOLERANCE:
        logger.warning(
            "Section %r: HEST estimates %.4g microns per pixel from the spots, the scanner stated %.4g. The estimate "
            "is taken; pass `image_mpp=` to decide otherwise.",
            sample,
            mpp,
            known["pixel_size_um_embedded"],
        )
    return float(mpp)


def spot_diameter(found: AnnData, meta: Mapping[str, Any], mpp: float | None) -> float | None:
    """Diameter of spots in pixels of the slide: of the counts, else of the metadata; `None` if unknown."""
    libraries = dict(found.uns.get(_keys.SPATIAL, {})).values()
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
        logger.info(
            "The metadata of %r name neither study nor patient, so `obs` has no column 'donor'. Pass `donor=`: a "
            "reference needs it.",
            sample,
        )
        return None
    if patient is None:
        logger.info(
            "The metadata of %r name no patient: all sections of the study %r count as one donor, so that none is "
            "predicted from another of the same patient. Pass `donor=` if you know better.",
            sample,
            study,
        )
    return f"{study or _keys.UNKNOWN}: {patient or 'patient not stated'}"
