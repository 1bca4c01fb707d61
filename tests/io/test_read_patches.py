"""Sections of HEST-Bench and STP-Bench, which hold a picture of every spot and no slide."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg

from ..sections import mean_colour
from .slides import HEST_DIAMETER_UM, HEST_MPP, HEST_PITCH_UM, PATCH_UM, write_patches

PX = int(PATCH_UM / HEST_MPP)
EMBED = {"model": mean_colour, "tile_px": PX, "mpp": HEST_MPP, "key_added": "X_colour", "progress": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("hest"), "DRAWN1", enlarged=1)


@pytest.fixture
def files(written):
    kinds = {"patches": ".h5", "st": ".h5ad", "metadata": ".json"}
    return SimpleNamespace(folder=written, **{kind: written / kind / f"DRAWN1{end}" for kind, end in kinds.items()})


def read(files, **options):
    given = {"metadata": files.metadata, "mpp": HEST_MPP} | options
    return rg.io.read_patches(given.pop("patches", files.patches), given.pop("counts", files.st), **given)


def other(files, path, *, without=(), **changed):
    """The file of pictures with other data sets."""
    with h5py.File(files.patches) as source, h5py.File(path, "w") as file:
        for name in source:
            if name not in (*without, *changed):
                source.copy(name, file)
        for name, values in changed.items():
            file[name] = values
    return path


def test_section(files):
    sdata = read(files)
    table, counts = sdata.tables["table"], ad.read_h5ad(files.st)
    assert not len(sdata.images)
    with h5py.File(files.patches) as file:
        np.testing.assert_array_equal(np.asarray(table.obsm["patches"]), file["img"][()])
        assert list(table.obs_names) == [name.decode() for name in file["barcode"][:, 0]]
    assert list(table.obs_names) != list(counts.obs_names)
    matched = counts[table.obs_names]
    np.testing.assert_array_equal(table.X.toarray(), matched.X.toarray())
    np.testing.assert_array_equal(table.obsm["spatial"], matched.obsm["spatial"])
    spots = sdata["spots"]
    assert list(spots.index) == list(table.obs["spot_id"]) == list(table.obs_names)
    np.testing.assert_allclose(np.column_stack([spots.geometry.x, spots.geometry.y]), matched.obsm["spatial"])
    np.testing.assert_allclose(spots["radius"], HEST_DIAMETER_UM / HEST_MPP / 2)
    assert set(table.obs["donor"]) == {"Atlas of drawn tissue: Patient 1"}
    assert set(table.obs["sample"]) == {"DRAWN1"}
    assert table.uns["ragst"]["source"]["license"] == "CC BY-NC-SA 4.0 (HEST-1k)"
    assert table.obsm["thumbnail"].shape == (100, 64, 64, 3)
    means = [np.asarray(table.obsm[name], float).mean(axis=(1, 2)) for name in ("thumbnail", "patches")]
    np.testing.assert_allclose(*means, atol=1.5)


def test_embeds_like_the_slide(files):
    sdata, whole = read(files), rg.io.read_hest(files.folder, sample="DRAWN1")
    rg.pp.embed_tiles(sdata, **EMBED)
    rg.pp.embed_tiles(whole, context=(1,), **EMBED)
    ours, theirs = sdata.tables["table"], whole.tables["table"]
    np.testing.assert_array_equal(ours.obsm["X_colour"], theirs[ours.obs_names].obsm["X_colour"])
    np.testing.assert_array_equal(ours.obs["tile_padded_fraction"], 0)
    headers = [table.uns["ragst"]["embeddings"]["X_colour"] for table in (ours, theirs)]
    assert [header["image_mpp"] for header in headers] == [HEST_MPP, HEST_MPP]
    assert headers[0]["image_key"] == "patches"


def test_own_pixels_have_a_known_size(files):
    sdata = read(files)
    rg.pp.embed_tiles(sdata, **(EMBED | {"mpp": None}))
    assert sdata.tables["table"].uns["ragst"]["embeddings"]["X_colour"]["mpp"] == HEST_MPP


def test_middle_of_pictures_is_embedded_where_less_is_asked_for(files):
    sdata, whole = read(files), rg.io.read_hest(files.folder, sample="DRAWN1")
    small = EMBED | {"tile_px": PX // 2, "context": (1, 2)}
    rg.pp.embed_tiles(sdata, **small)
    rg.pp.embed_tiles(whole, **small)
    ours = sdata.tables["table"].obsm["X_colour"]
    theirs = whole.tables["table"][sdata.tables["table"].obs_names].obsm["X_colour"]
    np.testing.assert_array_equal(ours[:, :3], theirs[:, :3])
    # The wider field of the slide is read from a level that keeps every second pixel.
    np.testing.assert_allclose(ours[:, 3:], theirs[:, 3:], atol=0.01)


def test_wider_fields_of_view_are_refused(files):
    sdata = read(files)
    with pytest.raises(ValueError, match="show 112 microns around a spot; fields of view of up to 280 were asked for"):
        rg.pp.embed_tiles(sdata, context=(1, 2.5), **EMBED)
    assert "X_colour" not in sdata.tables["table"].obsm


def test_whole_path(tmp_path):
    sections = {}
    for k in (1, 2, 3):
        folder = write_patches(tmp_path, f"S{k}", seed=k, edge=6, meta={"patient": f"P{k}"}, enlarged=1)
        files = SimpleNamespace(patches=folder / "patches" / f"S{k}.h5", st=folder / "st" / f"S{k}.h5ad")
        files.metadata = folder / "metadata" / f"S{k}.json"
        sections[f"S{k}"] = read(files)
    rg.pp.embed_tiles(sections, **EMBED)
    query = sections.pop("S3")
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    assert reference.obs["donor"].nunique() == 2
    table = sections["S1"].tables["table"]
    places = reference.obs.loc["S1:" + table.obs_names, ["x_um", "y_um"]].to_numpy()
    np.testing.assert_allclose(places, table.obsm["spatial"] * HEST_MPP, rtol=1e-6)
    shown = reference["S1:" + table.obs_names].obsm["thumbnail"]
    np.testing.assert_allclose(shown.mean(axis=(1, 2)), table.obsm["thumbnail"].mean(axis=(1, 2)), atol=1.5)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    predicted = query.tables["predicted"]
    axes = rg.pl.prediction(query, genes=predicted.var_names[0], show=False, return_ax=True)
    assert axes is not None
    # Spots are drawn on their own pictures, laid where they are.
    from ragst_sd import _results
    from ragst_sd.pl._section import read_section

    section = read_section(_results.predicted(query, "predicted"))
    canvas, own = section.pyramid.levels[0], query.tables["table"].obsm["thumbnail"]
    for row, (x, y) in enumerate(section.centers.astype(int)[:5]):
        here = canvas[:, y - 5 : y + 5, x - 5 : x + 5].mean(axis=(1, 2))
        np.testing.assert_allclose(here, own[row, 27:37, 27:37].mean(axis=(0, 1)), atol=12)
    pitch = np.diff(np.unique(section.centers[:, 0].round(3)))
    np.testing.assert_allclose(pitch * section.mpp, HEST_PITCH_UM, rtol=0.01)


def test_written_and_read_again(files, tmp_path, caplog):
    sdata = read(files)
    rg.pp.embed_tiles(sdata, **(EMBED | {"model": "texture", "tile_px": 64, "mpp": 1.75}))
    sdata.write(tmp_path / "section.zarr")
    again = sd.read_zarr(tmp_path / "section.zarr")
    with caplog.at_level("INFO"):
        rg.pp.embed_tiles(again, **(EMBED | {"model": "texture", "tile_px": 64, "mpp": 1.75}))
    assert "Reusing `obsm['X_colour']`" in caplog.text


class TestMetadata:
    def test_table_of_all_sections(self, files, tmp_path):
        path = tmp_path / "HEST_v1.csv"
        path.write_text(
            "id,dataset_title,patient,organ,license,pixel_size_um_estimated\n"
            "OTHER,Another,P9,Colon,,0.3\nDRAWN1,Atlas,P4,Breast,CC BY 4.0,2.0\n"
        )
        sdata = read(files, metadata=path)
        table = sdata.tables["table"]
        assert set(table.obs["donor"]) == {"Atlas: P4"}
        assert table.uns["ragst"]["source"]["license"] == "CC BY-NC-SA 4.0 (HEST-1k); original: CC BY 4.0"
        assert sdata.attrs["ragst"]["image_mpp"]["patches"] == 2.0
        with pytest.raises(KeyError, match=r"'S7' not found in .*Available: 'OTHER', 'DRAWN1'"):
            read(files, metadata=path, sample="S7")

    def test_mapping_states_its_own_licence(self, files):
        table = read(files, metadata={"donor": "A", "organ": "Skin", "license": "CC0"}).tables["table"]
        assert set(table.obs["donor"]) == {"A"}
        assert table.uns["ragst"]["source"] == {
            "tissue": "Skin",
            "technology": "unknown",
            "license": "CC0",
            "citation": "unknown",
        }

    def test_none(self, files):
        sdata = read(files, metadata=None, donor="A")
        assert "image_mpp" not in sdata.attrs.get("ragst", {})
        rg.pp.embed_tiles(sdata, **EMBED)
        reference = rg.tl.build_reference({"S": sdata}, use_rep="X_colour")
        assert reference.obs["x_um"].isna().all()


class TestEmbeddings:
    def write(self, files, path, *, by):
        with h5py.File(files.patches) as file:
            barcodes, corners = file["barcode"][()], file["coords"][()]
        order = np.random.default_rng(5).permutation(len(corners))
        with h5py.File(path, "w") as file:
            name = "embeddings" if by == "barcodes" else "features"
            file[name] = np.column_stack([corners[order], order]).astype(np.float32)
            file[by] = {"barcodes": barcodes, "coords": corners}[by][order]
        return path

    @pytest.mark.parametrize("by", ["barcodes", "coords"])
    def test_features_find_their_spots(self, files, tmp_path, by):
        table = read(files, embeddings={"uni_v1": self.write(files, tmp_path / "uni.h5", by=by)}).tables["table"]
        features = table.obsm["X_uni_v1"]
        np.testing.assert_allclose(features[:, :2] + PX // 2, table.obsm["spatial"], atol=1)
        np.testing.assert_array_equal(features[:, 2], np.arange(len(features)))
        header = table.uns["ragst"]["embeddings"]["X_uni_v1"]
        assert (header["encoder"], header["tile_px"], header["mpp"]) == ("uni_v1", PX, HEST_MPP)
        assert header["context"].tolist() == [1.0]

    def test_nothing_that_tells(self, files, tmp_path):
        features = self.write(files, tmp_path / "uni.h5", by="coords")
        patches = other(files, tmp_path / "DRAWN1.h5", without=["coords"])
        with pytest.raises(ValueError, match=r"holds no barcodes, and 'DRAWN1\.h5' no 'coords'"):
            read(files, patches=patches, embeddings={"uni_v1": features})


class TestBadInput:
    def test_no_barcodes(self, files, tmp_path):
        path = other(files, tmp_path / "DRAWN1.h5", without=["barcode"])
        with pytest.raises(ValueError, match=r"holds no barcodes \(data sets: 'coords', 'img'\).* Write the names"):
            read(files, patches=path)

    def test_some_without_counts(self, files, caplog):
        counts = ad.read_h5ad(files.st)
        table = read(files, counts=counts[10:]).tables["table"]
        assert set(table.obs_names) == set(counts.obs_names[10:])
        assert "10 of 100 pictures of 'DRAWN1.h5' have no counts and are left out" in caplog.text
        np.testing.assert_array_equal(table.X.toarray(), counts[table.obs_names].X.toarray())
        assert np.asarray(table.obsm["patches"]).shape == (90, PX, PX, 3)

    def test_counts_of_other_names(self, files):
        counts = ad.read_h5ad(files.st)
        counts.obs_names = "other_" + counts.obs_names
        with pytest.raises(
            ValueError, match=r"No spot of '.*' .* of `counts` \(for example 'other_000x000'.*Check that both"
        ):
            read(files, counts=counts)

    @pytest.mark.parametrize("known", [True, False])
    def test_counts_of_another_section_with_the_same_barcodes(self, files, known):
        counts = ad.read_h5ad(files.st)
        turned = counts.obsm["spatial"] @ [[0.0, 1.0], [-1.0, 0.0]] + [550.0, 0.0]
        counts.obsm["spatial"] = turned
        before = turned.copy()
        with pytest.raises(ValueError, match=r"spots lie elsewhere than their pictures .* Pass the counts of the sec"):
            read(files, counts=counts, metadata=files.metadata if known else None)
        np.testing.assert_array_equal(counts.obsm["spatial"], before)

    def test_duplicated_counts(self, files):
        counts = ad.read_h5ad(files.st)
        counts.obs_names = [counts.obs_names[0], *counts.obs_names[:-1]]
        with pytest.raises(ValueError, match="1 spot names of `counts` are duplicated"):
            read(files, counts=counts)

    @pytest.mark.parametrize(
        ("changed", "found"),
        [
            ({"img": np.zeros((100, 8, 9, 3), np.uint8)}, r"holds uint8 of the shape \(100, 8, 9, 3\)"),
            ({"img": np.zeros((100, 8, 8, 3))}, "holds float64 of the shape"),
            ({"img": np.zeros((99, 8, 8, 3), np.uint8)}, "holds 100 barcodes for 99 pictures"),
            ({"barcode": np.array([b"a"] * 100)}, "barcodes of .* are duplicated, for example 'a'"),
            ({"coords": np.zeros((100, 4))}, r"expected \(100, 2\)"),
        ],
    )
    def test_other_contents(self, files, tmp_path, changed, found):
        with pytest.raises(ValueError, match=found):
            read(files, patches=other(files, tmp_path / "DRAWN1.h5", **changed))

    def test_features_given_as_pictures(self, files, tmp_path):
        path = tmp_path / "uni.h5"
        with h5py.File(path, "w") as file:
            file["features"] = np.zeros((3, 2))
        with pytest.raises(
            ValueError, match=r"holds the data sets 'features'; expected pictures in 'img'.*embeddings="
        ):
            read(files, patches=path)

    def test_damaged(self, files, tmp_path):
        path = tmp_path / "DRAWN1.h5"
        path.write_bytes(Path(files.patches).read_bytes()[:5000])
        with pytest.raises(ValueError, match="cannot be read as h5"):
            read(files, patches=path)

    def test_damaged_metadata(self, files, tmp_path):
        path = tmp_path / "DRAWN1.json"
        path.write_text(json.dumps({"organ": "x"})[:-3])
        with pytest.raises(ValueError, match="cannot be read as json"):
            read(files, metadata=path)

    def test_object_without_pictures(self, files):
        sdata = read(files)
        del sdata.tables["table"].obsm["patches"]
        with pytest.raises(ValueError, match="found 0 images"):
            rg.pp.embed_tiles(sdata, **EMBED)
