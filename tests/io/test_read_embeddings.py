"""Embeddings of TRIDENT, CLAM and HEST, matched to spots; objects of LazySlide."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd.image.pooling import pool_tiles

from .slides import paint, write_pyramid

D = 7
EDGE = 64  # of a tile of 32 px at 2 microns, on the images of 1 micron below
TRIDENT = {
    "patch_size": 32,
    "patch_size_level0": EDGE,
    "level0_magnification": 10,
    "target_magnification": 5,
    "overlap": 0,
}


def write_h5(path, datasets, *, coords=None, features=None):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        for name, attributes in (("coords", coords), ("features", features)):
            if attributes:
                file[name].attrs.update(attributes)
    return path


def trident(path, corners, vectors, encoder="uni_v1", **attributes):
    datasets = {"features": vectors, "coords": corners.astype(np.int64)}
    about = {"encoder": encoder, "name": "slide"} if encoder else None
    return write_h5(path, datasets, coords=TRIDENT | attributes, features=about)


def corners_of(sdata):
    return np.rint(sdata.tables["table"].obsm["spatial"] - EDGE / 2)


@pytest.fixture
def vectors(query, rng):
    return rng.normal(size=(query.tables["table"].n_obs, D)).astype(np.float32)


def header_of(sdata, key="X_uni_v1", table="table"):
    return sdata.tables[table].uns["ragst"]["embeddings"][key]


class TestTrident:
    def test_vectors_find_their_spots(self, query, vectors, tmp_path, rng):
        order = rng.permutation(len(vectors))
        rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners_of(query)[order], vectors[order]))
        table = query.tables["table"]
        np.testing.assert_array_equal(table.obsm["X_uni_v1"], vectors)
        header = header_of(query)
        assert (header["encoder"], header["tile_px"], header["mpp"]) == ("uni_v1", 32, 2.0)
        assert (header["n_spots"], header["n_outside"], header["weights_hash"]) == (len(vectors), 0, "unknown")
        np.testing.assert_allclose(header["section_mean"], vectors.mean(0), rtol=1e-5, atol=1e-6)

    def test_a_spot_takes_the_tiles_that_lie_under_it(self, query, tmp_path, rng):
        corners = rng.integers(0, 640, (150, 2))
        of_tiles = rng.normal(size=(150, D)).astype(np.float32)
        rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners, of_tiles))
        table = query.tables["table"]
        expected = pool_tiles(of_tiles, corners + EDGE / 2, table.obsm["spatial"], edge=EDGE, context=(1,))
        np.testing.assert_array_equal(table.obsm["X_uni_v1"], expected)

    def test_spots_without_a_tile_are_named_and_nan(self, query, vectors, tmp_path, caplog):
        rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners_of(query)[3:], vectors[3:]))
        table = query.tables["table"]
        lost = np.isnan(table.obsm["X_uni_v1"]).all(axis=1)
        assert list(np.flatnonzero(lost)) == [0, 1, 2]
        assert header_of(query)["n_outside"] == 3
        assert (
            f"3 of {table.n_obs} spots of table 'table' have no tile in 'a.h5', for example '{table.obs_names[0]}'"
            in caplog.text
        )

    def test_half_precision(self, query, vectors, tmp_path):
        rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners_of(query), vectors.astype(np.float16)))
        assert query.tables["table"].obsm["X_uni_v1"].dtype == np.float32

    def test_width_that_does_not_fit_the_image_is_reported(self, query, vectors, tmp_path, caplog):
        rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners_of(query), vectors), image_mpp=0.5)
        assert (
            "64 px wide on the slide; 32 px of 2 microns on an image of 0.5 microns per pixel would be 128"
            in caplog.text
        )

    def test_slide_without_spots_gets_tiles(self, vectors, tmp_path):
        sdata = rg.io.read_slide(write_pyramid(tmp_path / "a.tif", paint(3, 700, 700, 1.0), mpp=1.0))
        corners = np.array([[0, 0], [64, 0], [128, 192]])
        rg.io.read_embeddings(sdata, trident(tmp_path / "a.h5", corners, vectors[:3]))
        table = sdata.tables["tiles_table"]
        np.testing.assert_array_equal(table.obsm["X_uni_v1"], vectors[:3])
        np.testing.assert_array_equal(table.obsm["spatial"], corners + 32)
        np.testing.assert_array_equal(sdata["tiles"].bounds.to_numpy(), np.hstack([corners, corners + EDGE]))
        sdata.write(tmp_path / "a.zarr")


class TestClam:
    def test_what_the_file_does_not_say_is_asked_for(self, query, vectors, tmp_path):
        path = write_h5(tmp_path / "a.h5", {"features": vectors[None], "coords": corners_of(query)})
        with pytest.raises(ValueError, match=r"Pass `model=`, `tile_px=`, `mpp=`"):
            rg.io.read_embeddings(query, path)
        rg.io.read_embeddings(query, path, model="resnet50_trunc", tile_px=32, mpp=2.0)
        np.testing.assert_array_equal(query.tables["table"].obsm["X_resnet50_trunc"], vectors)

    def test_width_needs_a_resolution(self, query, vectors, tmp_path):
        path = write_h5(tmp_path / "a.h5", {"features": vectors, "coords": corners_of(query)})
        del query.attrs["ragst"]
        with pytest.raises(ValueError, match=r"does not say how wide its tiles are.*set_image_mpp"):
            rg.io.read_embeddings(query, path, model="m", tile_px=32, mpp=2.0)


GIVEN = {"model": "uni", "tile_px": 224, "mpp": 0.5}


class TestHest:
    def file(self, path, names, vectors):
        barcodes = np.array([[name.encode()] for name in names])
        return write_h5(path, {"embeddings": vectors, "barcodes": barcodes, "coords": np.zeros((len(names), 2))})

    def test_barcodes_decide(self, query, vectors, tmp_path, rng):
        names, order = np.array(query.tables["table"].obs_names), rng.permutation(len(vectors))
        rg.io.read_embeddings(query, self.file(tmp_path / "a.h5", names[order], vectors[order]), **GIVEN)
        np.testing.assert_array_equal(query.tables["table"].obsm["X_uni"], vectors)

    def test_other_section(self, query, vectors, tmp_path):
        path = self.file(tmp_path / "a.h5", [f"other{k}" for k in range(len(vectors))], vectors)
        with pytest.raises(ValueError, match=r"No spot of the table.*'other0'"):
            rg.io.read_embeddings(query, path, **GIVEN)
        assert "X_uni" not in query.tables["table"].obsm

    def test_repeated_barcodes(self, query, vectors, tmp_path):
        with pytest.raises(ValueError, match=r"barcodes of .* are duplicated, for example 'a'"):
            rg.io.read_embeddings(query, self.file(tmp_path / "a.h5", ["a"] * len(vectors), vectors), **GIVEN)


class TestHeader:
    @pytest.fixture
    def imported(self, sections, tmp_path):
        """Every section with embeddings from elsewhere: the ones of this package, written as TRIDENT writes them."""
        for name, sdata in sections.items():
            path = trident(tmp_path / f"{name}.h5", corners_of(sdata), sdata.tables["table"].obsm["X_colour"])
            rg.io.read_embeddings(sdata, path, key_added="X_outside")
        return sections

    def test_reference_and_query_from_the_same_encoder(self, imported):
        reference = rg.tl.build_reference({n: imported[n] for n in ("donor1", "donor2")}, use_rep="X_outside")
        rg.tl.fit(reference, method="knn", n_neighbors=10)
        rg.tl.predict(imported["donor3"], reference)
        own = rg.tl.build_reference({n: imported[n] for n in ("donor1", "donor2")}, use_rep="X_colour")
        rg.tl.fit(own, method="knn", n_neighbors=10)
        expected = rg.tl.predict(imported["donor3"], own, inplace=False)
        np.testing.assert_allclose(imported["donor3"].tables["predicted"].X, expected.X, rtol=1e-5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"model": "uni_v2"}, "encoder"), ({"mpp": 1.0}, "mpp"), ({"weights_hash": "abc"}, "weights_hash")],
    )
    def test_other_encoders_are_refused(self, imported, tmp_path, change, message):
        reference = rg.tl.build_reference({n: imported[n] for n in ("donor1", "donor2")}, use_rep="X_outside")
        rg.tl.fit(reference, method="knn", n_neighbors=10)
        rg.io.read_embeddings(imported["donor3"], tmp_path / "donor3.h5", key_added="X_outside", **change)
        with pytest.raises(ValueError, match=f"made differently \\({message}"):
            rg.tl.predict(imported["donor3"], reference)

    def test_those_of_embed_tiles_are_refused(self, imported, fitted, tmp_path):
        sdata = imported["donor3"]
        rg.io.read_embeddings(sdata, tmp_path / "donor3.h5", key_added="X_colour", model="colour", image_mpp=1.0)
        with pytest.raises(ValueError, match="made differently"):
            rg.tl.predict(sdata, fitted)

    def test_survives_the_store(self, imported, tmp_path):
        import spatialdata as sd

        imported["donor1"].write(tmp_path / "a.zarr")
        again = sd.read_zarr(tmp_path / "a.zarr")
        rg.tl.build_reference({"donor1": again}, use_rep="X_outside")


class TestErrors:
    def test_no_file(self, query, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            rg.io.read_embeddings(query, tmp_path / "a.h5")

    def test_truncated(self, query, vectors, tmp_path):
        path = trident(tmp_path / "a.h5", corners_of(query), vectors)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"cannot be read as h5.*incomplete"):
            rg.io.read_embeddings(query, path)

    @pytest.mark.parametrize(
        ("datasets", "message"),
        [
            ({"img": np.zeros((3, 2))}, r"holds the datasets 'img'; expected 'features'"),
            ({"features": np.zeros(5), "coords": np.zeros((3, 2))}, "expected one vector per tile"),
            ({"features": np.zeros((3, 5))}, "neither 'coords' nor 'barcodes'"),
            ({"features": np.zeros((3, 5)), "coords": np.zeros((4, 2))}, r"expected \(3, 2\)"),
            (
                {"features": np.full((3, 5), np.nan), "coords": np.zeros((3, 2))},
                "holds no features: all 3 rows are NaN",
            ),
            ({"embeddings": np.zeros((3, 5)), "barcodes": np.array([b"a", b"b"])}, "2 barcodes for 3 vectors"),
        ],
    )
    def test_content(self, query, tmp_path, datasets, message):
        with pytest.raises(ValueError, match=message):
            rg.io.read_embeddings(query, write_h5(tmp_path / "a.h5", datasets), model="m", tile_px=32, mpp=2.0)

    def test_other_image(self, query, vectors, tmp_path):
        with pytest.raises(ValueError, match="No spot lies in a tile"):
            rg.io.read_embeddings(query, trident(tmp_path / "a.h5", corners_of(query) + 5000, vectors))

    def test_nothing_is_added_when_names_are_taken(self, vectors, tmp_path):
        sdata = rg.io.read_slide(write_pyramid(tmp_path / "a.tif", paint(3, 400, 400, 1.0), mpp=1.0))
        rg.pp.tile_grid(sdata, tile_px=64, mpp=1.0, tissue=False)
        del sdata.tables["tiles_table"]
        with pytest.raises(ValueError, match=r"The name 'tiles' for tiles of .* is taken"):
            rg.io.read_embeddings(sdata, trident(tmp_path / "a.h5", np.zeros((3, 2)), vectors[:3]))
        assert not sdata.tables


def lazyslide_object(path, edge=64):
    """What LazySlide leaves in a SpatialData: tiles in pixels of the slide, their specification, a table of features."""
    import geopandas as gpd
    from anndata import AnnData
    from shapely import box
    from spatialdata.models import ShapesModel, TableModel

    sdata = rg.io.read_slide(path, image_key="wsi")
    sdata.attrs = {"slide_properties": {"shape": [700, 700], "n_level": 3, "mpp": 1.0, "magnification": None}}
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(128, 640, edge), np.arange(0, 640, edge)))
    ids = np.arange(len(x))
    tiles = gpd.GeoDataFrame(
        {"tile_id": ids, "tissue_id": 0, "geometry": [box(a, b, a + edge, b + edge) for a, b in zip(x, y, strict=True)]}
    )
    sdata.shapes["tissues"] = ShapesModel.parse(
        gpd.GeoDataFrame({"tissue_id": [0], "geometry": [box(90, 0, 700, 700)]})
    )
    sdata.shapes["tiles"] = ShapesModel.parse(tiles)
    sdata.attrs["tile_spec"] = {
        "tiles": {"height": 32, "width": 32, "mpp": 2.0, "base_height": edge, "base_width": edge}
    }
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical(["tiles"] * len(ids))}, index=ids.astype(str))
    features = AnnData(np.random.default_rng(0).normal(size=(len(ids), D)).astype(np.float32), obs=obs)
    sdata.tables["plip_tiles"] = TableModel.parse(
        features, region="tiles", region_key="library_id", instance_key="tile_id"
    )
    return sdata


class TestLazySlide:
    @pytest.fixture
    def sdata(self, tmp_path):
        return lazyslide_object(write_pyramid(tmp_path / "a.tif", paint(3, 700, 700, 1.0), mpp=1.0))

    def test_embed_and_predict(self, sdata, fitted, embed):
        rg.pp.embed_tiles(sdata, shapes_key="tiles", **embed)
        sdata.tables["plip_tiles"].obs["donor"] = "new"
        rg.tl.predict(sdata, fitted)
        predicted = sdata.tables["predicted"]
        assert np.isfinite(predicted.X).all()
        assert predicted.uns["spatialdata_attrs"]["region"] == "tiles"
        assert list(predicted.obs["tile_id"]) == list(sdata.shapes["tiles"]["tile_id"])
        assert sdata.tables["plip_tiles"].X.shape[1] == D, "the features are left alone"

    def test_embeddings_of_trident_join_its_tiles(self, sdata, rng, tmp_path):
        corners = sdata["tiles"].bounds.to_numpy()[:, :2]
        vectors = rng.normal(size=(len(corners), 3)).astype(np.float32)
        rg.io.read_embeddings(sdata, trident(tmp_path / "a.h5", corners[::-1], vectors[::-1]))
        np.testing.assert_array_equal(sdata.tables["plip_tiles"].obsm["X_uni_v1"], vectors)

    def test_real_object(self, tmp_path, fitted, embed):
        wsidata = pytest.importorskip("wsidata")
        path = write_pyramid(tmp_path / "b.tif", paint(3, 700, 700, 1.0), mpp=1.0)
        sdata = wsidata.open_wsi(path, store=None, attach_images=True)
        made = lazyslide_object(path)
        sdata.shapes["tiles"], sdata.tables["plip_tiles"] = made.shapes["tiles"], made.tables["plip_tiles"]
        rg.pp.embed_tiles(sdata, shapes_key="tiles", **embed)
        rg.tl.predict(sdata, fitted)
        assert np.isfinite(sdata.tables["predicted"].X).all()

    def test_resolution_is_that_of_the_slide_and_of_no_other_image(self, sdata, embed):
        sdata.attrs["slide_properties"]["shape"] = [1400, 1400]
        with pytest.raises(ValueError, match="the resolution of image 'wsi' is unknown"):
            rg.pp.embed_tiles(sdata, shapes_key="tiles", **embed)
