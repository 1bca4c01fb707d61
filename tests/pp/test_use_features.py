"""Features that are there already: as each tool leaves them, taken, and predicted from."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata.models import ShapesModel

import ragst_sd as rg
from ragst_sd.image.pooling import pool_tiles

from .foreign import EDGE, MPP, TILE_PX, add_lazyslide, add_sopa, add_squidpy, colours, write_clam, write_trident

CONTEXT = (1, 2.5, 6)
STATED = {"model": "uni2", "tile_px": TILE_PX, "mpp": MPP}


def header_of(sdata, key, table="table"):
    return sdata.tables[table].uns["ragst"]["embeddings"][key]


def said(header):
    return header["encoder"], header["tile_px"], header["mpp"], tuple(header["context"]), header["weights_hash"]


def content(sdata):
    """All that a call could leave behind."""
    tables = {
        name: (sorted(table.obsm), sorted(table.obs), sorted(table.uns.get("ragst", {}).get("embeddings", {})))
        for name, table in sdata.tables.items()
    }
    return tables, sorted(sdata.shapes), sorted(sdata.images)


def expected(sdata, corners, context):
    places = sdata.tables["table"].obsm["spatial"]
    return pool_tiles(colours(sdata, corners), corners + EDGE / 2, places, edge=EDGE, context=context)


def predicts(sections, key):
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep=key)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    query = sections["donor3"]
    rg.tl.predict(query, reference)
    with_features = np.isfinite(query.tables["table"].obsm[key]).all(axis=1)
    assert np.array_equal(np.isfinite(query.tables["predicted"].X).all(axis=1), with_features)
    assert with_features.mean() > 0.8
    return reference


class TestLazySlide:
    def test_tables_of_all_sections(self, sections):
        corners = {name: add_lazyslide(sdata) for name, sdata in sections.items()}
        rg.pp.use_features(sections, features="uni2_tiles", context=CONTEXT)
        for name, sdata in sections.items():
            found = sdata.tables["table"].obsm["X_uni2"]
            np.testing.assert_array_equal(found, expected(sdata, corners[name], CONTEXT))
            assert said(header_of(sdata, "X_uni2")) == ("uni2", TILE_PX, MPP, CONTEXT, "unknown")
            assert header_of(sdata, "X_uni2")["image_key"] == "he"
        predicts(sections, "X_uni2")
        rg.pl.prediction(sections["donor3"], genes=sections["donor3"].tables["predicted"].var_names[0], show=False)

    @pytest.mark.parametrize(
        "specs", [None, "tiles", ["tiles"], {"tiles": {}}, {"tiles": {"width": TILE_PX}}, {"tiles": object()}]
    )
    def test_metadata_of_another_kind_is_passed_over(self, query, specs):
        add_lazyslide(query)
        query.attrs["tile_spec"] = specs
        with pytest.raises(ValueError, match="Pass "):
            rg.pp.use_features(query, features="uni2_tiles")
        rg.pp.use_features(query, features="uni2_tiles", **STATED)
        assert said(header_of(query, "X_uni2"))[:3] == ("uni2", TILE_PX, MPP)

    def test_a_slide_without_spots(self, sections):
        for sdata in sections.values():
            add_lazyslide(sdata)
        slide = sections["donor3"]
        del slide.tables["table"], slide.shapes["spots"]
        rg.pp.use_features(sections, features="uni2_tiles")
        table = slide.tables["uni2_tiles"]
        np.testing.assert_array_equal(table.obsm["X_uni2"], table.X)
        reference = rg.tl.build_reference([sections["donor1"], sections["donor2"]], use_rep="X_uni2")
        rg.tl.fit(reference, method="knn", n_neighbors=10)
        rg.tl.predict(slide, reference)
        assert np.isfinite(slide.tables["predicted"].X).all()

    def test_an_object_without_its_picture(self, query):
        corners = add_lazyslide(query)
        places = query.tables["table"].obsm["spatial"]
        del query.images["he"]
        rg.pp.use_features(query, features="uni2_tiles")
        assert header_of(query, "X_uni2")["image_key"] == ""
        vectors = query.tables["uni2_tiles"].X
        expected = pool_tiles(vectors, corners + EDGE / 2, places, edge=EDGE, context=(1,))
        np.testing.assert_allclose(query.tables["table"].obsm["X_uni2"], expected, rtol=1e-5)

    def test_rows_of_a_table_in_another_order_and_half_of_the_tiles(self, query, rng, caplog):
        add_lazyslide(query)
        rg.pp.use_features(query, features="uni2_tiles", key_added="X_whole")
        table = query.tables["uni2_tiles"]
        query.tables["uni2_tiles"] = table[rng.permutation(table.n_obs)].copy()
        rg.pp.use_features(query, features="uni2_tiles")
        obsm = query.tables["table"].obsm
        np.testing.assert_allclose(obsm["X_uni2"], obsm["X_whole"], rtol=1e-6)
        caplog.clear()
        query.tables["uni2_tiles"] = table[: table.n_obs // 2].copy()
        rg.pp.use_features(query, features="uni2_tiles")
        lost = np.isnan(obsm["X_uni2"]).any(axis=1)
        assert 0.2 < lost.mean() < 0.8
        assert f"{lost.sum()} of {len(lost)} spots of table 'table' have no tile in table 'uni2_tiles'" in caplog.text

    def test_tiles_without_features_count_as_absent(self, query):
        corners = add_lazyslide(query)
        query.tables["uni2_tiles"].X[::2] = np.nan
        rg.pp.use_features(query, features="uni2_tiles")
        whole = expected(query, corners[1::2], (1,))
        np.testing.assert_allclose(query.tables["table"].obsm["X_uni2"], whole, rtol=1e-5)

    def test_spots_that_have_no_table_yet(self, query):
        add_lazyslide(query)
        del query.tables["table"]
        rg.pp.use_features(query, features="uni2_tiles", shapes_key="spots")
        assert query.tables["spots_table"].n_obs == len(query.shapes["spots"])

    def test_what_is_given_goes_before_what_the_table_says(self, query, caplog):
        add_lazyslide(query)
        rg.pp.use_features(query, features="uni2_tiles", mpp=1.9)
        assert said(header_of(query, "X_uni2"))[:3] == ("uni2", TILE_PX, 1.9)
        assert "table 'uni2_tiles' says mpp 2.0; what was given is written: mpp 1.9" in caplog.text

    def test_tiles_of_another_size_than_they_say(self, query, caplog):
        add_lazyslide(query)
        rg.pp.set_image_mpp(query, image_key="he", mpp=0.5)
        rg.pp.use_features(query, features="uni2_tiles")
        assert "are 64 px wide on the slide; 32 px of 2 microns on an image of 0.5 microns" in caplog.text


class TestSopa:
    def test_table(self, sections):
        corners = {name: add_sopa(sdata) for name, sdata in sections.items()}
        rg.pp.use_features(sections, features="hoptimus0_embeddings", context=CONTEXT)
        for name, sdata in sections.items():
            found = sdata.tables["table"].obsm["X_hoptimus0"]
            np.testing.assert_array_equal(found, expected(sdata, corners[name], CONTEXT))
            assert said(header_of(sdata, "X_hoptimus0"))[:3] == ("hoptimus0", TILE_PX, MPP)
        predicts(sections, "X_hoptimus0")

    @pytest.mark.parametrize("config", [None, "hoptimus0", ["hoptimus0"], np.zeros(2)])
    def test_metadata_of_another_kind_is_passed_over(self, query, config):
        add_sopa(query)
        query.tables["hoptimus0_embeddings"].uns["embedding_config"] = config
        with pytest.raises(ValueError, match="Pass "):
            rg.pp.use_features(query, features="hoptimus0_embeddings")
        rg.pp.use_features(query, features="hoptimus0_embeddings", **STATED)
        assert said(header_of(query, "X_uni2"))[:3] == ("uni2", TILE_PX, MPP)

    def test_what_it_does_not_say_is_asked_for(self, query):
        add_sopa(query, magnification=None)
        before = content(query)
        with pytest.raises(ValueError, match=r"of which tiles \(they are 64 microns wide\)\. Pass `mpp=`: "):
            rg.pp.use_features(query, features="hoptimus0_embeddings")
        assert content(query) == before
        rg.pp.use_features(query, features="hoptimus0_embeddings", mpp=MPP)


class TestSquidpy:
    def test_a_data_frame_in_obsm(self, sections):
        values = {name: add_squidpy(sdata) for name, sdata in sections.items()}
        rg.pp.use_features(sections, features="img_features", context=CONTEXT, **STATED | {"model": "summary"})
        for name, sdata in sections.items():
            table = sdata.tables["table"]
            np.testing.assert_array_equal(table.obsm["X_summary"][:, :6], values[name])
            tiles = table.obsm["spatial"]
            pooled = pool_tiles(values[name], tiles, tiles, edge=EDGE, context=CONTEXT)
            np.testing.assert_array_equal(table.obsm["X_summary"], pooled)
        predicts(sections, "X_summary")

    def test_a_table_of_the_same_spots(self, query, rng):
        values, table = add_squidpy(query), query.tables["table"]
        order = rng.permutation(table.n_obs)
        attrs = table.uns["spatialdata_attrs"]
        other = AnnData(values[order], obs=table.obs.iloc[order][[attrs["region_key"], attrs["instance_key"]]].copy())
        other.uns["spatialdata_attrs"] = dict(attrs)
        query.tables["morphology"] = other
        rg.pp.use_features(query, features="morphology", table_key="table", **STATED)
        np.testing.assert_array_equal(table.obsm["X_uni2"], values)

    def test_spots_without_features(self, query, caplog):
        values, table = add_squidpy(query), query.tables["table"]
        values[:3] = np.nan
        table.obsm["img_features"] = values
        rg.pp.use_features(query, features="img_features", context=(1, 2.5), **STATED)
        lost = np.isnan(table.obsm["X_uni2"]).any(axis=1)
        assert lost[:3].all() and not lost[3:].any()
        assert header_of(query, "X_uni2")["n_outside"] == 3


class TestAnnData:
    def test_by_the_names_of_spots(self, query, rng):
        values, table = add_squidpy(query), query.tables["table"]
        order = rng.permutation(table.n_obs)
        other = AnnData(values[order], obs=pd.DataFrame(index=table.obs_names[order]))
        rg.pp.use_features(query, features=other, **STATED)
        np.testing.assert_array_equal(table.obsm["X_uni2"], values)

    def test_of_tiles_in_the_object(self, query):
        corners = add_lazyslide(query)
        rg.pp.use_features(query, features=query.tables["uni2_tiles"].copy(), model="uni2")
        np.testing.assert_array_equal(query.tables["table"].obsm["X_uni2"], expected(query, corners, (1,)))


class TestFiles:
    def test_a_folder_of_trident(self, sections, tmp_path):
        corners = {name: write_trident(tmp_path / f"{name}.h5", sdata) for name, sdata in sections.items()}
        rg.pp.use_features(sections, features=tmp_path, context=CONTEXT)
        for name, sdata in sections.items():
            found = sdata.tables["table"].obsm["X_uni_v1"]
            np.testing.assert_array_equal(found, expected(sdata, corners[name], CONTEXT))
        predicts(sections, "X_uni_v1")

    def test_a_mapping_to_files_of_clam(self, sections, tmp_path):
        files = {}
        for i, (name, sdata) in enumerate(sections.items()):
            files[name] = str(tmp_path / f"slide_{i}.h5")
            write_clam(files[name], sdata)
        rg.pp.use_features(sections, features=files, **STATED)
        predicts(sections, "X_uni2")

    def test_a_folder_that_lacks_a_section_changes_none(self, sections, tmp_path):
        write_trident(tmp_path / "donor1.h5", sections["donor1"])
        before = [content(sdata) for sdata in sections.values()]
        with pytest.raises(FileNotFoundError, match=r"has no 'donor2.h5', 'donor3.h5' \(it has 'donor1.h5'\)"):
            rg.pp.use_features(sections, features=tmp_path)
        assert [content(sdata) for sdata in sections.values()] == before

    def test_a_slide_without_spots_gets_the_tiles(self, query, tmp_path):
        corners = write_trident(tmp_path / "a.h5", query)
        del query.tables["table"]
        rg.pp.use_features(query, features=tmp_path / "a.h5", context=(1, 2.5))
        table = query.tables["tiles_table"]
        np.testing.assert_array_equal(query.shapes["tiles"].bounds.to_numpy()[:, :2], corners)
        np.testing.assert_array_equal(table.obsm["X_uni_v1"][:, :6], colours(query, corners))


def two_that_fit(query):
    add_lazyslide(query)
    other = query.tables["table"].copy()
    query.shapes["cells"] = query.shapes["spots"]
    other.obs["region"] = pd.Categorical(["cells"] * other.n_obs)
    other.uns["spatialdata_attrs"] = {**other.uns["spatialdata_attrs"], "region": "cells"}
    query.tables["cells_table"] = other
    return {"features": "uni2_tiles"}


def named_twice(query):
    add_lazyslide(query)
    query.tables["table"].obsm["uni2_tiles"] = np.ones((query.tables["table"].n_obs, 3))
    return {"features": "uni2_tiles"}


def partly_nan(query):
    corners = add_lazyslide(query)
    query.tables["uni2_tiles"].X[3, 1] = np.nan
    assert len(corners) > 3
    return {"features": "uni2_tiles"}


def all_nan(query):
    add_lazyslide(query)
    query.tables["uni2_tiles"].X[:] = np.nan
    return {"features": "uni2_tiles"}


def elsewhere(query):
    add_lazyslide(query)
    moved = query.shapes["tiles"].copy()
    moved["geometry"] = moved.geometry.translate(10_000, 0)
    query.shapes["tiles"] = moved
    return {"features": "uni2_tiles"}


def other_frame(query):
    add_lazyslide(query)
    lost = gpd.GeoDataFrame({"tile_id": query.shapes["tiles"].index}, geometry=query.shapes["tiles"].geometry.values)
    del query.shapes["tiles"]
    from spatialdata.transformations import Identity

    query.shapes["tiles"] = ShapesModel.parse(lost, transformations={"slide": Identity()})
    return {"features": "uni2_tiles"}


def missing_tiles(query):
    add_lazyslide(query)
    query.shapes["tiles"] = query.shapes["tiles"].iloc[:5]
    return {"features": "uni2_tiles"}


def other_spots(query):
    return {"features": AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame(index=["x", "y", "z"])), **STATED}


def names_twice(query):
    names = [query.tables["table"].obs_names[0]] * 2
    return {"features": AnnData(np.ones((2, 2), np.float32), obs=pd.DataFrame(index=names)), **STATED}


def obsm_of_other_shapes(query):
    add_squidpy(query)
    add_lazyslide(query)
    return {"features": "img_features", "shapes_key": "tiles", **STATED}


def without_values(query):
    add_lazyslide(query)
    table = query.tables["uni2_tiles"]
    query.tables["uni2_tiles"] = AnnData(obs=table.obs, uns=table.uns, obsm={"inside": table.X})
    return {"features": "uni2_tiles"}


def half_a_tile(query):
    add_lazyslide(query)
    return {"features": "uni2_tiles", "context": (0.5, 1)}


def without_end(query):
    add_lazyslide(query)
    return {"features": "uni2_tiles", "context": (1, np.inf)}


def wider_without_a_size(query):
    add_squidpy(query)
    del query.attrs["ragst"]
    return {"features": "img_features", "context": (1, 2.5), **STATED}


def nothing_stated(query):
    add_squidpy(query)
    return {"features": "img_features"}


def two_images(query):
    add_lazyslide(query)
    query.images["dapi"] = query.images["he"]
    return {"features": "uni2_tiles"}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (two_that_fit, ValueError, r"`table_key` is needed: 2 tables could take table 'uni2_tiles': 'table', 'cells_t"),
        (named_twice, ValueError, r"'uni2_tiles' is both a table and an `.obsm` of 'table'\. Pass the one"),
        (
            partly_nan,
            ValueError,
            r"table 'uni2_tiles' is NaN or infinite in 1 of \d+ rows \(first: row 3\).*fill or dr",
        ),
        (all_nan, ValueError, r"table 'uni2_tiles' holds no features: all \d+ rows are NaN"),
        (elsewhere, ValueError, r"No spot lies in a tile of table 'uni2_tiles': centres of tiles cover x 100\d\d to"),
        (other_frame, ValueError, r"share no coordinate system: 'slide' against 'global'\. Align them with"),
        (missing_tiles, ValueError, r"rows of table 'uni2_tiles' have no shape in 'tiles'"),
        (other_spots, ValueError, r"No spot of the table.*is among the \d+ spots of `features` \(for example 'x'"),
        (names_twice, ValueError, r"names of rows of `features` are duplicated"),
        (obsm_of_other_shapes, ValueError, r"Table 'table' annotates 'spots', not 'tiles'"),
        (without_values, ValueError, r"table 'uni2_tiles' has no X.*its `.obsm` has 'inside'"),
        (
            half_a_tile,
            ValueError,
            r"`context` is 0\.5; it must be a number between 1 and inf\. Features of whole tiles",
        ),
        (without_end, ValueError, r"`context` is inf; it must be a finite number above zero"),
        (wider_without_a_size, ValueError, r"does not say how wide its tiles are.*set_image_mpp"),
        (nothing_stated, ValueError, r"Pass `model=`, `tile_px=`, `mpp=`"),
        (two_images, ValueError, r"`image_key` is needed: found 2 images"),
        (lambda _: {"features": "uni3"}, KeyError, r"'uni3' is no table of `sdata` \('table'\), no `.obsm` of one"),
        (lambda _: {"features": "no/such.h5"}, FileNotFoundError, r"no/such.h5' does not exist"),
        (lambda _: {"features": 3}, TypeError, r"`features` is a int.*name of a table"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_is_named_and_changes_nothing(query, make, error, message):
    given = make(query)
    before = content(query)
    with pytest.raises(error, match=message):
        rg.pp.use_features(query, **given)
    assert content(query) == before


def test_reference_and_query_with_other_tiles_or_fields(sections):
    for sdata in sections.values():
        add_lazyslide(sdata)
    rg.pp.use_features(sections, features="uni2_tiles", context=(1, 2.5))
    reference = predicts(sections, "X_uni2")
    query = sections["donor3"]
    rg.pp.use_features(query, features="uni2_tiles", context=(1, 6))
    with pytest.raises(ValueError, match=r"context: \[1.0, 6.0\] against \[1.0, 2.5\]"):
        rg.tl.predict(query, reference)
    rg.pp.use_features(query, features="uni2_tiles", context=(1, 2.5), tile_px=64)
    with pytest.raises(ValueError, match=r"tile_px: 64 against 32"):
        rg.tl.predict(query, reference)


def test_polygons_of_cells(query, rng):
    """Features of outlines that are no squares lie where their outlines do."""
    corners = add_lazyslide(query)
    cells = query.shapes["tiles"].copy()
    cells["geometry"] = [shapely.Point(x + 32, y + 32).buffer(32) for x, y in corners]
    query.shapes["tiles"] = cells
    rg.pp.use_features(query, features="uni2_tiles")
    np.testing.assert_allclose(query.tables["table"].obsm["X_uni2"], expected(query, corners, (1,)), rtol=1e-4)
