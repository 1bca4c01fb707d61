"""Sections in the layout of HEST-1k."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import tifffile

import ragst_sd as rg
from ragst_sd._elements import centers_in_pixels
from ragst_sd.io._read_hest import read_metadata

from .painting import GENES, Tissue
from .slides import HEST_DIAMETER_UM, HEST_MPP, paint, write_hest, write_pyramid


@pytest.fixture
def folder(tmp_path):
    return write_hest(tmp_path / "hest", "DRAWN1")


def test_section(folder):
    sdata = rg.io.read_hest(folder, sample="DRAWN1")
    table = sdata.tables["table"]
    assert set(sdata.images) == {"he"}
    assert list(table.var_names) == GENES
    assert sdata.attrs["ragst"]["image_mpp"]["he"] == HEST_MPP
    np.testing.assert_allclose(sdata["spots"]["radius"], HEST_DIAMETER_UM / HEST_MPP / 2)
    centers = centers_in_pixels(sdata, shapes_key="spots", image_key="he", coordinate_system=None)
    np.testing.assert_allclose(centers.xy, table.obsm["spatial"])
    assert list(centers.index) == list(table.obs["spot_id"]) == list(table.obs_names)
    assert set(table.obs["donor"]) == {"Atlas of drawn tissue: Patient 1"}
    assert set(table.obs["sample"]) == {"DRAWN1"}
    assert table.uns["ragst"]["source"] == {
        "tissue": "Breast",
        "technology": "Visium",
        "license": "CC BY-NC-SA 4.0 (HEST-1k)",
        "citation": "Atlas of drawn tissue, https://example.org/study; in HEST-1k (Jaume et al. 2024)",
    }
    assert "spatial" not in table.uns


def test_picture_lies_under_the_spots(folder):
    sdata = rg.io.read_hest(folder)
    pixels = np.asarray(sdata["he"]["scale0"]["image"].data)
    xy = sdata.tables["table"].obsm["spatial"]
    blocks = [pixels[:, y - 10 : y + 10, x - 10 : x + 10].mean() for x, y in xy.astype(int)]
    assert np.corrcoef(blocks, Tissue(1, 600.0).cellular(xy * HEST_MPP))[0, 1] < -0.7


def test_a_slide_to_be_turned_is_read_as_stored(folder, caplog):
    upright = np.asarray(rg.io.read_hest(folder)["he"]["scale0"]["image"].data)
    path = folder / "wsis" / "DRAWN1.tif"
    tifffile.imwrite(path, upright.transpose(1, 2, 0), photometric="rgb", extratags=[(274, 3, 1, 6, False)])
    read = rg.io.read_hest(folder)
    np.testing.assert_array_equal(np.asarray(read["he"]["scale0"]["image"].data), upright)
    assert "(orientation 6). Its pixels are read as stored" in caplog.text


def test_builds_a_reference(tmp_path, embed):
    for k in (1, 2):
        write_hest(tmp_path, f"DRAWN{k}", seed=k, meta={"patient": f"Patient {k}"})
    sections = {name: rg.io.read_hest(tmp_path, sample=name) for name in ("DRAWN1", "DRAWN2")}
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, **embed)
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    assert set(reference.obs["tissue"]) == {"Breast"}
    assert reference.obs["donor"].nunique() == 2


class TestMetadata:
    def read(self, tmp_path, **meta):
        return rg.io.read_hest(write_hest(tmp_path, "A", meta=meta))

    def test_embedded_resolution_stands_in(self, tmp_path):
        sdata = self.read(tmp_path, pixel_size_um_estimated=float("nan"), pixel_size_um_embedded=0.48)
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == 0.48

    def test_resolution_of_the_file_stands_in(self, tmp_path):
        sdata = self.read(tmp_path, pixel_size_um_estimated=None)
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == pytest.approx(HEST_MPP)

    def test_resolutions_that_differ_are_reported(self, tmp_path, caplog):
        sdata = self.read(tmp_path, pixel_size_um_embedded=0.25)
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == HEST_MPP
        assert "estimates 2 microns per pixel from the spots, the scanner stated 0.25" in caplog.text

    def test_unknown_patients_of_a_study_are_one_donor(self, tmp_path, caplog):
        with caplog.at_level("INFO"):
            sdata = self.read(tmp_path, patient=float("nan"))
        assert set(sdata.tables["table"].obs["donor"]) == {"Atlas of drawn tissue: patient not stated"}
        assert "count as one donor" in caplog.text

    def test_no_donor_is_invented(self, tmp_path):
        sdata = self.read(tmp_path, patient=float("nan"), dataset_title=None)
        assert "donor" not in sdata.tables["table"].obs

    def test_arguments_win(self, tmp_path):
        folder = write_hest(tmp_path, "A")
        sdata = rg.io.read_hest(folder, donor="me", image_mpp=0.6, source={"tissue": "skin"})
        assert set(sdata.tables["table"].obs["donor"]) == {"me"}
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == 0.6
        assert sdata.tables["table"].uns["ragst"]["source"]["tissue"] == "skin"

    def test_diameter_in_microns_stands_in(self, tmp_path):
        folder = write_hest(tmp_path, "A")
        with h5py.File(folder / "st" / "A.h5ad", "a") as file:
            del file["uns/spatial"]
        sdata = rg.io.read_hest(folder)
        np.testing.assert_allclose(sdata["spots"]["radius"], HEST_DIAMETER_UM / HEST_MPP / 2)


class TestErrors:
    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Pass the folder that holds st, wsis and metadata"):
            rg.io.read_hest(tmp_path / "nowhere")

    def test_sample_is_needed_or_unknown(self, folder):
        write_hest(folder, "DRAWN2")
        with pytest.raises(ValueError, match=r"`sample` is needed: 2 sections are in .*: 'DRAWN1', 'DRAWN2'"):
            rg.io.read_hest(folder)
        with pytest.raises(KeyError, match="Did you mean 'DRAWN2'"):
            rg.io.read_hest(folder, sample="drawn2")

    def test_hint_for_a_mistyped_sample_says_nothing_of_the_folder(self, folder):
        with pytest.raises(KeyError) as caught:
            rg.io.read_hest(folder, sample="DRAWN")
        assert "Pass the folder" not in str(caught.value)

    @pytest.mark.parametrize("sample", [None, "DRAWN1"])
    def test_no_sections(self, tmp_path, sample):
        with pytest.raises(FileNotFoundError, match=r"st' holds no sections .*Pass the folder that holds st, wsis"):
            rg.io.read_hest(tmp_path, sample=sample)

    def test_two_lines_for_a_section(self, tmp_path):
        path = tmp_path / "HEST.csv"
        path.write_text("id,patient\nA,1\nB,2\nB,3\n")
        assert read_metadata(path, "A")["patient"] == 1
        with pytest.raises(ValueError, match=r"lines of 'HEST\.csv' are duplicated, for example 'B'"):
            read_metadata(path, "B")

    @pytest.mark.parametrize("file", ["wsis/DRAWN1.tif", "metadata/DRAWN1.json"])
    def test_missing_file(self, folder, file):
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=rf"'{file}'.*rg\.datasets\.load"):
            rg.io.read_hest(folder)

    def test_nothing_known_of_size(self, tmp_path):
        folder = write_hest(tmp_path, "A", meta={"pixel_size_um_estimated": None, "spot_diameter": None})
        write_pyramid(folder / "wsis" / "A.tif", paint(1, 600, 600), mpp=None)
        with pytest.raises(ValueError, match="Pass `image_mpp=`"):
            rg.io.read_hest(folder)
        with h5py.File(folder / "st" / "A.h5ad", "a") as file:
            del file["uns/spatial"]
        with pytest.raises(ValueError, match="diameter of spots"):
            rg.io.read_hest(folder, image_mpp=2.0)

    def test_truncated_picture(self, folder):
        path = folder / "wsis" / "DRAWN1.tif"
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match="DRAWN1"):
            rg.io.read_hest(folder)
