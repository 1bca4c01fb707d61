"""Every layout once from end to end: small made files on a server of 127.0.0.1, loaded by name."""

from __future__ import annotations

import gzip
import io
import logging
import shutil
import tarfile
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.sparse import csr_matrix

import ragst_sd as rg
from ragst_sd._elements import centers_in_pixels
from ragst_sd.datasets import _layouts, _load

from ..io import layouts
from ..io.painting import GENES, Tissue
from ..io.slides import HEST_MPP, paint, write_hest, write_pyramid
from .catalog_schema import FIELDS, catalog_faults

CITATION = {"author": "Painter, A.", "title": "Drawn tissue", "year": 2020, "doi": "10.1000/drawn"}


@pytest.fixture
def offer(server, cache, monkeypatch):
    """Put a data set into the catalogue and its files onto the server; gives its name."""
    entries = {}

    def add(loader, kept: dict[str, bytes], samples: dict[str, dict], *, unchecked=False, archives=(), **fields) -> str:
        name = f"drawn_{loader}".lower()
        entry = dict.fromkeys(FIELDS) | {
            "name": name,
            "title": "Drawn tissue",
            "kind": "spatial",
            "organ": "breast",
            "species": "Homo sapiens",
            "technology": "Visium",
            "license": "CC-BY-4.0",
            "gated": False,
            "url": "https://example.org/drawn",
            "citation": CITATION,
            "layout": loader,
            "loader": loader,
            "files": [server.add(one, content) for one, content in kept.items()],
            "samples": {s: {"donor": f"donor of {s}", "files": roles} for s, roles in samples.items()},
            "status": "tested",
            "unverified": [],
            "checked": "made here",
        }
        entry |= fields
        for file in entry["files"]:
            if unchecked:
                file.update(size=None, sha256=None)
            if file["name"] in dict(archives):
                file.update(dict(archives)[file["name"]])
        assert catalog_faults([entry]) == []
        entries[name] = entry
        return name

    monkeypatch.setattr(_load, "catalog_entry", lambda name: entries[name])
    return add


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Folder of a section in a layout."""
    root, writers = (
        tmp_path_factory.mktemp("drawn"),
        {
            "st": layouts.write_st,
            "visium": layouts.write_visium,
            "visium_hd": layouts.write_visium_hd,
            "xenium": layouts.write_xenium,
        },
    )
    made = {}

    def files(layout: str) -> Path:
        if layout not in made:
            made[layout] = writers[layout](root / layout, seed=1)
        return made[layout]

    return files


def zipped(folder: Path, prefix: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{prefix}{path.relative_to(folder)}")
    return out.getvalue()


def tarred(folder: Path, prefix: str = "", mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.add(path, f"{prefix}{path.relative_to(folder)}")
    return out.getvalue()


def turned(tiff: bytes) -> bytes:
    """The same pixels, with a flag to be shown rotated."""
    out = io.BytesIO()
    tifffile.imwrite(
        out, tifffile.imread(io.BytesIO(tiff)), photometric="rgb", extratags=[(274, 3, 1, 6, False)], tile=(256, 256)
    )
    return out.getvalue()


def assert_house(sdata, *, mpp: float | None, sample: str = "S1") -> None:
    """Names, donor and source as every loader gives them; darker where the counts say cellular."""
    assert set(sdata.images) == {"he"}
    assert set(sdata.shapes) == {"spots"}
    assert set(sdata.tables) == {"table"}
    table = sdata.tables["table"]
    assert set(table.obs["donor"]) == {f"donor of {sample}"}
    assert set(table.obs["sample"]) == {sample}
    assert table.uns["spatialdata_attrs"]["region"] == "spots"
    assert table.uns["ragst"]["source"]["license"] == "CC-BY-4.0"
    assert "Drawn tissue" in table.uns["ragst"]["source"]["citation"]
    assert table.uns["ragst"]["source"]["tissue"] == "breast"
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(mpp, rel=0.03)
    rg.pp.embed_tiles(sdata, model=Brightness(), tile_px=32, mpp=2.0, context=(1,), key_added="X_b", progress=False)
    rg.tl.build_reference({sample: sdata}, use_rep="X_b")
    counts = np.asarray(table.X.sum(1)).ravel()
    share = np.asarray(table.X[:, ::3].sum(1)).ravel() / np.maximum(counts, 1)
    assert np.corrcoef(share, table.obsm["X_b"][:, 0])[0, 1] < -0.5


class Brightness:
    name = "brightness"

    def __call__(self, tiles):
        return tiles.float().mean(dim=(2, 3))


class TestLayouts:
    def test_st_tsv(self, offer, drawn):
        folder = drawn("st")
        files = {name: (folder / name).read_bytes() for name in ("counts.tsv.gz", "selection.tsv", "he.jpg")}
        roles = {"counts": "counts.tsv.gz", "coordinates": "selection.tsv", "image": "he.jpg"}
        name = offer("st_tsv", files, {"S1": roles}, um_between_centers=200.0)
        assert_house(rg.datasets.load(name)["S1"], mpp=layouts.ST_MPP)

    def test_st_tsv_with_a_transformation(self, offer, drawn):
        folder = drawn("st")
        table = pd.read_csv(folder / "counts.tsv.gz", sep="\t", index_col=0)
        step = layouts.ST_PITCH_UM / layouts.ST_MPP
        matrix = f"{step} 0 0 0 {step} 0 {-step} {-2 * step} 1"
        files = {
            "counts.tsv": table.to_csv(sep="\t").encode(),
            "to_pixels.txt": matrix.encode(),
            "he.jpg": (folder / "he.jpg").read_bytes(),
        }
        roles = {"counts": "counts.tsv", "transformation": "to_pixels.txt", "image": "he.jpg"}
        name = offer("st_tsv", files, {"S1": roles}, um_between_centers=200.0)
        sdata = rg.datasets.load(name)["S1"]
        assert_house(sdata, mpp=layouts.ST_MPP)
        # the spot named 2x3 is the first of the array, which lies one pitch from the corner
        np.testing.assert_allclose(sdata.tables["table"]["2x3"].obsm["spatial"], [[step, step]])

    def test_st_h5ad(self, offer, tmp_path, drawn):
        sdata = rg.io.read_st(
            drawn("st") / "counts.tsv.gz", drawn("st") / "he.jpg", coordinates=drawn("st") / "selection.tsv"
        )
        table = ad.AnnData(sdata["table"].X, var=sdata["table"].var, obs=pd.DataFrame(index=sdata["table"].obs_names))
        table.obsm["spatial"] = sdata["table"].obsm["spatial"]
        table.write_h5ad(tmp_path / "S1.h5ad")
        files = {"S1.h5ad": (tmp_path / "S1.h5ad").read_bytes(), "S1.jpg": (drawn("st") / "he.jpg").read_bytes()}
        name = offer("st_h5ad", files, {"S1": {"counts": "S1.h5ad", "image": "S1.jpg"}}, image_mpp=layouts.ST_MPP)
        assert_house(rg.datasets.load(name)["S1"], mpp=layouts.ST_MPP)

    def visium_files(self, folder):
        return {
            "S1_matrix.h5": (folder / "outs" / "filtered_feature_bc_matrix.h5").read_bytes(),
            "S1_spatial.tar.gz": tarred(folder / "outs" / "spatial", "spatial/"),
            "S1.tif": (folder / "he.tif").read_bytes(),
        }

    def test_visium(self, offer, drawn):
        roles = {"counts": "S1_matrix.h5", "spatial": "S1_spatial.tar.gz", "image": "S1.tif"}
        archives = {"S1_spatial.tar.gz": {"archive": "tar.gz"}}
        name = offer("visium", self.visium_files(drawn("visium")), {"S1": roles}, archives=archives)
        sdata = rg.datasets.load(name)["S1"]
        assert_house(sdata, mpp=layouts.VISIUM_MPP)
        self.assert_as_spatialdata_io(sdata, drawn("visium"))
        assert type(sdata["he"]).__name__ == "DataTree", "the picture stays in its file"

    def test_visium_whose_picture_is_to_be_turned(self, offer, drawn):
        files = self.visium_files(drawn("visium"))
        files["S1.tif"] = turned(files["S1.tif"])
        roles = {"counts": "S1_matrix.h5", "spatial": "S1_spatial.tar.gz", "image": "S1.tif"}
        name = offer("visium", files, {"S1": roles}, archives={"S1_spatial.tar.gz": {"archive": "tar.gz"}})
        with pytest.raises(ValueError, match=r"'S1.tif' has a flag to be shown rotated or mirrored \(orientation 6\)"):
            rg.datasets.load(name)

    def assert_as_spatialdata_io(self, sdata, folder):
        from spatialdata_io import visium

        expected = visium(folder / "outs", dataset_id="s", fullres_image_file=folder / "he.tif")
        table, known = sdata["table"], expected["table"]
        assert list(table.obs_names) == list(known.obs_names)
        np.testing.assert_array_equal(table.X.toarray(), known.X.toarray())
        np.testing.assert_allclose(table.obsm["spatial"], known.obsm["spatial"])
        np.testing.assert_allclose(sdata["spots"]["radius"], expected["s"]["radius"])
        for column in ("in_tissue", "array_row", "array_col"):
            np.testing.assert_array_equal(table.obs[column], known.obs[column])
        np.testing.assert_array_equal(
            np.asarray(sdata["he"]["scale0"]["image"].data),
            np.asarray(expected["s_full_image"]["scale0"]["image"].data),
        )

    def test_visium_all_in_one_archive(self, offer, drawn):
        folder = drawn("visium")
        at = "all.zip/deposit"
        roles = {"counts": f"{at}/outs/filtered_feature_bc_matrix.h5", "spatial": f"{at}/outs", "image": f"{at}/he.tif"}
        archives = {"all.zip": {"archive": "zip"}}
        name = offer("visium", {"all.zip": zipped(folder, "deposit/")}, {"S1": roles}, archives=archives)
        self.assert_as_spatialdata_io(rg.datasets.load(name)["S1"], folder)

    def test_visium_with_positions_of_space_ranger_1(self, offer, drawn):
        folder = drawn("visium")
        files = self.visium_files(folder)
        spatial = folder / "outs" / "spatial"
        positions = pd.read_csv(spatial / "tissue_positions.csv")
        files["list.txt"] = positions.to_csv(header=False, index=False).encode()
        files["scales.json"] = (spatial / "scalefactors_json.json").read_bytes()
        roles = {"counts": "S1_matrix.h5", "positions": "list.txt", "scalefactors": "scales.json", "image": "S1.tif"}
        sdata = rg.datasets.load(offer("visium", files, {"S1": roles}))["S1"]
        self.assert_as_spatialdata_io(sdata, folder)

    def test_visium_without_its_picture(self, offer, drawn, caplog):
        roles = {"counts": "S1_matrix.h5", "spatial": "S1_spatial.tar.gz"}
        name = offer("visium", self.visium_files(drawn("visium")), {"S1": roles})
        sdata = rg.datasets.load(name)["S1"]
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(
            layouts.VISIUM_MPP / layouts.VISIUM_HIRES, rel=0.03
        )
        np.testing.assert_allclose(
            sdata["spots"]["radius"], layouts.VISIUM_DIAMETER_UM / layouts.VISIUM_MPP * layouts.VISIUM_HIRES / 2
        )
        assert "the overview is used instead" in caplog.text

    def test_visium_of_two_sections_mixed_up(self, offer, drawn):
        folder = drawn("visium")
        files = self.visium_files(folder)
        positions = pd.read_csv(folder / "outs" / "spatial" / "tissue_positions.csv")
        positions["barcode"] = positions["barcode"].str[::-1]
        files["list.csv"] = positions.to_csv(index=False).encode()
        files["scales.json"] = (folder / "outs" / "spatial" / "scalefactors_json.json").read_bytes()
        roles = {"counts": "S1_matrix.h5", "positions": "list.csv", "scalefactors": "scales.json", "image": "S1.tif"}
        with pytest.raises(ValueError, match=r"barcodes of section 'S1' have no position.*not of one section"):
            rg.datasets.load(offer("visium", files, {"S1": roles}))

    def test_visium_hd(self, offer, drawn):
        folder = drawn("visium_hd")
        files = {
            "S1_bins.tar.gz": tarred(folder / "binned_outputs", "binned_outputs/"),
            "S1.btf": (folder / "microscope_image" / "he.tif").read_bytes(),
        }
        roles = {"bins": "S1_bins.tar.gz", "image": "S1.btf"}
        name = offer("visium_hd", files, {"S1": roles}, archives={"S1_bins.tar.gz": {"archive": "tar.gz"}})
        with pytest.raises(KeyError, match="holds no 'square_016um/filtered"):
            rg.datasets.load(name)
        sdata = rg.datasets.load(name, bin_um=8)["S1"]
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == layouts.HD_MPP
        from spatialdata_io import visium_hd

        expected = visium_hd(folder, dataset_id="s", load_segmentations_only=False)["square_008um"]
        assert list(sdata["table"].obs_names) == list(expected.obs_names)
        np.testing.assert_array_equal(sdata["table"].X.toarray(), expected.X.toarray())
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], expected.obsm["spatial"])

    @pytest.mark.parametrize("within", [False, True])
    def test_xenium(self, offer, drawn, within):
        folder = drawn("xenium")
        files = {
            "S1_outs.zip": zipped(folder, "outs/"),
            "he.ome.tif": (folder / "slide_he_image.ome.tif").read_bytes(),
            "align.csv": (folder / "slide_he_imagealignment.csv").read_bytes(),
        }
        roles = {"bundle": "S1_outs.zip"} | ({} if within else {"image": "he.ome.tif", "alignment": "align.csv"})
        name = offer("xenium", files, {"S1": roles}, archives={"S1_outs.zip": {"archive": "zip"}})
        sdata = rg.datasets.load(name)["S1"]
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(layouts.XENIUM_HE_MPP)
        centers = centers_in_pixels(sdata, shapes_key="spots", image_key="he", coordinate_system="global")
        pixels = np.asarray(sdata["he"]["scale0"]["image"].data)
        blocks = [pixels[:, y - 20 : y + 20, x - 20 : x + 20].mean() for x, y in centers.xy.astype(int)]
        assert np.corrcoef(blocks, Tissue(1).cellular(sdata["table"].obsm["spatial"]))[0, 1] < -0.7
        assert list(sdata["table"].var_names) == GENES
        assert set(sdata["table"].obs["donor"]) == {"donor of S1"}
        assert set(sdata.shapes) == {"spots"}
        sdata["table"].obs.index  # noqa: B018
        rg.pp.embed_tiles(sdata, model=Brightness(), tile_px=32, mpp=1.0, context=(1,), key_added="X_b", progress=False)
        rg.tl.build_reference({"S1": sdata}, use_rep="X_b")

    def test_hest(self, offer, tmp_path):
        files, samples = {}, {}
        for k in (1, 2):
            write_hest(tmp_path / "made", f"DRAWN{k}", seed=k, meta={"patient": f"Patient {k}"})
        for path in sorted((tmp_path / "made").rglob("*.*")):
            files[str(path.relative_to(tmp_path / "made"))] = path.read_bytes()
        samples = {
            "DRAWN1": {"counts": "st/DRAWN1.h5ad", "image": "wsis/DRAWN1.tif", "metadata": "metadata/DRAWN1.json"}
        }
        name = offer("hest", files, samples)
        found = rg.datasets.load(name, samples=["DRAWN1", "DRAWN2"])
        assert set(found["DRAWN1"]["table"].obs["donor"]) == {"donor of DRAWN1"}
        assert set(found["DRAWN2"]["table"].obs["donor"]) == {"Atlas of drawn tissue: Patient 2"}, "from its metadata"
        assert found["DRAWN1"].attrs["ragst"]["image_mpp"]["he"] == HEST_MPP
        assert "HEST-1k" in found["DRAWN2"]["table"].uns["ragst"]["source"]["citation"]

    def test_slide(self, offer, tmp_path):
        content = write_pyramid(tmp_path / "a.tif", paint(1, 600, 700), mpp=None).read_bytes()
        name = offer("slide", {"a.tif": content}, {"S1": {"image": "a.tif"}}, image_mpp=0.5)
        sdata = rg.datasets.load(name)["S1"]
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == 0.5
        assert sdata.attrs["ragst"]["source"]["license"] == "CC-BY-4.0"
        rg.pp.tile_grid(sdata, tile_px=64)

    @pytest.mark.parametrize("column", [None, "donor_id"])
    def test_h5ad_of_single_cells(self, offer, tmp_path, column):
        table = ad.AnnData(csr_matrix(np.eye(4, 3, dtype=np.float32)))
        if column:
            table.obs[column] = ["a", "a", "b", "b"]
        table.write_h5ad(tmp_path / "a.h5ad")
        name = offer("h5ad", {"a.h5ad": (tmp_path / "a.h5ad").read_bytes()}, {"S1": {"counts": "a.h5ad"}}, kind="scrna")
        sdata = rg.datasets.load(name)["S1"]
        assert list(sdata["table"].obs["donor"]) == (["a", "a", "b", "b"] if column else ["donor of S1"] * 4)
        assert sdata["table"].uns["ragst"]["source"]["tissue"] == "breast"


@pytest.fixture
def slides(offer, tmp_path):
    """A data set of two slides."""
    content = write_pyramid(tmp_path / "a.tif", paint(1, 300, 300)).read_bytes()
    return offer("slide", {"a.tif": content, "b/b.tif": content}, {"A": {"image": "a.tif"}, "B": {"image": "b/b.tif"}})


class TestWhere:
    def test_cache_is_used_again(self, slides, server, cache):
        rg.datasets.load(slides)
        assert (cache / "datasets" / slides / "b" / "b.tif").is_file()
        n = len(server.asked)
        rg.datasets.load(slides)
        assert len(server.asked) == n == 2

    def test_only_what_is_asked_for_is_downloaded(self, slides, server):
        assert list(rg.datasets.load(slides, samples="B")) == ["B"]
        assert [path for path, _ in server.asked] == ["/b/b.tif"]

    def test_mirror_comes_first_and_is_left_alone(self, slides, server, cache, tmp_path, monkeypatch):
        rg.datasets.load(slides)
        mirror = tmp_path / "mirror"
        shutil.copytree(cache / "datasets" / slides, mirror / slides, ignore=shutil.ignore_patterns(".*"))
        shutil.rmtree(cache)
        before = sorted(mirror.rglob("*"))
        server.files.clear()
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(mirror))
        assert set(rg.datasets.load(slides)) == {"A", "B"}
        assert sorted(mirror.rglob("*")) == before
        assert not cache.exists()

    def test_what_the_mirror_lacks_is_downloaded(self, slides, server, cache, tmp_path, monkeypatch):
        (tmp_path / "mirror").mkdir()
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
        rg.datasets.load(slides, samples="A")
        assert [path for path, _ in server.asked] == ["/a.tif"]

    def test_damaged_mirror_is_an_error(self, slides, server, tmp_path, monkeypatch):
        (tmp_path / "mirror" / slides).mkdir(parents=True)
        (tmp_path / "mirror" / slides / "a.tif").write_bytes(b"damaged")
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
        with pytest.raises(
            ValueError, match=r"in the mirror \(RAGST_SD_DATA_DIR\) is not the file of the catalogue: 7 bytes"
        ):
            rg.datasets.load(slides)
        assert server.asked == []

    def test_offline(self, slides, server, monkeypatch):
        import requests

        def unreachable(*args, **kwargs):
            reason = "Network is unreachable"
            raise requests.ConnectionError(reason)

        monkeypatch.setattr(requests, "get", unreachable)
        with pytest.raises(ConnectionError, match=rf"<folder>/{slides}/a\.tif and set RAGST_SD_DATA_DIR=<folder>\."):
            rg.datasets.load(slides)

    def test_mirror_that_is_no_folder_is_reported(self, slides, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirorr"))
        rg.datasets.load(slides, samples="A")
        assert "which is no folder: there is no mirror" in caplog.text

    def test_own_files(self, slides, server, cache, tmp_path):
        own = tmp_path / "own"
        own.mkdir()
        for name in ("a.tif", "b.tif"):  # without the folder that the catalogue names
            (own / name).write_bytes(server.files["/a.tif"])
        assert set(rg.datasets.load(slides, path=own)) == {"A", "B"}
        assert server.asked == []
        (own / "b.tif").unlink()
        with pytest.raises(FileNotFoundError, match=r"'b/b\.tif' of data set .* is not in `path=.*It holds 'a\.tif'"):
            rg.datasets.load(slides, path=own)
        assert server.asked == []


class TestBrokenDownloads:
    def test_truncated(self, slides, server, cache):
        server.cut_after = [5000] + [0] * 20
        with pytest.raises(ConnectionError, match="the next call goes on from there"):
            rg.datasets.load(slides, samples="A")
        assert not (cache / "datasets" / slides / "a.tif").exists()
        server.cut_after = []
        rg.datasets.load(slides, samples="A")
        assert server.asked[-1] == ("/a.tif", "bytes=5000-")

    def test_corrupted(self, slides, server, cache):
        content = bytearray(server.files["/a.tif"])
        content[2000] ^= 255
        server.files["/a.tif"] = bytes(content)
        with pytest.raises(ValueError, match="not the file that was expected: sha256"):
            rg.datasets.load(slides, samples="A")
        assert not (cache / "datasets" / slides / "a.tif").exists()

    def test_truncated_where_nothing_is_known_of_the_file(self, offer, server, tmp_path):
        content = write_pyramid(tmp_path / "a.tif", paint(1, 300, 300)).read_bytes()
        name = offer("slide", {"a.tif": content[:5000]}, {"A": {"image": "a.tif"}}, unchecked=True)
        with pytest.raises(ValueError, match=r"a\.tif' is damaged or incomplete"):
            rg.datasets.load(name)


class TestArchives:
    @pytest.fixture
    def slide(self, tmp_path):
        (tmp_path / "made" / "deep").mkdir(parents=True)
        write_pyramid(tmp_path / "made" / "deep" / "a.tif", paint(1, 300, 300))
        return tmp_path / "made"

    def offered(self, offer, name, content, kind, **more):
        archives = {name: {"archive": kind, **more}}
        return offer("slide", {name: content}, {"A": {"image": f"{name}/deep/a.tif"}}, archives=archives)

    @pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
    def test_members(self, offer, slide, server, cache, kind):
        content = zipped(slide) if kind == "zip" else tarred(slide, mode="w:gz" if kind == "tar.gz" else "w")
        name = self.offered(offer, f"all.{kind}", content, kind)
        for _ in range(2):
            assert rg.datasets.load(name)["A"].attrs["ragst"]["image_mpp"]["he"] == pytest.approx(0.5)
        assert len(server.asked) == 1
        assert len(list((cache / "datasets" / name / "unpacked").rglob("a.tif"))) == 1

    def test_what_was_cleared_or_left_unfinished_is_unpacked_anew(self, offer, slide, server, cache):
        name = self.offered(offer, "all.zip", zipped(slide), "zip")
        rg.datasets.load(name)
        unpacked = cache / "datasets" / name / "unpacked"
        (member,) = unpacked.rglob("a.tif")
        member.unlink()
        folder = member.parents[1]
        unfinished = unpacked / f".{folder.name}.0123abcd.new"
        (unfinished / "deep").mkdir(parents=True)
        assert set(rg.datasets.load(name)) == {"A"}
        assert member.is_file()
        assert not unfinished.exists()
        # Files of this name are looked into, folders are not.
        (folder / "deep.h5").mkdir()
        assert set(rg.datasets.load(name)) == {"A"}
        assert len(server.asked) == 1

    def test_own_folder_unpacked_by_hand(self, offer, slide, server, tmp_path):
        name = self.offered(offer, "all.zip", zipped(slide), "zip")
        assert set(rg.datasets.load(name, path=slide)) == {"A"}
        (tmp_path / "own").mkdir()
        slide.rename(tmp_path / "own" / "all")
        assert set(rg.datasets.load(name, path=tmp_path / "own")) == {"A"}
        assert server.asked == []

    def test_encrypted_zip(self, offer, slide):
        content = bytearray(zipped(slide))
        # the flag is set in both headers; that the content is not encrypted is of no matter for the question
        for at in (6, content.rindex(b"PK\x01\x02") + 8):
            content[at] |= 1
        name = self.offered(offer, "all.zip", bytes(content), "zip", password_published_at="https://example.org/readme")
        for password in (None, "wrong"):
            with pytest.raises(PermissionError, match=r"is encrypted, and `password=`.*https://example\.org/readme"):
                rg.datasets.load(name, password=password)

    @pytest.mark.parametrize("kind", ["zip", "tar.gz"])
    def test_damaged(self, offer, slide, kind):
        content = zipped(slide) if kind == "zip" else tarred(slide)
        name = self.offered(offer, f"all.{kind}", content[: len(content) // 2], kind)
        with pytest.raises(ValueError, match="is damaged or incomplete"):
            rg.datasets.load(name)

    def test_member_that_is_not_there(self, offer, slide):
        name = self.offered(offer, "all.zip", zipped(slide / "deep"), "zip")
        with pytest.raises(KeyError, match=r"'all\.zip' of data set .* holds no 'deep/a\.tif'"):
            rg.datasets.load(name)

    @pytest.mark.parametrize("evil", ["../../deep/a.tif", "/tmp/deep/a.tif", "x/../../deep/a.tif"])
    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_nothing_is_written_outside(self, offer, slide, cache, tmp_path, kind, evil):
        out, payload = io.BytesIO(), (slide / "deep" / "a.tif").read_bytes()
        if kind == "zip":
            with zipfile.ZipFile(out, "w") as file:
                file.writestr(evil, payload)
        else:
            with tarfile.open(fileobj=out, mode="w") as file:
                member = tarfile.TarInfo(evil)
                member.size = len(payload)
                file.addfile(member, io.BytesIO(payload))
        name = self.offered(offer, f"all.{kind}", out.getvalue(), kind)
        before = {path for path in tmp_path.rglob("*.tif") if cache not in path.parents}
        with pytest.raises((ValueError, KeyError), match=r"outside of its folder|holds no"):
            rg.datasets.load(name)
        assert {path for path in tmp_path.rglob("*.tif") if cache not in path.parents} == before
        assert not Path("/tmp/deep").exists()

    def test_links_are_not_followed(self, offer, tmp_path):
        (tmp_path / "secret.tif").write_bytes(b"secret")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as file:
            member = tarfile.TarInfo("deep/a.tif")
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.tif")
            file.addfile(member)
        name = self.offered(offer, "all.tar", out.getvalue(), "tar")
        with pytest.raises(KeyError, match="holds no"):
            rg.datasets.load(name)


class TestWhatWasDownloaded:
    """It is looked at before it is read; the same file of a user is not."""

    @pytest.fixture
    def linked(self, tmp_path):
        (tmp_path / "own").mkdir()
        ad.AnnData(csr_matrix(np.eye(4, 3, dtype=np.float32))).write_h5ad(tmp_path / "own" / "a.h5ad")
        with h5py.File(tmp_path / "own" / "secret.h5", "w") as file:
            ad.io.write_elem(file, "values", np.arange(12.0).reshape(4, 3))
        with h5py.File(tmp_path / "own" / "a.h5ad", "r+") as file:
            file["layers/extra"] = h5py.ExternalLink("secret.h5", "values")
        return tmp_path / "own"

    def test_file(self, offer, linked):
        name = offer("h5ad", {"a.h5ad": (linked / "a.h5ad").read_bytes()}, {"S1": {"counts": "a.h5ad"}}, kind="scrna")
        with pytest.raises(ValueError, match=r"a\.h5ad was downloaded and is not read: 'layers/extra' is a link"):
            rg.datasets.load(name)
        assert rg.datasets.load(name, path=linked)["S1"]["table"].layers["extra"][1, 0] == 3

    def test_member_of_an_archive(self, offer, linked):
        files, archives = {"all.zip": zipped(linked)}, {"all.zip": {"archive": "zip"}}
        name = offer("h5ad", files, {"S1": {"counts": "all.zip/a.h5ad"}}, kind="scrna", archives=archives)
        with pytest.raises(ValueError, match=r"a\.h5ad was downloaded and is not read: 'layers/extra' is a link"):
            rg.datasets.load(name)
        assert rg.datasets.load(name, path=linked)["S1"]["table"].layers["extra"][1, 0] == 3


class TestHub:
    """The Hugging Face hub, by its own client."""

    @pytest.fixture
    def hub(self, offer, server, tmp_path, monkeypatch):
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
        write_hest(tmp_path / "made", "DRAWN1")
        for path in (tmp_path / "made").rglob("*.*"):
            server.add(str(path.relative_to(tmp_path / "made")), path.read_bytes())

        def named(repository: str, sample: str = "DRAWN1") -> str:
            roles = {
                "counts": f"st/{sample}.h5ad",
                "image": f"wsis/{sample}.tif",
                "metadata": f"metadata/{sample}.json",
            }
            address = f"https://huggingface.co/datasets/lab/{repository}/resolve/main"
            files = [{"name": f, "url": f"{address}/{f}", "size": None, "sha256": None} for f in roles.values()]
            name = offer("hest", {}, {sample: roles}, gated=True, files=files)
            return name

        return named

    def test_files_come_through_the_hub(self, hub, server, cache):
        name = hub("open")
        sdata = rg.datasets.load(name)["DRAWN1"]
        assert set(sdata["table"].obs["donor"]) == {"donor of DRAWN1"}
        assert (cache / "datasets" / name / "wsis" / "DRAWN1.tif").is_file()
        n = len(server.asked)
        rg.datasets.load(name)
        assert len(server.asked) == n

    def test_section_that_is_not_listed(self, hub, server):
        for kind, suffix in (("st", "h5ad"), ("wsis", "tif"), ("metadata", "json")):
            server.files[f"/{kind}/OTHER2.{suffix}"] = server.files[f"/{kind}/DRAWN1.{suffix}"]
        sdata = rg.datasets.load(hub("open"), samples="OTHER2")["OTHER2"]
        assert set(sdata["table"].obs["donor"]) == {"Atlas of drawn tissue: Patient 1"}

    @pytest.mark.parametrize("repository", ["gated", "denied"])
    def test_gating_is_explained(self, hub, server, repository):
        with pytest.raises(PermissionError) as caught:
            rg.datasets.load(hub(repository))
        message = str(caught.value)
        for part in (
            f"{server.url}/datasets/lab/{repository}",
            "accept their terms",
            "hf auth login",
            "HF_TOKEN",
            "RAGST_SD_DATA_DIR",
        ):
            assert part in message
        assert "model" not in message

    def test_no_such_section(self, hub):
        with pytest.raises(FileNotFoundError, match="has no such file"):
            rg.datasets.load(hub("open"), samples="NOWHERE9")

    def test_mirror_needs_no_hub(self, hub, server, tmp_path, monkeypatch):
        name = hub("gated")
        (tmp_path / "mirror").mkdir()
        (tmp_path / "made").rename(tmp_path / "mirror" / name)
        monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
        assert set(rg.datasets.load(name)) == {"DRAWN1"}
        assert server.asked == []


class TestErrors:
    def test_unknown_name(self):
        with pytest.raises(KeyError, match=r"Did you mean 'her2st'"):
            rg.datasets.load("her2")

    def test_unknown_sample(self, slides, server):
        with pytest.raises(KeyError, match=r"has no sample 'C'; available: 'A', 'B'"):
            rg.datasets.load(slides, samples=["A", "C"])
        with pytest.raises(ValueError, match="`samples` is empty"):
            rg.datasets.load(slides, samples=[])
        assert server.asked == []

    def test_not_loadable(self, offer):
        with pytest.raises(ValueError, match=r"listed but cannot be loaded.*https://example\.org/drawn"):
            rg.datasets.load(offer(None, {}, {}, layout="other", status="listed"))

    def test_census(self, offer):
        name = offer("census", {}, {}, query="tissue == 'breast'", kind="scrna")
        with pytest.raises(ValueError, match="load_census"):
            rg.datasets.load(name)

    def test_path(self, slides, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            rg.datasets.load(slides, path=tmp_path / "nowhere")

    @pytest.mark.parametrize("bin_um", [0, 8.5, "8"])
    def test_bin_um(self, slides, bin_um):
        with pytest.raises(ValueError, match="`bin_um` is"):
            rg.datasets.load(slides, bin_um=bin_um)


def test_real_slide_of_the_catalogue(data_dir, cache):
    folder = data_dir / "histology" / "wsi_test"
    sdata = rg.datasets.load("cmu_1_small_region", path=folder)["CMU-1-Small-Region"]
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(0.499)
    assert not cache.exists()


def test_licence_and_citation_are_logged(slides, caplog):
    with caplog.at_level(logging.INFO):
        rg.datasets.load(slides)
    assert (
        f"Licence of '{slides}': CC-BY-4.0. To cite: Painter, A. (2020). Drawn tissue. https://doi.org/10.1000/drawn"
        in caplog.text
    )


def test_every_loader_of_the_catalogue_has_a_reader():
    from .catalog_schema import LOADERS

    assert set(_layouts.LAYOUTS) == set(LOADERS) - {"census", "screen"}


def test_gzipped_positions_are_not_needed_to_be_unpacked(offer, drawn):
    content = gzip.compress((drawn("st") / "selection.tsv").read_bytes())
    files = {"c.tsv.gz": (drawn("st") / "counts.tsv.gz").read_bytes(), "s.tsv.gz": content}
    files["he.jpg"] = (drawn("st") / "he.jpg").read_bytes()
    roles = {"counts": "c.tsv.gz", "coordinates": "s.tsv.gz", "image": "he.jpg"}
    name = offer("st_tsv", files, {"S1": roles}, um_between_centers=200.0)
    assert rg.datasets.load(name)["S1"]["table"].n_obs == 81
