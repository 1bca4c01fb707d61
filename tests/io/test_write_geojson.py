"""Predictions as detections of QuPath."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData, deepcopy
from spatialdata.models import PointsModel
from spatialdata.transformations import Scale, get_transformation, set_transformation

import ragst_sd as rg


@pytest.fixture(scope="module")
def predicted():
    sections = rg.datasets.synthetic(n_donors=3, image_px=400)
    rg.pp.embed_tiles(sections, model=lambda tiles: tiles.float().mean((2, 3)), key_added="X_colour", progress=False)
    query = sections.pop("donor3")
    reference = rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(query, reference)
    return query


def read(path):
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["type"] == "FeatureCollection"
    return content["features"]


def test_spots(predicted, tmp_path):
    table = predicted.tables["predicted"]
    genes = list(table.var_names[[3, 1]])
    rg.io.write_geojson(predicted, tmp_path / "out.geojson", genes=genes)
    features = read(tmp_path / "out.geojson")
    assert [one["properties"]["name"] for one in features] == list(table.obs_names)
    assert {one["properties"]["objectType"] for one in features} == {"detection"}
    values = np.array([[one["properties"]["measurements"][gene] for gene in genes] for one in features])
    np.testing.assert_allclose(values, np.asarray(table[:, genes].X), rtol=1e-5)
    flagged = [one["properties"]["measurements"]["out_of_reference"] for one in features]
    assert flagged == table.obs["out_of_reference"].astype(float).tolist()
    outlines = [shapely.geometry.shape(one["geometry"]) for one in features]
    centers = np.array([outline.centroid.coords[0] for outline in outlines])
    np.testing.assert_allclose(centers, table.obsm["spatial"], atol=0.02)
    radius = predicted["spots"]["radius"].iloc[0]
    np.testing.assert_allclose([outline.bounds[2] - outline.bounds[0] for outline in outlines], 2 * radius, rtol=0.01)


def test_what_is_written_is_read(predicted, tmp_path):
    table = predicted.tables["predicted"]
    rg.io.write_geojson(predicted, tmp_path / "out.geojson", genes=table.var_names[0])
    rg.io.read_annotations(predicted, tmp_path / "out.geojson", key_added="again")
    again = predicted.shapes.pop("again")
    assert again["name"].tolist() == list(table.obs_names)


def test_pixels_of_the_image_in_any_frame(predicted, tmp_path):
    sdata = deepcopy(predicted)
    gene = sdata.tables["predicted"].var_names[0]
    rg.io.write_geojson(sdata, tmp_path / "before.geojson", genes=gene)
    # Shapes in microns: the image is scaled, and so are they.
    for name in ("he", "spots"):
        set_transformation(sdata[name], Scale([0.5, 0.5], ("x", "y")), "global")
    rg.io.write_geojson(sdata, tmp_path / "after.geojson", genes=gene)
    assert read(tmp_path / "after.geojson") == read(tmp_path / "before.geojson")
    set_transformation(sdata["he"], Scale([0.25, 0.25], ("x", "y")), "global")
    rg.io.write_geojson(sdata, tmp_path / "finer.geojson", genes=gene)
    first, finer = (
        shapely.geometry.shape(read(tmp_path / f"{name}.geojson")[0]["geometry"]) for name in ("before", "finer")
    )
    np.testing.assert_allclose(finer.bounds, 2 * np.array(first.bounds), atol=0.05)


def test_points_become_small_circles(predicted, tmp_path):
    circles = predicted["spots"]
    places = pd.DataFrame({"x": circles.geometry.x, "y": circles.geometry.y}, index=circles.index)
    points = PointsModel.parse(places, transformations=get_transformation(circles, get_all=True))
    tables = {"predicted": predicted.tables["predicted"].copy()}
    sdata = SpatialData(images=dict(predicted.images), points={"spots": points}, tables=tables)
    rg.io.write_geojson(sdata, tmp_path / "out.geojson", genes=tables["predicted"].var_names[0])
    outlines = [shapely.geometry.shape(one["geometry"]) for one in read(tmp_path / "out.geojson")]
    centers = np.array([outline.centroid.coords[0] for outline in outlines])
    np.testing.assert_allclose(centers, tables["predicted"].obsm["spatial"], atol=0.02)
    assert not any(one.intersects(other) for k, one in enumerate(outlines) for other in outlines[:k])


def test_spots_without_prediction_are_left_out(predicted, tmp_path, caplog):
    sdata = predicted
    table = sdata.tables["predicted"].copy()
    bare = table[:4].copy()
    bare.X[1] = np.nan
    part = SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"predicted": bare})
    with caplog.at_level("INFO"):
        rg.io.write_geojson(part, tmp_path / "out.geojson", genes=list(bare.var_names[:2]))
    assert len(read(tmp_path / "out.geojson")) == 3
    assert "1 of 4 spots have no prediction" in caplog.text


def test_files_that_are_there(predicted, tmp_path):
    path, gene = tmp_path / "out.geojson", predicted.tables["predicted"].var_names[0]
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="Pass `overwrite=True`"):
        rg.io.write_geojson(predicted, path, genes=gene)
    assert path.read_text() == "mine"
    rg.io.write_geojson(predicted, path, genes=gene, overwrite=True)
    assert read(path)


def test_unknown_gene(predicted, tmp_path):
    with pytest.raises(KeyError, match="nothing_like_it"):
        rg.io.write_geojson(predicted, tmp_path / "out.geojson", genes="nothing_like_it")
    assert not (tmp_path / "out.geojson").exists()
