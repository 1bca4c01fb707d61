"""A small section as it is deposited: a picture, a table of counts, a table of positions, an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from xarray import DataArray

if TYPE_CHECKING:
    from spatialdata import SpatialData

WIDTH, HEIGHT = 420, 300
PITCH, MPP = 40.0, 5.0
N_GENES = 6


def make_picture() -> np.ndarray:
    """Noise, y x c."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def make_positions() -> pd.DataFrame:
    """Layout of the spot files of HER2+ ST: array x and y, adjusted, in pixels, and whether under the tissue."""
    x, y = np.meshgrid(np.arange(3, 11), np.arange(4, 10))
    table = pd.DataFrame({"x": x.ravel(), "y": y.ravel()})
    table["new_x"], table["new_y"] = table["x"] + 0.01, table["y"] - 0.02
    table["pixel_x"], table["pixel_y"] = (table["x"] - 2) * PITCH, (table["y"] - 3) * PITCH
    table["selected"] = 1
    return table


def make_counts(positions: pd.DataFrame) -> pd.DataFrame:
    """Spots x genes, spots named `<x>x<y>`, in another order than their positions."""
    values = np.random.default_rng(1).poisson(2.0, (len(positions), N_GENES))
    names = positions["x"].astype(str) + "x" + positions["y"].astype(str)
    return pd.DataFrame(values, index=list(names), columns=[f"GENE{i}" for i in range(N_GENES)]).iloc[::-1]


def make_adata(counts: pd.DataFrame, positions: pd.DataFrame) -> ad.AnnData:
    """The section as an h5ad file holds it, with everything that may be known of it."""
    found = ad.AnnData(
        csr_matrix(counts.to_numpy(np.float32)), obs=pd.DataFrame(index=[f"C2_{n}" for n in counts.index])
    )
    found.var_names = counts.columns
    found.obs["label"] = np.where(np.arange(found.n_obs) % 2, "tumour", "stroma")
    found.obsm["spatial"] = positions[["pixel_x", "pixel_y"]].to_numpy(float)[::-1].copy()
    found.uns["meta"] = {
        "um_per_px": MPP,
        "patient": "C",
        "section": "C2",
        "tissue": "breast",
        "technology": "ST 1k",
        "licence": "CC BY 4.0",
        "source": "Andersson 2021",
    }
    found.uns["spatial"] = {"C2": {"scalefactors": {"spot_diameter_fullres": 17.0}}}
    return found


def pixels_of(sdata: SpatialData) -> np.ndarray:
    """Full-resolution pixels of the picture, c y x."""
    image = sdata["he"]
    return np.asarray(image.data if isinstance(image, DataArray) else image["scale0"]["image"].data)
