"""What spatialdata-io makes of the layouts of 10x Genomics: the facts that this package relies on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import KDTree
from spatialdata.transformations import get_transformation

import ragst_sd as rg
from ragst_sd._annotation import single_region
from ragst_sd._elements import centers_in_pixels, resolve_image, resolve_shapes

from . import layouts
from .painting import GENES, Tissue, affine


def _frames(element):
    return set(get_transformation(element, get_all=True))


def _matrix(element, frame):
    return np.asarray(get_transformation(element, frame).to_affine_matrix(("x", "y"), ("x", "y")))


def _link(table):
    attrs = table.uns["spatialdata_attrs"]
    return attrs["region"], attrs["region_key"], attrs["instance_key"]


def _pitch(xy):
    return np.median(KDTree(xy).query(xy, k=2)[0][:, 1])


class TestVisium:
    @pytest.fixture
    def sdata(self, section):
        return section("visium", 1)

    def test_elements(self, sdata):
        assert set(sdata.images) == {"s1_full_image", "s1_hires_image", "s1_lowres_image"}
        assert set(sdata.shapes) == {"s1"}
        assert _link(sdata["table"]) == ("s1", "region", "spot_id")
        assert list(sdata["table"].var_names) == GENES
        assert sdata["table"].n_obs == 143, "the spot that is not in the tissue is in no filtered matrix"

    def test_no_frame_is_named_global(self, sdata):
        assert set(sdata.coordinate_systems) == {"s1", "s1_downscaled_hires", "s1_downscaled_lowres"}
        assert _frames(sdata["s1_full_image"]) == {"s1"}
        assert _frames(sdata["s1_hires_image"]) == {"s1", "s1_downscaled_hires"}

    def test_scales(self, sdata):
        np.testing.assert_allclose(_matrix(sdata["s1"], "s1"), np.eye(3))
        np.testing.assert_allclose(np.diag(_matrix(sdata["s1_hires_image"], "s1"))[:2], 1 / layouts.VISIUM_HIRES)
        np.testing.assert_allclose(np.diag(_matrix(sdata["s1"], "s1_downscaled_lowres"))[:2], layouts.VISIUM_LOWRES)
        diameter = layouts.VISIUM_DIAMETER_UM / layouts.VISIUM_MPP
        np.testing.assert_allclose(sdata["s1"]["radius"], diameter / 2)
        assert _pitch(sdata["table"].obsm["spatial"]) * layouts.VISIUM_MPP == pytest.approx(100, rel=0.01)

    def test_full_image_is_a_pyramid_and_the_others_are_not(self, sdata):
        assert list(sdata["s1_full_image"]) == [f"scale{k}" for k in range(5)]
        assert sdata["s1_hires_image"].dims == ("c", "y", "x")
        assert sdata["s1_hires_image"].dtype == np.uint8

    def test_resolution_is_not_kept(self, sdata):
        assert not any("mpp" in key or "micron" in key for key in sdata.attrs)

    @pytest.mark.parametrize(
        ("image", "frame", "scale"),
        [
            ("s1_full_image", "s1", 1.0),
            ("s1_hires_image", "s1_downscaled_hires", layouts.VISIUM_HIRES),
            ("s1_hires_image", "s1", layouts.VISIUM_HIRES),
            ("s1_lowres_image", "s1_downscaled_lowres", layouts.VISIUM_LOWRES),
        ],
    )
    def test_spots_in_pixels_of_every_image(self, sdata, image, frame, scale):
        centers = centers_in_pixels(sdata, shapes_key="s1", image_key=image, coordinate_system=frame)
        np.testing.assert_allclose(centers.xy, sdata["table"].obsm["spatial"] * scale, rtol=1e-6)

    def test_hires_image_needs_a_named_frame(self, sdata):
        with pytest.raises(ValueError, match=r"`coordinate_system` is None; .*s1_downscaled_hires"):
            centers_in_pixels(sdata, shapes_key="s1", image_key="s1_hires_image", coordinate_system=None)

    def test_image_must_be_named(self, sdata):
        with pytest.raises(ValueError, match=r"found 3 images.*s1_full_image"):
            resolve_image(sdata, None)


class TestVisiumHD:
    @pytest.fixture
    def sdata(self, section):
        return section("visium_hd", 1)

    def test_elements(self, sdata):
        assert set(sdata.images) == {"s1_full_image", "s1_hires_image", "s1_lowres_image"}
        assert set(sdata.shapes) == {"s1_square_008um"}
        assert set(sdata.tables) == {"square_008um"}
        assert _link(sdata["square_008um"]) == ("s1_square_008um", "region", "location_id")
        assert set(sdata.coordinate_systems) == {"s1", "s1_downscaled_hires", "s1_downscaled_lowres"}

    def test_bins_are_squares_in_full_resolution_pixels(self, sdata):
        squares = sdata["s1_square_008um"]
        edge = layouts.HD_BIN_UM / layouts.HD_MPP
        np.testing.assert_allclose(squares.geometry.area, edge**2)
        assert "radius" not in squares
        centers = centers_in_pixels(
            sdata, shapes_key="s1_square_008um", image_key="s1_full_image", coordinate_system=None
        )
        np.testing.assert_allclose(centers.xy, sdata["square_008um"].obsm["spatial"])
        assert _pitch(centers.xy) == pytest.approx(edge)


class TestVisiumHDCells:
    @pytest.fixture
    def sdata(self, section):
        return section("visium_hd_cells", 1)

    def test_elements(self, sdata):
        assert set(sdata.shapes) == {"s1_square_008um", "s1_cell_segmentations"}
        assert _link(sdata["cell_segmentations"]) == ("s1_cell_segmentations", "region", "cell_id")
        assert set(sdata["s1_cell_segmentations"].geom_type) == {"Polygon"}
        assert "spatial" not in sdata["cell_segmentations"].obsm
        assert list(sdata["cell_segmentations"].obs_names[:2]) == ["cellid_000000014-1", "cellid_000000017-1"]

    def test_cells_have_no_pitch_and_bins_do(self, sdata):
        image = {"image_key": "s1_full_image"}
        with pytest.raises(ValueError, match=r"'s1_cell_segmentations' do not lie on an array.*bins of the same image"):
            rg.pp.set_image_mpp(sdata, **image, shapes_key="s1_cell_segmentations", um_between_centers=8)
        assert "ragst" not in sdata.attrs
        rg.pp.set_image_mpp(sdata, **image, shapes_key="s1_square_008um", um_between_centers=8)
        assert sdata.attrs["ragst"]["image_mpp"]["s1_full_image"] == pytest.approx(layouts.HD_MPP)


class TestXenium:
    @pytest.fixture
    def sdata(self, section):
        return section("xenium", 1)

    def test_elements(self, sdata):
        assert set(sdata.images) == {"he_image", "morphology_focus"}
        assert set(sdata.shapes) == {"cell_boundaries", "cell_circles", "nucleus_boundaries"}
        assert set(sdata.labels) == {"cell_labels", "nucleus_labels"}
        assert set(sdata.coordinate_systems) == {"global"}
        assert [str(name) for name in sdata["he_image"]["scale0"].coords["c"].to_numpy()] == ["r", "g", "b"]
        assert sdata["morphology_focus"]["scale0"]["image"].sizes["c"] == 1

    def test_table_annotates_circles_if_asked_and_labels_otherwise(self, sdata, section_files):
        from spatialdata_io import xenium

        assert _link(sdata["table"]) == ("cell_circles", "region", "cell_id")
        path = section_files("xenium", 1)
        unasked = xenium(path, transcripts=False, morphology_focus=False, aligned_images=False)
        assert _link(unasked["table"]) == ("cell_labels", "region", "cell_labels")
        with pytest.raises(ValueError, match=r"'cell_labels' are labels; spots are shapes or points"):
            resolve_shapes(unasked, single_region(unasked["table"]))

    def test_shapes_are_in_microns_and_the_frame_in_pixels(self, sdata):
        for name in sdata.shapes:
            np.testing.assert_allclose(np.diag(_matrix(sdata[name], "global"))[:2], 1 / layouts.XENIUM_PIXEL_UM)
        centroids = np.column_stack([sdata["cell_circles"].geometry.x, sdata["cell_circles"].geometry.y])
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], centroids)
        assert centroids.max() < 24 * layouts.XENIUM_CELL_PITCH_UM

    def test_aligned_picture_carries_an_affine(self, sdata):
        matrix = _matrix(sdata["he_image"], "global")
        turned = affine(layouts.XENIUM_HE_MPP / layouts.XENIUM_PIXEL_UM, turn=layouts.XENIUM_HE_TURN)
        np.testing.assert_allclose(matrix[:2, :2], turned[:2, :2], atol=1e-9)
        assert matrix[0, 2] > 0

    def test_aligned_picture_read_by_itself(self, sdata, section_files):
        from spatialdata_io import xenium_aligned_image

        path = section_files("xenium", 1)
        alone = xenium_aligned_image(path / "slide_he_image.ome.tif", path / "slide_he_imagealignment.csv")
        np.testing.assert_allclose(
            np.asarray(get_transformation(alone, "global").matrix), _matrix(sdata["he_image"], "global")
        )

    @pytest.mark.parametrize("shapes_key", ["cell_circles", "cell_boundaries"])
    def test_cells_fall_on_the_tissue_they_were_counted_in(self, sdata, shapes_key):
        centers = centers_in_pixels(sdata, shapes_key=shapes_key, image_key="he_image", coordinate_system=None)
        pixels = np.asarray(sdata["he_image"]["scale0"]["image"].data)
        assert (centers.xy > 0).all()
        assert (centers.xy < pixels.shape[1]).all()
        columns, rows = np.floor(centers.xy).astype(int).T
        blocks = [pixels[:, r - 20 : r + 20, c - 20 : c + 20].mean() for r, c in zip(rows, columns, strict=True)]
        cellular = Tissue(1).cellular(sdata["table"].obsm["spatial"])
        assert np.corrcoef(blocks, cellular)[0, 1] < -0.7, "cellular tissue is darker where the counts say so"
