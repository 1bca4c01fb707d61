"""Real Xenium cells, as the package reads a plain picture and as spatialdata-io lays them out, run the whole path alike."""

from __future__ import annotations

import numpy as np
import pytest
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Scale

import ragst_sd as rg

from .layouts import XENIUM_PIXEL_UM

pytestmark = pytest.mark.slow


@pytest.fixture
def plain(data_dir):
    path = data_dir / "histology" / "lung_xenium_toy" / "NCBI858.h5ad"
    return rg.io.read_st(path, path.with_suffix(".jpg"), donor="patient_24")


@pytest.fixture
def xenium(plain):
    """The same with outlines in microns, and "global" in pixels of the morphology image."""
    mpp = plain.attrs["ragst"]["image_mpp"]["he"]
    table = plain.tables["table"].copy()
    pixels = plain.images["he"].to_numpy()
    to_global = Affine(np.diag([mpp, mpp, XENIUM_PIXEL_UM]) / XENIUM_PIXEL_UM, ("x", "y"), ("x", "y"))
    spots = plain.shapes["spots"]
    outlines = GeoDataFrame(geometry=spots.affine_transform([mpp, 0, 0, mpp, 0, 0]).buffer(5.0), index=spots.index)
    in_pixels = Scale([1 / XENIUM_PIXEL_UM] * 2, ("x", "y"))
    table.obs["region"], table.obs["cell_id"] = "cell_boundaries", table.obs["spot_id"].to_numpy()
    table.obsm["spatial"] = table.obsm["spatial"] * mpp
    sdata = SpatialData(
        images={"he_image": Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": to_global})},
        shapes={
            "cell_boundaries": ShapesModel.parse(outlines, transformations={"global": in_pixels}),
        },
        tables={
            "table": TableModel.parse(
                table, region="cell_boundaries", region_key="region", instance_key="cell_id", overwrite_metadata=True
            )
        },
    )
    rg.pp.set_image_mpp(sdata, image_key="he_image", mpp=mpp)
    return sdata


def test_whole_path(plain, xenium, tmp_path):
    for sdata in (plain, xenium):
        rg.pp.embed_tiles(sdata, tile_px=112, mpp=0.5, context=(1,), progress=False)
    np.testing.assert_allclose(plain["table"].obsm["X_texture"], xenium["table"].obsm["X_texture"], atol=1e-5)

    reference = rg.tl.build_reference({"core": xenium}, use_rep="X_texture")
    rg.tl.fit(reference, method="knn", n_neighbors=20, progress=False)
    rg.tl.calibrate(reference, levels=[0.5], progress=False)
    ceiling = reference.var["noise_ceiling"].dropna()
    assert 0.3 < ceiling.mean() < 0.9
    assert (reference.var["cv_pearson"].dropna() < 0.95).all()

    # There is one donor only: every other cell is predicted from the rest.
    reference = reference[::2].copy()
    rg.tl.fit(reference, method="knn", n_neighbors=20, progress=False)
    rg.tl.predict(xenium, reference, exclude=())
    table = xenium["predicted"]
    assert table.obs["measured"].sum() == reference.n_obs
    scores = rg.tl.evaluate(xenium, metrics=["pearson"])
    assert scores.loc[scores["metric"] == "pearson", "value"].mean() > 0, "other cells of the section are cited"
    lines = rg.get.explain(xenium, reference, obs_names=table.obs_names[0], genes=table.var_names[0])
    assert lines["contribution"].sum() == pytest.approx(float(table.X[0, 0]), rel=1e-5)
    rg.pl.retrieval(
        xenium, reference, obs_names=table.obs_names[0], genes=table.var_names[0], save=tmp_path / "c.png", show=False
    )
