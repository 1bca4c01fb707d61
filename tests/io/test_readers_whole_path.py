"""From instrument files to a predicted table that squidpy takes: two donors measured, a third predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import spatialdata as sd
import squidpy as sq
from spatialdata.models import TableModel

import ragst_sd as rg

from . import layouts
from .painting import GENES, N_GENES


@dataclass(frozen=True)
class Keys:
    """Names of the elements that a reader made, and how the image gets its resolution."""

    layout: str
    image: str
    shapes: str
    table: str
    frame: str | None
    resolution: dict[str, Any]
    """Arguments of `set_image_mpp`; none where the reader keeps the resolution."""
    tile_px: int
    mpp: float
    expected_mpp: float


CASES = {
    "st": Keys("st", "he", "spots", "table", "global", {}, 64, 2.0, layouts.ST_MPP),
    "visium": Keys(
        "visium", "{}_full_image", "{}", "table", "{}", {"um_between_centers": 100.0}, 64, 1.0, layouts.VISIUM_MPP
    ),
    "visium hires": Keys(
        "visium", "{}_hires_image", "{}", "table", "{}_downscaled_hires", {"um_between_centers": 100.0}, 64, 1.0,
        layouts.VISIUM_MPP / layouts.VISIUM_HIRES,
    ),
    "visium hd": Keys(
        "visium_hd", "{}_full_image", "{}_square_008um", "square_008um", None, {"um_between_centers": 8.0}, 64, 0.5,
        layouts.HD_MPP,
    ),
    "xenium": Keys(
        "xenium", "he_image", "cell_circles", "table", "global", {"mpp": layouts.XENIUM_HE_MPP}, 64, 0.5,
        layouts.XENIUM_HE_MPP,
    ),
    "xenium polygons": Keys(
        "xenium", "he_image", "cell_boundaries", "table", "global", {"mpp": layouts.XENIUM_HE_MPP}, 64, 0.5,
        layouts.XENIUM_HE_MPP,
    ),
}  # fmt: skip


def _named(keys: Keys, name: str) -> dict[str, Any]:
    return {
        "image_key": keys.image.format(name),
        "shapes_key": keys.shapes.format(name),
        "coordinate_system": None if keys.frame is None else keys.frame.format(name),
    }


# Sections that we read ourselves; those that spatialdata-io reads take long, and `test_readers.py` notices first.
QUICK = ("st",)


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES])
def keys(request) -> Keys:
    return CASES[request.param]


@pytest.fixture
def predicted(keys, section):
    """The third donor's section with its prediction, and the reference of the first two."""
    sdatas = {}
    for seed in (1, 2, 3):
        sdata, named = section(keys.layout, seed), _named(keys, f"s{seed}")
        table = sdata.tables[keys.table]
        table.obs["donor"] = f"donor{seed}"
        if keys.shapes == "cell_boundaries":
            table.obs["region"] = "cell_boundaries"
            sdata.tables[keys.table] = TableModel.parse(
                table, region="cell_boundaries", region_key="region", instance_key="cell_id", overwrite_metadata=True
            )
        if "mpp" in keys.resolution:
            rg.pp.set_image_mpp(sdata, image_key=named["image_key"], **keys.resolution)
        elif keys.resolution:
            rg.pp.set_image_mpp(sdata, **named, **keys.resolution)
        rg.pp.embed_tiles(
            sdata, **named, table_key=keys.table, model="texture", tile_px=keys.tile_px, mpp=keys.mpp, progress=False
        )
        sdatas[f"s{seed}"] = sdata
    query = sdatas.pop("s3")
    reference = rg.tl.build_reference(sdatas, use_rep="X_texture", table_key=keys.table, donor_key="donor")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference, table_key=keys.table, use_rep="X_texture")
    return query, reference


def test_whole_path(keys, predicted, tmp_path):
    query, reference = predicted
    measured, table = query.tables[keys.table], query.tables["predicted"]
    named = _named(keys, "s3")

    mpp = query.attrs["ragst"]["image_mpp"][named["image_key"]]
    assert mpp == pytest.approx(keys.expected_mpp, rel=0.03)
    assert set(reference.obs["donor"]) == {"donor1", "donor2"}
    assert table.shape == measured.shape
    assert set(table.var_names) == set(GENES)
    assert np.isfinite(np.asarray(table.X)).all()
    assert table.uns["spatialdata_attrs"]["region"] == named["shapes_key"]
    rows = table.obsm["retrieval_rows"]
    assert rows.shape == (table.n_obs, 10)
    assert (rows >= 0).all()

    # Genes of the two tissues follow the picture; genes that both tissues share cannot.
    truth = np.log1p(measured.X.toarray() / np.asarray(measured.X.sum(1)) * 1e4)
    order = table.var_names.get_indexer(measured.var_names)
    guess = np.asarray(table.X)[:, order]
    correlation = np.array([np.corrcoef(truth[:, j], guess[:, j])[0, 1] for j in range(N_GENES)])
    kind = np.arange(N_GENES) % 3
    assert np.median(correlation[kind != 2]) > 0.6
    assert abs(np.median(correlation[kind == 2])) < 0.1

    query.write(tmp_path / "section.zarr")
    back = sd.read_zarr(tmp_path / "section.zarr")
    again = back.tables["predicted"]
    np.testing.assert_array_equal(np.asarray(again.X), np.asarray(table.X))
    np.testing.assert_array_equal(again.obsm["retrieval_rows"], rows)
    assert back.attrs["ragst"]["image_mpp"][named["image_key"]] == pytest.approx(mpp)

    frame = named["coordinate_system"] or "s3"
    sq.gr.spatial_neighbors_knn(
        back, elements_to_coordinate_systems={named["shapes_key"]: frame}, table_key="predicted", n_neighs=6
    )
    sq.gr.spatial_autocorr(
        back, table_key="predicted", mode="moran", genes=GENES[:9], n_perms=None, show_progress_bar=False
    )
    moran = back.tables["predicted"].uns["moranI"]["I"]
    assert moran.loc[["Gene000", "Gene001", "Gene003", "Gene004"]].min() > 0.1
