"""Small made files in the place of those that an entry of the catalogue lists, role by role."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..io import layouts
from ..io.slides import paint, write_hest, write_pyramid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def packed(files: Mapping[str, Path], kind: str) -> bytes:
    """An archive of files by the names that they have in it."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for name, path in files.items():
                archive.write(path, name)
    else:
        with tarfile.open(fileobj=out, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, path in files.items():
                archive.add(path, name)
    return out.getvalue()


def _within(folder: Path, prefix: str = "") -> dict[str, Path]:
    return {f"{prefix}{path.relative_to(folder)}": path for path in sorted(folder.rglob("*")) if path.is_file()}


def _st(folder: Path, role: str, name: str) -> bytes:
    made = folder if (folder / "he.jpg").is_file() else layouts.write_st(folder, seed=1)
    if role == "image":
        return (made / "he.jpg").read_bytes()
    if role == "coordinates":
        return (made / "selection.tsv").read_bytes()
    if role == "transformation":
        step = layouts.ST_PITCH_UM / layouts.ST_MPP
        return f"{step} 0 0 0 {step} 0 {-step} {-2 * step} 1".encode()
    content = (made / "counts.tsv.gz").read_bytes()
    return (
        content
        if name.endswith(".gz")
        else pd.read_csv(io.BytesIO(content), sep="\t", index_col=0, compression="gzip").to_csv(sep="\t").encode()
    )


def _visium(folder: Path, role: str, name: str) -> bytes:
    made = folder if (folder / "he.tif").is_file() else layouts.write_visium(folder, seed=1)
    spatial = made / "outs" / "spatial"
    if role == "counts" and name.endswith(".h5"):
        return (made / "outs" / "filtered_feature_bc_matrix.h5").read_bytes()
    if role == "counts":
        return _visium_h5ad(made)
    if role == "image":
        return _picture(made / "he.tif", name)
    if role == "positions":
        return pd.read_csv(spatial / "tissue_positions.csv").to_csv(header=False, index=False).encode()
    if role == "scalefactors":
        return (spatial / "scalefactors_json.json").read_bytes()
    return packed(_within(spatial, "spatial/"), "tar.gz")


def _picture(path: Path, name: str) -> bytes:
    from PIL import Image

    if not name.endswith((".jpg", ".jpeg")):
        return path.read_bytes()
    out = io.BytesIO()
    Image.open(path).save(out, "JPEG", quality=95)
    return out.getvalue()


def _visium_h5ad(made: Path) -> bytes:
    """As packagers put a section of Visium into one file: positions in pixels, scale factors, no picture."""
    import scanpy as sc

    table = sc.read_10x_h5(made / "outs" / "filtered_feature_bc_matrix.h5")
    positions = pd.read_csv(made / "outs" / "spatial" / "tissue_positions.csv", index_col=0).loc[table.obs_names]
    table.obsm["spatial"] = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    scales = json.loads((made / "outs" / "spatial" / "scalefactors_json.json").read_text())
    table.uns["spatial"] = {"section": {"scalefactors": scales}}
    table.write_h5ad(made / "all.h5ad")
    return (made / "all.h5ad").read_bytes()


def _visium_hd(folder: Path, role: str, name: str) -> bytes:
    made = folder if (folder / "feature_slice.h5").is_file() else layouts.write_visium_hd(folder, seed=1, bin_um=16)
    if role == "image":
        return (made / "microscope_image" / "he.tif").read_bytes()
    part = made / "binned_outputs"
    return packed(_within(part, "binned_outputs/") if role == "bins" else _within(part, "spatial/"), "tar.gz")


def _xenium(folder: Path, role: str, name: str) -> bytes:
    made = folder if (folder / "experiment.xenium").is_file() else layouts.write_xenium(folder, seed=1)
    if role == "image":
        return (made / "slide_he_image.ome.tif").read_bytes()
    if role == "alignment":
        return (made / "slide_he_imagealignment.csv").read_bytes()
    return packed({n: p for n, p in _within(made).items() if not n.startswith("slide_he_")}, "zip")


def _hest(folder: Path, role: str, name: str) -> bytes:
    sample = Path(name).stem
    if not (folder / name).is_file():
        write_hest(folder, sample)
    return (folder / name).read_bytes()


def _slide(folder: Path, role: str, name: str) -> bytes:
    return write_pyramid(folder / "slide.tif", paint(1, 300, 300), mpp=None).read_bytes()


_WRITERS: dict[str, Callable[[Path, str, str], bytes]] = {
    "st_tsv": _st,
    "st_h5ad": _visium,
    "visium": _visium,
    "visium_hd": _visium_hd,
    "xenium": _xenium,
    "hest": _hest,
    "slide": _slide,
    "h5ad": _visium,
}
# What the pictures of the layouts have; of a slide the catalogue's own number holds.
MADE_MPP = {"st_tsv": layouts.ST_MPP, "st_h5ad": layouts.VISIUM_MPP, "visium": layouts.VISIUM_MPP}
MADE_MPP |= {"visium_hd": layouts.HD_MPP, "xenium": layouts.XENIUM_HE_MPP, "hest": 2.0}


class Deposits:
    """Files of entries, made once for each layout and role."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[tuple[Any, ...], bytes] = {}

    def files(self, entry: Mapping[str, Any], sample: str) -> dict[str, bytes]:
        """Content of the files of a section, by the names that the catalogue lists."""
        loader, found = entry["loader"], {}
        for role, name in entry["samples"][sample]["files"].items():
            # The ending decides what is written; HEST names its files by the section.
            key = (loader, role, name if loader == "hest" else "".join(Path(name).suffixes))
            writer = partial(_WRITERS[loader], self.root / _WRITERS[loader].__name__)
            if key not in self._made:
                (self.root / _WRITERS[loader].__name__).mkdir(exist_ok=True)
                self._made[key] = writer(role, name)
            found[name] = self._made[key]
        return found
