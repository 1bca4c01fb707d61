"""Writers of small slide files, and of sections in the layout of HEST."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import tifffile

from .painting import GENES, Tissue, affine

if TYPE_CHECKING:
    from pathlib import Path

MPP = 0.5
HEST_MPP = 2.0
HEST_PITCH_UM, HEST_DIAMETER_UM = 100.0, 55.0
PATCH_UM = 112.0


def write_pyramid(
    path: Path, pixels: np.ndarray, *, mpp: float | None = MPP, levels: int = 3, ome: bool = False
) -> Path:
    """Tiled TIFF with a pyramid of strided levels: as pages one after the other, or as SubIFDs of an OME-TIFF."""
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}
    if mpp is not None and not ome:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    coarser = [pixels[:: 2**k, :: 2**k] for k in range(1, levels)]
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        if ome:
            size = {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
            tiff.write(pixels, subifds=len(coarser), metadata={"axes": "YXS", **size}, **options)
        else:
            tiff.write(pixels, metadata=None, **options)
        for level in coarser:
            tiff.write(level, subfiletype=1, metadata=None, **options)
    return path


def paint(seed: int, height: int, width: int, mpp: float = MPP) -> np.ndarray:
    """H&E of a tissue on a bright margin, y x c."""
    pixels = Tissue(seed).paint((height, width), affine(mpp))
    pixels[:, : width // 8] = 244
    return pixels


def write_hest(
    folder: Path, sample: str, *, seed: int = 1, edge: int = 10, mpp: float = HEST_MPP, meta: dict | None = None
) -> Path:
    """One section: `st/<sample>.h5ad`, `wsis/<sample>.tif`, `metadata/<sample>.json` with NaN for what is unknown."""
    for kind in ("st", "wsis", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    row, column = np.divmod(np.arange(edge * edge), edge)
    um = (np.column_stack([column, row]) + 1) * HEST_PITCH_UM
    size = int((edge + 1) * HEST_PITCH_UM / mpp)
    write_pyramid(folder / "wsis" / f"{sample}.tif", Tissue(seed, 600.0).paint((size, size), affine(mpp)), mpp=mpp)
    names = [f"{r:03d}x{c:03d}" for r, c in zip(row, column, strict=True)]
    obs = pd.DataFrame({"in_tissue": True, "array_row": row, "array_col": column}, index=names)
    table = ad.AnnData(Tissue(seed, 600.0).counts(um, 4000).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    table.obsm["spatial"] = um / mpp
    library = {
        "images": {"downscaled_fullres": np.zeros((4, 4, 3), np.uint8)},
        "scalefactors": {"spot_diameter_fullres": HEST_DIAMETER_UM / mpp, "tissue_downscaled_fullres_scalef": 0.1},
    }
    table.uns["spatial"] = {"ST": library}
    table.write_h5ad(folder / "st" / f"{sample}.h5ad")
    known = {
        "id": sample,
        "dataset_title": "Atlas of drawn tissue",
        "study_link": "https://example.org/study",
        "organ": "Breast",
        "tissue": "Breast",
        "species": "Homo sapiens",
        "st_technology": "Visium",
        "patient": "Patient 1",
        "license": float("nan"),
        "pixel_size_um_embedded": float("nan"),
        "pixel_size_um_estimated": mpp,
        "spot_diameter": HEST_DIAMETER_UM,
        "inter_spot_dist": HEST_PITCH_UM,
    }
    (folder / "metadata" / f"{sample}.json").write_text(json.dumps(known | (meta or {})))
    return folder


def write_patches(
    folder: Path, sample: str, *, seed: int = 1, edge: int = 10, meta: dict | None = None, enlarged: int = 4
) -> Path:
    """`patches/<sample>.h5` of a section that `write_hest` writes, in another order than `st/`.

    Pictures of 112 microns; with `enlarged` 4 they have 224 pixels of 0.5 microns, as those of HEST.
    """
    write_hest(folder, sample, seed=seed, edge=edge, meta=meta)
    table = ad.read_h5ad(folder / "st" / f"{sample}.h5ad")
    slide = tifffile.imread(folder / "wsis" / f"{sample}.tif")
    rows = np.random.default_rng(seed).permutation(table.n_obs)
    px = int(PATCH_UM / HEST_MPP)
    corners = table.obsm["spatial"][rows].astype(int) - px // 2
    pictures = np.stack([slide[y : y + px, x : x + px] for x, y in corners])
    (folder / "patches").mkdir(exist_ok=True)
    with h5py.File(folder / "patches" / f"{sample}.h5", "w") as file:
        file["img"] = pictures.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
        file["coords"] = corners
        file["barcode"] = np.array(table.obs_names[rows], dtype="S")[:, None]
    return folder


def write_geojson(path: Path, boxes: dict[str, tuple[float, float, float, float]]) -> Path:
    """Rectangles (left, top, right, bottom) by class, as QuPath exports annotations."""
    features = [
        {
            "type": "Feature",
            "id": f"00000000-0000-0000-0000-{k:012d}",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": [200, 0, 0]},
                "isLocked": True,
            },
        }
        for k, (name, (x0, y0, x1, y1)) in enumerate(boxes.items())
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
