"""Writers of small files in the layouts of ST, Visium, Visium HD and Xenium, as their pipelines name and fill them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from PIL import Image

from .painting import GENES, Tissue, affine

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix

VISIUM_MPP = 1.0
VISIUM_PITCH_UM = 100.0
VISIUM_DIAMETER_UM = 55.0
VISIUM_HIRES = 0.5
VISIUM_LOWRES = 0.15

ST_MPP = 2.0
ST_PITCH_UM = 200.0

HD_MPP = 0.5
HD_BIN_UM = 8
HD_CELL_PITCH_UM = 12.0
HD_NO_CELL = 4

XENIUM_PIXEL_UM = 0.2125
XENIUM_HE_MPP = 0.5
XENIUM_CELL_PITCH_UM = 16.0
XENIUM_HE_TURN = 90.0


def write_10x_h5(path: Path, counts: csr_matrix, barcodes: list[str], *, library: str) -> None:
    """Matrix file of Cell Ranger 3 and later: genes x barcodes, compressed by barcode."""
    with h5py.File(path, "w") as file:
        file.attrs.update(
            chemistry_description="Custom", filetype="matrix", library_ids=np.array([library.encode()]), version=2
        )
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"] = counts.data.astype(np.int32)
        matrix["indices"] = counts.indices.astype(np.int64)
        matrix["indptr"] = counts.indptr.astype(np.int64)
        matrix["shape"] = np.array([counts.shape[1], counts.shape[0]], dtype=np.int32)
        features = matrix.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], dtype="S")
        features["name"] = np.array(GENES, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), dtype="S")


def write_visium(path: Path, *, seed: int, rows: int = 12, columns: int = 12) -> Path:
    """Outs folder of Space Ranger 2 for Visium, and the full-resolution picture as `he.tif` beside it."""
    tissue, (outs, spatial) = Tissue(seed, period_um=600.0), _folders(path, "outs", "outs/spatial")
    row, column = np.divmod(np.arange(rows * columns), columns)
    um = np.column_stack(
        [(column + 0.5 * (row % 2) + 1) * VISIUM_PITCH_UM, (row * np.sqrt(3) / 2 + 1) * VISIUM_PITCH_UM]
    )
    height, width = (int(um[:, k].max() / VISIUM_MPP + VISIUM_PITCH_UM / VISIUM_MPP) for k in (1, 0))
    picture = tissue.paint((height, width), affine(VISIUM_MPP))
    barcodes = [f"{_bases(i)}-1" for i in range(len(um))]
    in_tissue = np.arange(len(um)) != 5
    counts = tissue.counts(um, depth=4000)[in_tissue]
    write_10x_h5(
        outs / "filtered_feature_bc_matrix.h5",
        counts,
        [barcode for barcode, inside in zip(barcodes, in_tissue, strict=True) if inside],
        library=path.name,
    )
    pixels = np.rint(um / VISIUM_MPP).astype(int)
    pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": in_tissue.astype(int),
            "array_row": row,
            "array_col": 2 * column + row % 2,
            "pxl_row_in_fullres": pixels[:, 1],
            "pxl_col_in_fullres": pixels[:, 0],
        }
    ).to_csv(spatial / "tissue_positions.csv", index=False)
    scalefactors = {
        "spot_diameter_fullres": VISIUM_DIAMETER_UM / VISIUM_MPP,
        "fiducial_diameter_fullres": 144.0 / VISIUM_MPP,
        "tissue_hires_scalef": VISIUM_HIRES,
        "tissue_lowres_scalef": VISIUM_LOWRES,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(scalefactors))
    _shrunk(picture, VISIUM_HIRES).save(spatial / "tissue_hires_image.png")
    _shrunk(picture, VISIUM_LOWRES).save(spatial / "tissue_lowres_image.png")
    tifffile.imwrite(path / "he.tif", picture, photometric="rgb", tile=(256, 256))
    return path


def write_st(path: Path, *, seed: int, edge: int = 9) -> Path:
    """Counts, spot positions and picture of a Spatial Transcriptomics array, as they were deposited with HER2+ ST."""
    tissue, (folder,) = Tissue(seed, period_um=1200.0), _folders(path, ".")
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(edge * edge), edge)
    um = (np.column_stack([x, y]) + 1) * ST_PITCH_UM + rng.normal(0, 0.03 * ST_PITCH_UM, (len(x), 2))
    size = int((edge + 1) * ST_PITCH_UM / ST_MPP)
    Image.fromarray(tissue.paint((size, size), affine(ST_MPP))).save(folder / "he.jpg", quality=95)
    names = [f"{column + 2}x{row + 3}" for column, row in zip(x, y, strict=True)]
    counts = pd.DataFrame(tissue.counts(um, depth=3000).toarray(), index=names, columns=GENES)
    counts.to_csv(folder / "counts.tsv.gz", sep="\t")
    positions = pd.DataFrame({"x": x + 2, "y": y + 3, "new_x": x + 2.01, "new_y": y + 2.99})
    positions["pixel_x"], positions["pixel_y"] = (um / ST_MPP).round(2).T
    positions["selected"] = 1
    positions.to_csv(folder / "selection.tsv", sep="\t", index=False)
    return path


def write_visium_hd(path: Path, *, seed: int, bins: int = 16, bin_um: int = HD_BIN_UM) -> Path:
    """Outs folder of Space Ranger 3 for Visium HD with bins of one size, and the picture under `microscope_image`."""
    name = f"square_{bin_um:03d}um"
    tissue = Tissue(seed)
    outs, spatial, microscope = _folders(
        path, f"binned_outputs/{name}", f"binned_outputs/{name}/spatial", "microscope_image"
    )
    row, column = np.divmod(np.arange(bins * bins), bins)
    um = (np.column_stack([column, row]) + 6.5) * bin_um
    size = int((bins + 12) * bin_um / HD_MPP)
    picture = tissue.paint((size, size), affine(HD_MPP))
    barcodes = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    in_tissue = np.ones(len(um), int)
    in_tissue[:3] = 0
    kept = np.flatnonzero(in_tissue)
    write_10x_h5(
        outs / "filtered_feature_bc_matrix.h5",
        tissue.counts(um, depth=900)[kept],
        [barcodes[i] for i in kept],
        library=path.name,
    )
    pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": in_tissue,
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": um[:, 1] / HD_MPP,
            "pxl_col_in_fullres": um[:, 0] / HD_MPP,
        }
    ).to_parquet(spatial / "tissue_positions.parquet", index=False)
    scalefactors = {
        "spot_diameter_fullres": bin_um / HD_MPP,
        "bin_size_um": float(bin_um),
        "microns_per_pixel": HD_MPP,
        "regist_target_img_scalef": 0.5,
        "tissue_lowres_scalef": 0.2,
        "fiducial_diameter_fullres": 1000.0,
        "tissue_hires_scalef": 0.5,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(scalefactors))
    _shrunk(picture, 0.5).save(spatial / "tissue_hires_image.png")
    _shrunk(picture, 0.2).save(spatial / "tissue_lowres_image.png")
    tifffile.imwrite(microscope / "he.tif", picture, photometric="rgb", tile=(256, 256))

    unit = np.eye(3).ravel().tolist()
    frames = ("cytassist_colrow_to_spot_colrow", "spot_colrow_to_cytassist_colrow")
    frames += ("microscope_colrow_to_spot_colrow", "spot_colrow_to_microscope_colrow")
    metadata = {
        "hd_layout_json": json.dumps({"file_format": "1.0", "transform": unit}),
        "transform_matrices": dict.fromkeys(frames, unit),
    }
    with h5py.File(path / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
    return path


def write_visium_hd_cells(path: Path, *, seed: int, cells: int = 14, depth: float = 400) -> Path:
    """The same with the `segmented_outputs` of Space Ranger 4: an outline and counts for each cell; a few outlines have no counts."""
    write_visium_hd(path, seed=seed)
    outs, spatial = _folders(path, "segmented_outputs", "segmented_outputs/spatial")
    tissue, rng = Tissue(seed), np.random.default_rng(seed)
    row, column = np.divmod(np.arange(cells * cells), cells)
    um = (np.column_stack([column, row]) + 2.0 + rng.uniform(-0.35, 0.35, (len(row), 2))) * HD_CELL_PITCH_UM
    numbers = np.arange(len(um)) * 3 + 2
    angles = np.append(np.arange(12), 0) * np.pi / 6
    rings = (um[:, None] + 4.5 * np.column_stack([np.cos(angles), np.sin(angles)])) / HD_MPP
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
            "properties": {"cell_id": int(number), "classification": None},
        }
        for number, ring in zip(numbers, rings, strict=True)
    ]
    (outs / "cell_segmentations.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    write_10x_h5(
        outs / "filtered_feature_cell_matrix.h5",
        tissue.counts(um, depth=depth)[HD_NO_CELL:],
        [f"cellid_{number:09d}-1" for number in numbers[HD_NO_CELL:]],
        library=path.name,
    )
    binned = path / f"binned_outputs/square_{HD_BIN_UM:03d}um/spatial/scalefactors_json.json"
    scalefactors = json.loads(binned.read_text())
    for name in ("bin_size_um", "spot_diameter_fullres"):
        scalefactors.pop(name)
    (spatial / "scalefactors_json.json").write_text(json.dumps(scalefactors))
    return path


def write_xenium(path: Path, *, seed: int, cells: int = 16) -> Path:
    """Output folder of Xenium Onboard Analysis 3 with an H&E picture that is turned, scaled and shifted against it."""
    tissue, (_, focus) = Tissue(seed), _folders(path, ".", "morphology_focus")
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(cells * cells), cells)
    um = (np.column_stack([column, row]) + 2.0 + rng.uniform(-0.2, 0.2, (len(row), 2))) * XENIUM_CELL_PITCH_UM
    extent = (cells + 4) * XENIUM_CELL_PITCH_UM
    prefix = np.arange(len(um), dtype=np.uint32) * 7 + 3
    ids = [f"{_hex_letters(int(number))}-1" for number in prefix]
    counts = tissue.counts(um, depth=700)
    write_10x_h5(path / "cell_feature_matrix.h5", counts, ids, library=path.name)
    radius = {"cell": 6.0, "nucleus": 3.0}
    pd.DataFrame(
        {
            "cell_id": ids,
            "x_centroid": um[:, 0],
            "y_centroid": um[:, 1],
            "transcript_counts": np.asarray(counts.sum(1)).ravel(),
            "control_probe_counts": 0,
            "total_counts": np.asarray(counts.sum(1)).ravel(),
            "cell_area": np.pi * radius["cell"] ** 2,
            "nucleus_area": np.pi * radius["nucleus"] ** 2,
        }
    ).to_parquet(path / "cells.parquet", index=False)
    for kind, size in radius.items():
        _boundaries(um, ids, size).to_parquet(path / f"{kind}_boundaries.parquet", index=False)
    _cells_zarr(path, um, prefix, int(extent / XENIUM_PIXEL_UM))
    specs = {
        "major_version": 5,
        "analysis_sw_version": "xenium-3.0.0.15",
        "run_name": path.name,
        "region_name": "Region_1",
        "pixel_size": XENIUM_PIXEL_UM,
        "num_cells": len(um),
    }
    (path / "experiment.xenium").write_text(json.dumps(specs))
    dapi = rng.integers(0, 4000, (1, int(extent / XENIUM_PIXEL_UM), int(extent / XENIUM_PIXEL_UM)), dtype=np.uint16)
    tifffile.imwrite(focus / "morphology_focus_0000.ome.tif", dapi[0], ome=True, metadata={"axes": "YX"})

    # Turned by a right angle, the picture's x axis runs down the section: its origin is the section's right top corner.
    to_um = affine(XENIUM_HE_MPP, turn=XENIUM_HE_TURN, shift=(extent, 0.0))
    picture = tissue.paint((int(extent / XENIUM_HE_MPP),) * 2, to_um)
    he = path / "slide_he_image.ome.tif"
    tifffile.imwrite(he, picture, ome=True, photometric="rgb", tile=(256, 256), metadata={"axes": "YXS"})
    to_pixels = np.diag([1 / XENIUM_PIXEL_UM, 1 / XENIUM_PIXEL_UM, 1]) @ to_um
    np.savetxt(path / "slide_he_imagealignment.csv", to_pixels, delimiter=",")
    return path


def _folders(path: Path, *names: str) -> tuple[Path, ...]:
    folders = tuple(path / name for name in names)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def _bases(number: int) -> str:
    return "".join("ACGT"[(number >> 2 * k) % 4] for k in range(8, -1, -1)) + "ACGTACG"


def _hex_letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit, 16)) for digit in f"{number:08x}")


def _shrunk(picture: np.ndarray, factor: float) -> Image.Image:
    size = tuple(int(edge * factor) for edge in picture.shape[1::-1])
    return Image.fromarray(picture).resize(size, Image.Resampling.BOX)


def _boundaries(um: np.ndarray, ids: list[str], radius: float) -> pd.DataFrame:
    angles = np.linspace(0, 2 * np.pi, 13)
    ring = radius * np.column_stack([np.cos(angles), np.sin(angles)])
    vertices = (um[:, None] + ring).reshape(-1, 2).astype(np.float32)
    return pd.DataFrame(
        {
            "cell_id": np.repeat(ids, len(ring)),
            "vertex_x": vertices[:, 0],
            "vertex_y": vertices[:, 1],
            "label_id": np.repeat(np.arange(1, len(um) + 1), len(ring)),
        }
    )


def _cells_zarr(path: Path, um: np.ndarray, prefix: np.ndarray, size: int) -> None:
    masks = np.zeros((2, size, size), np.uint32)
    for label, (x, y) in enumerate(np.rint(um / XENIUM_PIXEL_UM).astype(int), start=1):
        for mask, reach in zip(masks, (10, 25), strict=True):
            mask[y - reach : y + reach, x - reach : x + reach] = label
    names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
    names += ["nucleus_area", "z_level", "nucleus_count"]
    summary = np.column_stack(
        [um, np.full(len(um), 113.0), um, np.full(len(um), 28.0), np.zeros(len(um)), np.ones(len(um))]
    )
    store = zarr.storage.ZipStore(path / "cells.zarr.zip", mode="w")
    group = zarr.open_group(store, mode="w", zarr_format=2)
    arrays = {
        "cell_id": np.column_stack([prefix, np.ones(len(um), np.uint32)]).astype(np.uint32),
        "cell_summary": summary,
    }
    arrays |= {f"masks/{k}": mask for k, mask in enumerate(masks)}
    arrays |= {f"polygon_sets/{k}/cell_index": np.arange(len(um), dtype=np.uint32) for k in (0, 1)}
    for name, values in arrays.items():
        attributes = {"column_names": names} if name == "cell_summary" else None
        group.create_array(name, data=values, attributes=attributes)
    store.close()
