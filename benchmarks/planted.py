"""Made-up sections of any size in which a few directions of the embedding say something about expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import ragst_sd as rg

if TYPE_CHECKING:
    from anndata import AnnData

USE_REP, N_HIDDEN, PITCH_UM = "X_planted", 12, 100.0


def planted(
    rows: int, *, features: int = 1536, genes: int = 18_000, donors: int = 4, rng: int = 0
) -> dict[str, SpatialData]:
    """One section for each donor, `rows` spots in all; a spot has counts of about a fifth of the genes."""
    random = np.random.default_rng(rng)
    seen = random.normal(size=(N_HIDDEN, features))
    spoken = 0.4 * random.normal(size=(N_HIDDEN, genes)).astype(np.float32)
    level = random.normal(-2.6, 1.6, genes).astype(np.float32)
    sections = {}
    for i, of_donor in enumerate(np.array_split(np.arange(rows), donors)):
        n, side = len(of_donor), int(np.ceil(np.sqrt(len(of_donor))))
        hidden = random.normal(size=(n, N_HIDDEN))
        embedding = hidden @ seen + 4 * random.normal(size=(n, features))
        own = level + 0.2 * random.normal(size=genes).astype(np.float32)
        counts = random.poisson(np.exp(np.minimum(own + hidden.astype(np.float32) @ spoken, 6)))
        xy = PITCH_UM * np.stack(np.divmod(np.arange(n), side)[::-1], axis=1)
        sections[f"donor{i + 1}"] = _section(f"donor{i + 1}", counts, embedding.astype(np.float32), xy)
    return sections


def planted_reference(sections: dict[str, SpatialData]) -> AnnData:
    """Their reference."""
    return rg.tl.build_reference(sections, use_rep=USE_REP, thumbnails=False)


def _section(donor: str, counts: np.ndarray, embedding: np.ndarray, xy: np.ndarray) -> SpatialData:
    index = pd.RangeIndex(len(xy))
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "spot": index, "donor": donor})
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(counts.shape[1])])
    table = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var, obsm={"spatial": xy})
    table.obsm[USE_REP] = embedding
    header = _header() | {
        "section_mean": embedding.mean(axis=0, dtype=np.float64),
        "section_std": embedding.std(axis=0, dtype=np.float64),
        "n_spots": len(xy),
        "image_hash": donor,
    }
    table.uns["ragst"] = {"embeddings": {USE_REP: header}}
    return SpatialData(
        shapes={"spots": ShapesModel.parse(xy, geometry=0, radius=PITCH_UM / 4)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
        attrs={"ragst": {"image_mpp": {"he": 1.0}}},
    )


def _header() -> dict:
    """What `embed_tiles` writes about an embedding, of a picture of 100 px."""
    (sdata,) = rg.datasets.synthetic(n_donors=1, n_genes=260, image_px=300, mpp=1.0).values()
    rg.pp.embed_tiles(sdata, model="texture", context=(1,), progress=False)
    return dict(sdata.tables["table"].uns["ragst"]["embeddings"]["X_texture"])
