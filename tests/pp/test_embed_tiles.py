"""`rg.pp.embed_tiles`: geometry, kinds of elements and images, headers and reuse."""

from __future__ import annotations

import logging
import sys

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, set_transformation

import ragst_sd as rg

from ..sections import annotated, mean_colour, painted, section


class Named:
    name = "mean colour"
    calls = 0

    def __call__(self, tiles):
        Named.calls += 1
        return mean_colour(tiles)


def embed(sdata, **kwargs):
    options = {"model": mean_colour, "tile_px": 16, "mpp": None, "key_added": "X", "progress": False, "amp": False}
    table_key = kwargs.pop("read", "table")
    rg.pp.embed_tiles(sdata, **(options | kwargs))
    return sdata.tables[table_key].obsm["X"]


def expected(xy, window=16, image=None):
    image = painted() if image is None else image
    padded = np.pad(image, ((0, 0), (99, 99), (99, 99)), mode="reflect")
    out = []
    for x, y in xy:
        x0, y0 = (int(np.rint(v - window / 2)) + 99 for v in (x, y))
        out.append(padded[:3, y0 : y0 + window, x0 : x0 + window].mean(axis=(1, 2)) / 255)
    return np.array(out)


XY = np.array([[40.0, 50.0], [200.0, 120.0], [300.0, 230.0], [3.0, 4.0]])


def test_tile_is_centred_on_the_spot():
    np.testing.assert_allclose(embed(section(XY)), expected(XY), atol=1e-6)


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_single_scale_and_multiscale(scale_factors):
    sdata = section(XY, scale_factors=scale_factors)
    np.testing.assert_allclose(embed(sdata), expected(XY), atol=1e-6)
    coarse = embed(sdata, mpp=4.0, image_mpp=1.0, key_added="X", overwrite=True)
    # Windows start at whole pixels of the coarser level, which moves them by up to two of the finest.
    np.testing.assert_allclose(coarse, expected(XY, window=64), atol=0.015)


@pytest.mark.parametrize("kind", ["circles", "polygons", "multipolygons", "points"])
def test_centroids_of_every_kind_of_element(kind):
    if kind == "points":
        element = PointsModel.parse(XY)
        index = np.arange(len(XY))
    elif kind == "circles":
        element = ShapesModel.parse(XY, geometry=0, radius=4)
        index = element.index
    else:
        boxes = [shapely.box(x - 6, y - 3, x + 6, y + 3) for x, y in XY]
        if kind == "multipolygons":
            boxes = [
                shapely.MultiPolygon([shapely.box(x - 6, y - 3, x - 2, y + 3), shapely.box(x + 2, y - 3, x + 6, y + 3)])
                for x, y in XY
            ]
        element = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes))
        index = element.index
    image = {"he": Image2DModel.parse(painted(), dims=("c", "y", "x"))}
    where = {"points": {"spots": element}} if kind == "points" else {"shapes": {"spots": element}}
    sdata = SpatialData(images=image, **where, tables={"table": annotated(element, index)})
    np.testing.assert_allclose(embed(sdata, shapes_key="spots"), expected(XY), atol=1e-6)


def rotated(degrees, flip=1.0, scale=0.5, shift=(30.0, -12.0)):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = np.array([[c, -s], [s, c]]) @ np.diag([scale, flip * scale])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, shift
    return matrix


@pytest.mark.parametrize(("degrees", "flip"), [(0, 1), (90, 1), (37, 1), (37, -1), (180, -1)])
def test_scale_rotation_and_flip_between_shapes_and_image(degrees, flip):
    """The image lies rotated in the shared frame; tiles stay on its own pixel axes and the centres follow."""
    matrix = rotated(degrees, flip)
    in_frame = np.column_stack([XY, np.ones(len(XY))]) @ matrix.T
    sdata = section(in_frame[:, :2])
    set_transformation(sdata.images["he"], Affine(matrix, ("x", "y"), ("x", "y")))
    np.testing.assert_allclose(embed(sdata), expected(XY), atol=1e-6)


def test_shapes_with_a_transformation_of_their_own():
    sdata = section(XY / 4 - 1)
    set_transformation(
        sdata.shapes["spots"],
        Sequence(
            [Affine(np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]]), ("x", "y"), ("x", "y")), Scale([4.0, 4.0], ("x", "y"))]
        ),
    )
    np.testing.assert_allclose(embed(sdata), expected(XY), atol=1e-6)


def test_frame_may_be_named():
    sdata = section(XY)
    for element in (sdata.images["he"], sdata.shapes["spots"]):
        set_transformation(element, Identity(), "visium")
    np.testing.assert_allclose(embed(sdata, coordinate_system="visium"), expected(XY), atol=1e-6)


def test_rgba_and_channel_order():
    rgba = section(XY, image=painted(channels=4))
    np.testing.assert_allclose(embed(rgba), expected(XY), atol=1e-6)
    last = section(XY)
    last.images["he"] = Image2DModel.parse(np.moveaxis(painted(), 0, -1), dims=("y", "x", "c"))
    np.testing.assert_allclose(embed(last), expected(XY), atol=1e-6)


@pytest.mark.parametrize(("dtype", "value_max"), [(np.uint16, 65535), (np.float32, 1.0)])
def test_other_pixel_types(dtype, value_max):
    image = (painted().astype(float) / 255 * value_max).astype(dtype)
    np.testing.assert_allclose(embed(section(XY, image=image)), expected(XY), atol=0.005)


def test_channels_are_found_by_name():
    image = np.concatenate([np.full_like(painted()[:1], 255), painted()[::-1]])
    sdata = section(XY, image=image, c_coords=["alpha", "blue", "green", "red"])
    np.testing.assert_allclose(embed(sdata), expected(XY), atol=1e-6)


def test_full_brightness_that_was_given_is_kept_for_plots_and_grids():
    sdata = section(XY, image=painted().astype(np.uint16) * 3)
    with pytest.raises(ValueError, match=r"Image 'he'.*uint16.*value_max="):
        embed(sdata)
    assert not sdata.attrs
    rg.pp.embed_tiles(sdata, model=mean_colour, mpp=None, value_max=765, progress=False, inplace=False)
    assert not sdata.attrs
    np.testing.assert_allclose(embed(sdata, value_max=765), expected(XY), atol=1e-6)
    assert sdata.attrs["ragst"]["value_max"] == {"he": 765.0}
    rg.pp.tile_grid(sdata, tile_px=16, mpp=None, tissue=False)
    np.testing.assert_allclose(
        embed(sdata, shapes_key="spots", table_key="table", overwrite=True), expected(XY), atol=1e-6
    )


def test_another_full_brightness_is_another_picture():
    sdata, hashes = section(XY, image=painted().astype(np.uint16) * 3), []
    for value_max in (765, 1000):
        embed(sdata, value_max=value_max, model=Named())
        hashes.append(sdata.tables["table"].uns["ragst"]["embeddings"]["X"]["image_hash"])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("scale_factors", [None, [{"y": 2, "x": 2, "z": 1}]])
def test_a_single_plane_is_read_and_of_several_none(scale_factors):
    for planes in (1, 3):
        sdata = section(XY)
        stack = np.repeat(painted()[:, None], planes, axis=1)
        sdata.images["he"] = Image3DModel.parse(stack, dims=("c", "z", "y", "x"), scale_factors=scale_factors)
        if planes == 1:
            np.testing.assert_allclose(embed(sdata), expected(XY), atol=1e-6)
            rg.pp.tile_grid(sdata, tile_px=40, mpp=None, tissue=False)
            continue
        for call in (embed, lambda s: rg.pp.tile_grid(s, mpp=None)):
            with pytest.raises(ValueError, match=r"Image 'he'.*3 planes along z"):
                call(sdata)


def test_edge_tiles_are_mirrored_and_flagged():
    sdata = section(XY)
    embed(sdata)
    padded = sdata.tables["table"].obs["tile_padded_fraction"].to_numpy()
    np.testing.assert_allclose(padded[:2], 0)
    inside = (16 - 5) * (16 - 4) / 256
    assert padded[3] == pytest.approx(1 - inside)


def test_context_concatenates_fields_of_view():
    out = embed(section(XY), context=(1, 3))
    np.testing.assert_allclose(out[:2], np.hstack([expected(XY), expected(XY, window=48)])[:2], atol=0.01)


def test_header_and_section_statistics():
    sdata = section(XY)
    out = embed(sdata, mpp=2.0, image_mpp=1.0, model=Named())
    header = sdata.tables["table"].uns["ragst"]["embeddings"]["X"]
    np.testing.assert_allclose(header["section_mean"], out.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(header["section_std"], out.std(axis=0), rtol=1e-5)
    assert (header["encoder"], header["tile_px"], header["mpp"], header["image_key"]) == ("mean colour", 16, 2.0, "he")
    assert header["upsampling"] == 1


def test_enlarging_warns_once_and_is_recorded(caplog):
    sdata = section(XY)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        embed(sdata, mpp=0.5, image_mpp=2.0, context=(1, 2))
    assert sum("enlarged 4" in record.getMessage() for record in caplog.records) == 1
    assert sdata.tables["table"].uns["ragst"]["embeddings"]["X"]["upsampling"] == pytest.approx(4)


def test_rerun_reuses_unless_something_changed(tmp_path):
    import spatialdata as sd

    sdata = section(XY)
    Named.calls = 0
    embed(sdata, model=Named())
    embed(sdata, model=Named())
    assert Named.calls == 1
    sdata.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    embed(back, model=Named())
    assert Named.calls == 1
    for change in ({"overwrite": True}, {"tile_px": 20}, {"context": (2,)}, {"mpp": 1.5, "image_mpp": 1.0}):
        before = Named.calls
        embed(back, model=Named(), **change)
        assert Named.calls > before, change
    before = Named.calls
    image = painted()
    image[:, :50] = 0
    back.images["he"] = Image2DModel.parse(image, dims=("c", "y", "x"))
    embed(back, model=Named(), mpp=1.5, image_mpp=1.0)
    assert Named.calls > before


def test_an_onnx_file_is_an_encoder_and_its_embedding_is_reused(tmp_path, caplog):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from ..onnx_files import network, write

    sdata, path = section(XY), write(tmp_path / "tiny.onnx")
    options = {"tile_px": 16, "mpp": None, "context": (1,), "progress": False}
    rg.pp.embed_tiles(sdata, model=str(path), **options)
    table = sdata.tables["table"]
    with torch.no_grad():
        net = network()
        direct = embed(sdata, model=lambda tiles: net(tiles).mean((2, 3)), context=(1,))
    np.testing.assert_allclose(table.obsm["X_onnx_tiny"], direct, atol=1e-5)
    header = table.uns["ragst"]["embeddings"]["X_onnx_tiny"]
    assert (header["encoder"], len(header["weights_hash"])) == ("onnx:tiny", 64)
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        rg.pp.embed_tiles(sdata, model=path, **options)
        assert "Reusing" in caplog.text
        caplog.clear()
        write(path, seed=1)
        rg.pp.embed_tiles(sdata, model=path, **options)
        assert "Reusing" not in caplog.text


def test_anonymous_callables_are_never_reused():
    sdata, calls = section(XY), []

    def encoder(tiles):
        calls.append(len(tiles))
        return mean_colour(tiles)

    embed(sdata, model=encoder)
    embed(sdata, model=encoder)
    assert len(calls) == 2


def test_default_key_is_made_legal():
    class Slashed(Named):
        name = "hf-hub:Org Name/Model v2"

    sdata = section(XY)
    rg.pp.embed_tiles(sdata, model=Slashed(), tile_px=8, mpp=None, progress=False)
    (key,) = [key for key in sdata.tables["table"].obsm if key.startswith("X_")]
    assert key == "X_Model_v2"


def test_shapes_without_rows_are_ignored_and_rows_keep_their_order(caplog):
    sdata = section(XY)
    sdata.tables["table"] = sdata.tables["table"][[2, 0]].copy()
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        out = embed(sdata)
    np.testing.assert_allclose(out, expected(XY[[2, 0]]), atol=1e-6)
    assert "2 shapes of 'spots' have no row" in caplog.text


def test_a_table_is_made_where_none_annotates_the_shapes():
    sdata = section(XY)
    del sdata.tables["table"]
    out = embed(sdata, read="spots_table")
    np.testing.assert_allclose(out, expected(XY), atol=1e-6)
    assert sdata.tables["spots_table"].n_vars == 0
    np.testing.assert_allclose(sdata.tables["spots_table"].obsm["spatial"], XY)


def test_inplace_false_leaves_sdata_alone():
    sdata = section(XY)
    table = rg.pp.embed_tiles(
        sdata, model=mean_colour, tile_px=8, mpp=None, key_added="X", progress=False, inplace=False
    )
    assert "X" in table.obsm
    assert "X" not in sdata.tables["table"].obsm
    assert "ragst" not in sdata.tables["table"].uns


def test_backed_image_gives_the_same(tmp_path):
    import spatialdata as sd

    sdata = section(XY, scale_factors=[2], chunks=(3, 64, 64))
    sdata.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(embed(back, num_workers=2), embed(sdata))


def test_module_and_batch_size():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    sdata = section(np.random.default_rng(0).uniform(20, 200, (23, 2)))
    one = embed(sdata, model=module, batch_size=1)
    many = embed(sdata, model=module, batch_size=16)
    assert one.shape == (23, 5)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_device_comes_from_the_settings(monkeypatch):
    module = sys.modules["ragst_sd.pp._embed_tiles"]
    seen = []
    original = module.resolve_encoder
    monkeypatch.setattr(
        module, "resolve_encoder", lambda model, **kwargs: seen.append(kwargs["device"]) or original(model, **kwargs)
    )
    with rg.settings.override(device="cpu"):
        embed(section(XY))
    embed(section(XY), device="cpu", overwrite=True)
    embed(section(XY))
    assert seen == ["cpu", "cpu", None]
