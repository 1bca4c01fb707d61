"""`rg.pl.viewer` at the size it promises: 20,000 spots and 200 genes under 30 MB, redrawn while one drags."""

from __future__ import annotations

import time

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd._reference import reference_hash

pytestmark = pytest.mark.slow

N_SPOTS, N_GENES, N_ROWS, N_CITED = 20_000, 200, 12_000, 50
SPACING = 20


def large_reference(fitted, rng):
    """Rows of the small reference, many times over, with values that differ."""
    rows = np.arange(N_ROWS) % fitted.n_obs
    counts = rng.poisson(rng.gamma(0.6, 2.0, (N_ROWS, N_GENES)))
    values = np.log1p(counts / rng.uniform(2_000, 9_000, (N_ROWS, 1)) * 10_000).astype(np.float32)
    reference = ad.AnnData(
        sp.csr_matrix(values),
        obs=fitted.obs.iloc[rows].copy(),
        var=fitted.var.iloc[:N_GENES].copy(),
        uns=fitted.uns.copy(),
    )
    reference.obs_names = [f"{sample}:barcode-{i}" for i, sample in enumerate(reference.obs["sample"].astype(str))]
    reference.varm["measured"] = np.asarray(fitted.varm["measured"])[:N_GENES]
    for name in ("X_colour", "thumbnail"):
        reference.obsm[name] = np.asarray(fitted.obsm[name])[rows]
    fit = reference.uns["ragst"]["fit"]
    fit["parameters"]["section_shifts"] = np.asarray(fit["parameters"]["section_shifts"])[:, :N_GENES]
    return reference


def large_query(predicted, reference, rng):
    """A section of 20,000 spots whose table looks like a predicted one with adjustment and intervals."""
    import geopandas as gpd
    from shapely import points
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    across = int(np.ceil(np.sqrt(N_SPOTS)))
    place = np.stack(np.divmod(np.arange(N_SPOTS), across)[::-1], axis=1)
    xy = (place + 0.5) * SPACING
    tissue = np.asarray(predicted.images["he"]["scale0"]["image"])
    copies = -(-across * SPACING // tissue.shape[1])
    picture = np.tile(tissue, (1, copies, copies))[:, : across * SPACING, : across * SPACING]
    small = predicted.tables["predicted"]
    wave = np.sin(place[:, :1] / rng.uniform(5, 30, N_GENES)) + np.cos(place[:, 1:] / rng.uniform(5, 30, N_GENES))
    evidence = np.abs(wave * 0.7 + rng.normal(1.5, 0.3, (N_SPOTS, N_GENES))).astype(np.float32)
    prediction = (evidence + rng.normal(0, 0.15, evidence.shape)).astype(np.float32)
    width = rng.uniform(0.3, 0.9, (1, N_GENES)) * (1 + 0.1 * rng.random((N_SPOTS, 1)))
    rows = np.argsort(rng.random((N_SPOTS, 200)), axis=1)[:, :N_CITED] * 60 + rng.integers(0, 60, (N_SPOTS, 1))
    weights = -np.sort(-rng.dirichlet(np.ones(N_CITED), N_SPOTS), axis=1)
    table = ad.AnnData(
        prediction,
        obs=small.obs.iloc[np.arange(N_SPOTS) % small.n_obs].copy(),
        var=small.var.iloc[:N_GENES].copy(),
        uns={"retrieval": dict(small.uns["retrieval"])},
        layers={"evidence": evidence, "lower": np.maximum(prediction - width, 0), "upper": prediction + width},
        obsm={"retrieval_rows": rows.astype(np.int32), "retrieval_weights": weights.astype(np.float32), "spatial": xy},
    )
    table.obsm["retrieval_distances"] = table.obsm["retrieval_weights"]
    table.obs_names = [f"spot_{i:05d}" for i in range(N_SPOTS)]
    table.obs["spot_id"] = np.arange(N_SPOTS)
    header = table.uns["retrieval"]
    cited = reference.obs[["donor", "sample", "tissue", "technology", "x_um", "y_um"]].copy()
    cited.insert(0, "reference", reference.obs_names)
    cited.index = cited.index.astype(str)
    header |= {
        "cited": cited,
        "reference_hash": reference_hash(reference),
        "interval_level": 0.9,
        "interval_unit": "donor",
    }
    return SpatialData(
        images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2])},
        shapes={"spots": ShapesModel.parse(gpd.GeoDataFrame({"radius": np.full(N_SPOTS, 8.0)}, geometry=points(xy)))},
        tables={
            "predicted": TableModel.parse(
                table, region="spots", region_key="region", instance_key="spot_id", overwrite_metadata=True
            )
        },
    )


@pytest.fixture(scope="module")
def large_path(tmp_path_factory):
    return tmp_path_factory.mktemp("viewer") / "viewer.html"


@pytest.fixture
def large(predicted, fitted, large_path):
    """The page, made once: path and seconds."""
    if not large_path.exists():
        rng = np.random.default_rng(0)
        reference = large_reference(fitted, rng)
        query = large_query(predicted, reference, rng)
        start = time.perf_counter()
        rg.pl.viewer(query, reference, path=large_path)
        large_path.with_suffix(".seconds").write_text(str(time.perf_counter() - start))
    return large_path


def test_page_of_20000_spots_and_200_genes_stays_under_30_mb(large):
    assert 10_000_000 < large.stat().st_size < 30_000_000
    assert float(large.with_suffix(".seconds").read_text()) < 120


def test_page_of_20000_spots_redraws_while_one_drags(large, open_page):
    page = open_page(large)
    map_ = page.locator("#map")
    box = map_.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    times = []
    for step in range(20):
        page.mouse.move(x + 5 + 4 * step, y + 3 * step)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        times.append(float(map_.get_attribute("data-redraw-ms")))
    page.mouse.up()
    # A frame is 16 ms; without a graphics card and on a busy machine it may take a few of them.
    assert np.median(times) < 100
    start = time.perf_counter()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#neighbours tbody tr")
    assert time.perf_counter() - start < 5
    assert page.locator("#neighbours tbody tr").count() == 12
