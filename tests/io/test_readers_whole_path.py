"""From instrument files to a predicted table that squidpy takes: two donors measured, a third predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import squidpy as sq

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
    "visium hd cells": Keys(
        "visium_hd_cells", "{}_full_image", "{}_cell_segmentations", "cell_segmentations", None,
        {"shapes_key": "{}_square_008um", "um_between_centers": 8.0}, 64, 0.5, layouts.HD_MPP,
    ),
    "xenium": Keys(
        "xenium", "he_image", "cell_circles", "table", "global", {"mpp": layouts.XENIUM_HE_MPP}, 64, 0.5,
        layouts.XENIUM_HE_MPP,
    ),
    "xenium polygons": Keys(
        "xenium_by_default", "he_image", "cell_boundaries", "table", "global", {"mpp": layouts.XENIUM_HE_MPP}, 64, 0.5,
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
            # By default the table annotates labels.
            table.obs["region"] = pd.Categorical([keys.shapes] * len(table))
            sdata.set_table_annotates_spatialelement(keys.table, region=keys.shapes, instance_key="cell_id")
        if keys.resolution:
            given = {k: v.format(f"s{seed}") if isinstance(v, str) else v for k, v in keys.resolution.items()}
            of_shapes = {} if "mpp" in given else named
            rg.pp.set_image_mpp(sdata, **{**of_shapes, "image_key": named["image_key"], **given})
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

    scores = rg.tl.evaluate(query, metrics=["pearson", "share_of_ceiling"])
    per_gene = scores[scores["metric"] == "pearson"].set_index("gene")["value"]
    expected = pd.Series(correlation, measured.var_names)[per_gene.index]
    np.testing.assert_allclose(per_gene, expected, atol=0.002)
    spot = table.obs_names[7]
    rg.io.write_reference(reference, tmp_path / "reference.zarr.zip")
    reference = rg.io.read_reference(tmp_path / "reference.zarr.zip")
    lines = rg.get.explain(query, reference, obs_names=spot, genes="Gene000")
    assert lines["contribution"].sum() == pytest.approx(float(table[spot, "Gene000"].X[0, 0]), rel=1e-5)
    assert set(lines["donor"]) <= {"", "donor1", "donor2"}
    rg.pl.retrieval(query, reference, obs_names=spot, genes="Gene000", save=tmp_path / "spot.png", show=False)
    assert (tmp_path / "spot.png").stat().st_size > 10_000

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
