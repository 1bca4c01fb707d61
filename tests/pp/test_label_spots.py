"""Labels of spots by the outline that their centre lies in."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale, set_transformation

import ragst_sd as rg

from ..sections import section

XY = [(40, 40), (60, 40), (120, 40), (200, 100), (300, 200)]


def annotated(names, outlines, scale=1.0, frame="global"):
    sdata = section(XY)
    drawn = gpd.GeoDataFrame({"classification": names}, geometry=outlines)
    transformation = Identity() if scale == 1 else Scale([scale, scale], ("x", "y"))
    sdata.shapes["annotations"] = ShapesModel.parse(drawn, transformations={frame: transformation})
    return sdata


def labels(sdata, key="label"):
    return sdata.tables["table"].obs[key].astype(object).where(lambda column: column.notna(), None).tolist()


def test_the_smallest_outline_counts(caplog):
    # The large one first, so that order does not decide.
    outlines = [shapely.box(0, 0, 210, 110), shapely.box(50, 30, 70, 50), shapely.box(100, 30, 130, 50)]
    sdata = annotated(["Tumor", "Vessel", "Stroma"], outlines)
    with caplog.at_level("INFO"):
        rg.pp.label_spots(sdata)
    assert labels(sdata) == ["Tumor", "Vessel", "Stroma", "Tumor", None]
    assert sdata.tables["table"].obs["label"].dtype == "category"
    assert "4 of 5 spots lie in an outline, 2 in several" in caplog.text


def test_frames(caplog):
    sdata = annotated(["Tumor"], [shapely.box(0, 0, 35, 30)], scale=2.0)
    rg.pp.label_spots(sdata)
    assert labels(sdata) == ["Tumor", "Tumor", None, None, None]


def test_rows_of_the_table_decide():
    sdata = annotated(["Tumor"], [shapely.box(0, 0, 50, 50)])
    sdata.tables["table"] = sdata.tables["table"][[3, 0]].copy()
    rg.pp.label_spots(sdata, key_added="region_name")
    assert labels(sdata, "region_name") == [None, "Tumor"]


def test_outlines_that_cross_themselves(caplog):
    bow = shapely.Polygon([(30, 30), (70, 50), (70, 30), (30, 50)])
    sdata = annotated(["Tumor"], [bow])
    with caplog.at_level("INFO"):
        rg.pp.label_spots(sdata)
    assert labels(sdata) == ["Tumor", "Tumor", None, None, None]
    assert "cross themselves" in caplog.text


def test_a_table_is_made_where_there_is_none():
    sdata = annotated(["Tumor"], [shapely.box(0, 0, 50, 50)])
    del sdata.tables["table"]
    rg.pp.label_spots(sdata, shapes_key="spots")
    assert sdata.tables["spots_table"].obs["label"].notna().tolist() == [True, *[False] * 4]


def test_several_sections():
    sections = {name: annotated(["Tumor"], [shapely.box(0, 0, edge, 50)]) for name, edge in (("a", 50), ("b", 70))}
    rg.pp.label_spots(sections)
    assert [sdata.tables["table"].obs["label"].notna().sum() for sdata in sections.values()] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "error", "found"),
    [
        ({"annotation_key": "other"}, KeyError, "other.*rg.io.read_annotations"),
        ({"label_key": "name"}, KeyError, "name"),
        ({"annotation_key": "spots"}, ValueError, r"sdata.shapes\['spots'\]` holds 'Point'"),
        (
            {"key_added": "spot"},
            ValueError,
            r"`obs\['spot'\]` of table 'table' is there already. Pass `overwrite=True`",
        ),
    ],
)
def test_bad_input(changed, error, found):
    sdata = annotated(["Tumor"], [shapely.box(0, 0, 50, 50)])
    before = sdata.tables["table"].obs.copy()
    with pytest.raises(error, match=found):
        rg.pp.label_spots(sdata, **changed)
    assert sdata.tables["table"].obs.equals(before)


def test_no_spot_inside():
    sdata = annotated(["Tumor"], [shapely.box(1, 1, 30, 30)])
    message = r"None of the 5 spots lies .*: spots cover x 40 to 300 and y 40 to 200, outlines x 1 to 30 and y 1 to 30"
    with pytest.raises(ValueError, match=message):
        rg.pp.label_spots(sdata)
    assert "label" not in sdata.tables["table"].obs


def test_no_common_frame():
    sdata = annotated(["Tumor"], [shapely.box(0, 0, 50, 50)], frame="elsewhere")
    with pytest.raises(ValueError, match="share no coordinate system"):
        rg.pp.label_spots(sdata)


class TestSeveralFrames:
    def in_two(self, scale):
        sdata = annotated(["Tumor"], [shapely.box(0, 0, 50, 50)])
        for name, second in (("spots", 3.0), ("annotations", scale)):
            set_transformation(sdata[name], Scale([second, second], ("x", "y")), "second")
        return sdata

    def test_that_agree(self):
        sdata = self.in_two(3.0)
        rg.pp.label_spots(sdata)
        assert labels(sdata) == ["Tumor", None, None, None, None]

    def test_that_do_not(self):
        sdata = self.in_two(6.0)
        with pytest.raises(ValueError, match=r"lie differently to each other in the frames .* 'global', 'second'"):
            rg.pp.label_spots(sdata)
        assert "label" not in sdata.tables["table"].obs
        rg.pp.label_spots(sdata, coordinate_system="second")
        assert labels(sdata) == ["Tumor", "Tumor", None, None, None]


def test_labels_serve_the_evaluation():
    sections = rg.datasets.synthetic(n_donors=3, image_px=400)
    rg.pp.embed_tiles(sections, model=lambda tiles: tiles.float().mean((2, 3)), key_added="X_colour", progress=False)
    query = sections.pop("donor3")
    halves = [shapely.box(0, 0, 200, 400), shapely.box(200, 0, 400, 400)]
    drawn = gpd.GeoDataFrame({"classification": ["left", "right"]}, geometry=halves)
    query.shapes["annotations"] = ShapesModel.parse(drawn)
    rg.pp.label_spots(query, overwrite=True)
    reference = rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(query, reference)
    found = rg.tl.evaluate(query, metrics=["domain_ari"])
    assert np.isfinite(found["value"]).all()
