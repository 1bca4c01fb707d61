"""Outlines as QuPath and TRIDENT write them."""

from __future__ import annotations

import gzip
import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, Sequence, Translation, get_transformation

import ragst_sd as rg

from .slides import paint, write_geojson

MPP = 0.25
# Tissue lies far from the corner that pixels count from, as on a slide.
BOXES = {"Tumor": (300, 250, 380, 380), "Stroma": (380, 250, 420, 400)}


@pytest.fixture(scope="module")
def slide():
    pixels = np.full((420, 440, 3), 244, np.uint8)
    pixels[220:400, 260:430] = paint(2, 180, 194)[:, 24:]
    to_global = Sequence([Scale([2.0, 2.0], ("x", "y")), Translation([10, 20], ("x", "y"))])
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"global": to_global})
    return image


@pytest.fixture
def sdata(slide):
    found = SpatialData(images={"he": slide})
    rg.pp.set_image_mpp(found, image_key="he", mpp=MPP)
    return found


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*corners):
    return {"type": "Polygon", "coordinates": [[*map(list, corners), list(corners[0])]]}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


TUMOR = polygon((300, 250), (380, 250), (380, 380), (300, 380))


def test_qupath(sdata, tmp_path):
    rg.io.read_annotations(sdata, write_geojson(tmp_path / "slide.geojson", BOXES))
    shapes = sdata.shapes["annotations"]
    assert shapes["classification"].tolist() == ["Tumor", "Stroma"]
    assert [outline.bounds for outline in shapes.geometry] == list(BOXES.values())
    assert get_transformation(shapes, "global") == get_transformation(sdata["he"], "global")


def test_ways_of_packing_and_naming(sdata, tmp_path):
    features = [
        feature(TUMOR, classification={"name": "Tumor", "colorRGB": -3670016}),
        feature(TUMOR, classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, name="upper left"),
        feature(TUMOR, objectType="annotation"),
    ]
    for k, content in enumerate((features, {"type": "FeatureCollection", "features": features})):
        rg.io.read_annotations(sdata, write(tmp_path / "a.geojson", content), key_added=f"found{k}")
        shapes = sdata.shapes[f"found{k}"]
        assert shapes["classification"].tolist() == ["Tumor", "Tumor: Positive", "unclassified"]
        assert shapes["name"].tolist() == ["", "upper left", ""]
    rg.io.read_annotations(sdata, write(tmp_path / "a.geojson", features[0]), key_added="single")
    packed = tmp_path / "a.geojson.gz"
    packed.write_bytes(gzip.compress(json.dumps(features).encode()))
    rg.io.read_annotations(sdata, packed, key_added="packed")
    assert (len(sdata.shapes["single"]), len(sdata.shapes["packed"])) == (1, 3)


def test_trident(sdata, tmp_path):
    hole = shapely.box(300, 250, 420, 390) - shapely.box(330, 280, 350, 300)
    contours = gpd.GeoDataFrame({"tissue_id": [0]}, geometry=[hole], crs="EPSG:3857")
    contours.to_file(tmp_path / "slide.geojson", driver="GeoJSON")
    rg.io.read_annotations(sdata, tmp_path / "slide.geojson")
    (found,) = sdata.shapes["annotations"].geometry
    assert found.equals(hole)


def test_points_and_lines_are_left_out(sdata, tmp_path, caplog):
    features = [feature(TUMOR), feature({"type": "Point", "coordinates": [300, 300]}), feature(None)]
    with caplog.at_level("INFO"):
        rg.io.read_annotations(sdata, write(tmp_path / "a.geojson", features))
    assert len(sdata.shapes["annotations"]) == 1
    assert "1 features of 'a.geojson' have no area and are left out: 'Point'" in caplog.text


def test_crossed_rings_are_made_valid_and_counted(sdata, tmp_path, caplog):
    bow = polygon((300, 250), (400, 350), (400, 250), (300, 350))
    with caplog.at_level("INFO"):
        rg.io.read_annotations(sdata, write(tmp_path / "a.geojson", [feature(bow), feature(TUMOR)]))
    first, second = sdata.shapes["annotations"].geometry
    assert first.is_valid
    assert first.area == 2 * 50 * 100 / 2
    assert second.area == 80 * 130
    assert "1 of 2 outlines of 'a.geojson' cross themselves: they are made valid" in caplog.text


def test_units_that_are_told(sdata, tmp_path):
    boxes = {name: tuple(edge * MPP for edge in box) for name, box in BOXES.items()}
    rg.io.read_annotations(sdata, write_geojson(tmp_path / "slide.geojson", boxes), mpp=1)
    assert [outline.bounds for outline in sdata.shapes["annotations"].geometry] == list(BOXES.values())


class TestBadInput:
    @pytest.fixture(autouse=True)
    def unchanged(self, sdata):
        yield
        assert not len(sdata.shapes)

    def test_microns(self, sdata, tmp_path):
        boxes = {name: tuple(edge * MPP for edge in box) for name, box in BOXES.items()}
        path = write_geojson(tmp_path / "slide.geojson", boxes)
        message = r"as if it were in microns: taken as pixels, 0% of what it outlines is tissue; as microns .* `mpp=1`"
        with pytest.raises(ValueError, match=message):
            rg.io.read_annotations(sdata, path)

    def test_another_frame(self, sdata, tmp_path):
        boxes = {name: tuple(4 * edge for edge in box) for name, box in BOXES.items()}
        path = write_geojson(tmp_path / "slide.geojson", boxes)
        message = (
            r"All 2 outlines of 'slide.geojson' lie outside the picture of 440 x 420 px: they cover x 1200 to 1680 and "
            r"y 1000 to 1600. They look like pixels of a picture at least 3.8 times as large"
        )
        with pytest.raises(ValueError, match=message):
            rg.io.read_annotations(sdata, path)

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"a": 1}, "cannot be read as GeoJSON, as QuPath exports it .*KeyError: 'geometry'"),
            ([1], "cannot be read as GeoJSON.*TypeError"),
            ([feature({"type": "Point", "coordinates": [1, 2]})], "holds no polygons: 1 features, of 'Point'"),
            ([], "holds no polygons: 0 features"),
            ([feature({"type": "Polygon", "coordinates": [[[1, 2]]]})], "cannot be read as GeoJSON"),
            ([feature({"type": "Square"})], "cannot be read as GeoJSON"),
        ],
    )
    def test_contents(self, sdata, tmp_path, content, found):
        with pytest.raises(ValueError, match=found):
            rg.io.read_annotations(sdata, write(tmp_path / "a.geojson", content))

    def test_damaged(self, sdata, tmp_path):
        path = tmp_path / "a.geojson"
        path.write_text('{"type": "FeatureColl')
        with pytest.raises(ValueError, match="cannot be read as GeoJSON"):
            rg.io.read_annotations(sdata, path)

    def test_unknown_resolution(self, slide, sdata, tmp_path):
        path = write_geojson(tmp_path / "slide.geojson", BOXES)
        with pytest.raises(ValueError, match="resolution of image 'he' is unknown"):
            rg.io.read_annotations(SpatialData(images={"he": slide}), path, mpp=1)


def test_some_outside_are_reported(sdata, tmp_path, caplog):
    rg.io.read_annotations(sdata, write_geojson(tmp_path / "a.geojson", BOXES | {"Far": (900, 900, 950, 950)}))
    assert "1 of 3 outlines of 'a.geojson' lie outside" in caplog.text


def test_names_that_are_taken(sdata, tmp_path):
    path = write_geojson(tmp_path / "slide.geojson", BOXES)
    rg.io.read_annotations(sdata, path)
    with pytest.raises(ValueError, match=r"taken by shapes 'annotations'.*`overwrite=True`"):
        rg.io.read_annotations(sdata, path)
    rg.io.read_annotations(sdata, write_geojson(path, {"Tumor": BOXES["Tumor"]}), overwrite=True)
    assert len(sdata.shapes["annotations"]) == 1
    with pytest.raises(ValueError, match="taken by images 'he'"):
        rg.io.read_annotations(sdata, path, key_added="he", overwrite=True)
