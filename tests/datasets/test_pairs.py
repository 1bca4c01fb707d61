"""Folders of `<section>.h5ad` beside `<section>.jpg`, by the name of a data set or by a name of one's own."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

import ragst_sd as rg
from ragst_sd.datasets._load import _pictures

PIXELS = np.random.default_rng(0).integers(0, 255, size=(60, 80, 3), dtype=np.uint8)


def write_section(folder, section, *, counts=True):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(folder / f"{section}.png")
    if counts:
        adata = ad.AnnData(csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3)))
        adata.obsm["spatial"] = np.array([[10.0, 10], [30, 10], [10, 30], [30, 30]])
        adata.uns["meta"] = {"patient": "p1", "um_per_px": 2.5, "licence": "MIT", "tissue": "skin"}
        adata.write_h5ad(folder / f"{section}.h5ad")


@pytest.fixture
def mirror(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def test_a_folder_of_the_mirror_is_loaded_by_its_name(mirror):
    for name, counts in (("a", True), ("b", True), ("picture", False)):
        write_section(mirror / "mine" / "inner", name, counts=counts)
    loaded = rg.datasets.load("mine/inner")
    assert list(loaded) == ["a", "b", "picture"]
    table = loaded["a"].tables["table"]
    np.testing.assert_array_equal(table.X.toarray(), np.arange(12).reshape(4, 3))
    assert set(table.obs["donor"]) == {"p1"}
    assert table.uns["ragst"]["source"]["license"] == "MIT"
    assert loaded["a"].attrs["ragst"]["image_mpp"] == {"he": 2.5}
    assert not loaded["picture"].tables and not loaded["picture"].shapes
    image = np.asarray(loaded["picture"].images["he"])
    np.testing.assert_array_equal(image, PIXELS.transpose(2, 0, 1))
    assert list(rg.datasets.load("mine/inner", samples="b")) == ["b"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_to_be_turned_is_refused_with_counts_and_read_as_stored_alone(cache, tmp_path, caplog, suffix):
    write_section(tmp_path, "a")
    (tmp_path / "a.png").unlink()
    image = Image.fromarray(PIXELS)
    image.getexif()[274] = 6
    image.save(tmp_path / f"a{suffix}", exif=image.getexif())
    with pytest.raises(ValueError, match=r"shown rotated or mirrored \(orientation 6\)"):
        rg.datasets.load("mine", path=tmp_path)
    (tmp_path / "a.h5ad").unlink()
    found = rg.datasets.load("mine", path=tmp_path)["a"].images["he"]
    found = found["scale0"]["image"] if suffix == ".tif" else found
    np.testing.assert_array_equal(np.asarray(found), PIXELS.transpose(2, 0, 1))
    assert "(orientation 6). Its pixels are read as stored" in caplog.text


def test_a_folder_given_needs_no_name_of_the_catalogue(cache, tmp_path):
    write_section(tmp_path / "here", "a")
    assert list(rg.datasets.load("anything", path=tmp_path / "here")) == ["a"]


def test_a_section_of_the_catalogue_may_lie_as_a_pair(mirror):
    write_section(mirror / "mob_stutility", "MOB3")
    sdata = rg.datasets.load("mob_stutility", samples=["MOB3"])["MOB3"]
    table = sdata.tables["table"]
    # Donor, licence and citation are those of the catalogue, whatever the file says.
    assert set(table.obs["donor"]) == {"stutility ind2"}
    assert table.uns["ragst"]["source"]["tissue"] == "olfactory bulb"
    assert "Bergenstr" in table.uns["ragst"]["source"]["citation"]
    assert sdata.attrs["ragst"]["image_mpp"] == {"he": 2.5}


def test_files_as_published_come_first(mirror, monkeypatch):
    write_section(mirror / "mob_stutility", "MOB3")
    (mirror / "mob_stutility" / "MOB3.tsv").write_text("")
    from ragst_sd.datasets._load import find_samples

    assert find_samples("mob_stutility", samples="MOB3")["MOB3"].loader == "st_tsv"


@pytest.mark.parametrize("name", ["../beside", "mine/../../beside", "{}/beside"])
def test_no_name_leads_out_of_the_mirror(mirror, name):
    write_section(mirror.parent / "beside", "a")
    mirror.mkdir()
    with pytest.raises(ValueError, match=r"beside' leads out of the folder.*\(RAGST_SD_DATA_DIR\) with `path=`"):
        rg.datasets.load(name.format(mirror.parent))
    assert list(rg.datasets.load("../beside", path=mirror.parent / "beside")) == ["a"]


def test_what_is_not_there_is_named(mirror):
    write_section(mirror / "mine", "section_1")
    with pytest.raises(KeyError, match=r"no sample 'section_2'.*section_1"):
        rg.datasets.load("mine", samples=["section_2"])
    (mirror / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        rg.datasets.load("empty")
    with pytest.raises(KeyError, match=r"folder of your own.*RAGST_SD_DATA_DIR"):
        rg.datasets.load("nowhere")


def test_of_several_pictures_the_first_kind_is_taken(tmp_path):
    for name in ("b.tif", "b.JPG", "b.png", "a.tiff", "a.tif"):
        (tmp_path / name).touch()
    assert {name: path.name for name, path in _pictures(tmp_path).items()} == {"a": "a.tif", "b": "b.JPG"}
