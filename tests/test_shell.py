"""The commands `embed` and `predict`, on small slides and stores."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd.__main__ import main

from .io.slides import paint, write_pyramid

TILES = ["--tile-px", "64", "--mpp", "1.0", "--context", "1"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three donors, a reference of two as a file, the third as a store, and two slides."""
    folder = tmp_path_factory.mktemp("shell")
    sections = rg.datasets.synthetic(n_donors=3, n_genes=260, image_px=500, rng=0)
    sections["donor3"].write(folder / "donor3.zarr")
    known = {name: sections[name] for name in ("donor1", "donor2")}
    rg.pp.embed_tiles(known, tile_px=64, mpp=1.0, context=(1,), progress=False)
    reference = rg.tl.build_reference(known, use_rep="X_texture")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.io.write_reference(reference, folder / "reference.zarr.zip")
    (folder / "slides").mkdir()
    for seed in (1, 2):
        write_pyramid(folder / "slides" / f"s{seed}.svs", paint(seed, 400, 500))
    return folder


@pytest.fixture(autouse=True)
def quiet():
    with rg.settings.override(progress=False):
        yield


def shell(capsys, *arguments) -> tuple[int, list[str]]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def times(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_slides_is_embedded_once(drawn, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["embed", drawn / "slides", "--out", out, *TILES]
    code, lines = shell(capsys, *command)
    assert code == 0 and len(lines) == 3
    assert [line.partition(":")[0] for line in lines[:2]] == ["s1", "s2"]
    assert lines[2] == "2 done, 0 unchanged, 0 failed"
    slide = rg.io.read_slide(drawn / "slides" / "s1.svs")
    rg.pp.tile_grid(slide, tile_px=64, mpp=1.0)
    rg.pp.embed_tiles(slide, tile_px=64, mpp=1.0, context=(1,))
    made = sd.read_zarr(out / "s1.zarr")
    expected, found = slide.tables["tiles_table"], made.tables["tiles_table"]
    np.testing.assert_array_equal(found.obsm["X_texture"], expected.obsm["X_texture"])
    assert f"s1: {expected.n_obs} spots" in lines[0]

    before = times(out)
    code, lines = shell(capsys, *command)
    assert (code, lines[-1]) == (0, "0 done, 2 unchanged, 0 failed")
    assert times(out) == before
    # Other pixels, or other tiles, are another result.
    write_pyramid(drawn / "slides" / "s2.svs", paint(3, 400, 500))
    assert shell(capsys, *command)[1][-1] == "1 done, 1 unchanged, 0 failed"
    other = ["embed", drawn / "slides" / "s1.svs", "--out", out, *TILES, "--tile-px", "80"]
    assert shell(capsys, *other)[1][-1] == "1 done, 0 unchanged, 0 failed"


@pytest.fixture(scope="module")
def predicted(drawn):
    """The first slide, predicted in Python."""
    slide = rg.io.read_slide(drawn / "slides" / "s1.svs")
    rg.pp.tile_grid(slide, tile_px=64, mpp=1.0)
    rg.pp.embed_tiles(slide, tile_px=64, mpp=1.0, context=(1,), progress=False)
    rg.tl.predict(slide, rg.io.read_reference(drawn / "reference.zarr.zip"))
    return slide


def test_from_a_slide_to_a_prediction(drawn, predicted, tmp_path, capsys):
    command = ["predict", drawn / "slides" / "s1.svs", "--reference", drawn / "reference.zarr.zip", "--out", tmp_path]
    code, lines = shell(capsys, *command)
    assert code == 0 and "out of reference" in lines[0]
    made, expected = sd.read_zarr(tmp_path / "s1.zarr"), predicted.tables["predicted"]
    np.testing.assert_allclose(made.tables["predicted"].X, expected.X, rtol=1e-6)
    assert list(made.tables["predicted"].obs_names) == list(expected.obs_names)
    # The picture is small and lies where the tiles are.
    assert sd.get_extent(made.images["he"]) == sd.get_extent(predicted.images["he"])
    assert shell(capsys, *command)[1][-1] == "0 done, 1 unchanged, 0 failed"


@pytest.mark.slow
def test_over_a_store_of_embeddings_to_a_picture(drawn, predicted, tmp_path, capsys):
    assert shell(capsys, "embed", drawn / "slides" / "s1.svs", "--out", tmp_path / "embedded", *TILES)[0] == 0
    reference = ["--reference", drawn / "reference.zarr.zip"]
    assert shell(capsys, "predict", tmp_path / "embedded", *reference, "--out", tmp_path / "out")[0] == 0
    made, expected = sd.read_zarr(tmp_path / "out" / "s1.zarr"), predicted.tables["predicted"]
    np.testing.assert_allclose(made.tables["predicted"].X, expected.X, rtol=1e-6)
    rg.pl.prediction(made, genes=expected.var_names[0], show=False)


@pytest.mark.slow
def test_pixels_are_kept_when_asked_for(drawn, tmp_path, capsys):
    big = tmp_path / "big.tif"
    write_pyramid(big, paint(1, 600, 2600))
    command = ["embed", big, *TILES, "--out"]
    assert (
        shell(capsys, *command, tmp_path / "small")[0]
        == shell(capsys, *command, tmp_path / "whole", "--keep-pixels")[0]
        == 0
    )
    small, whole = (sd.read_zarr(tmp_path / name / "big.zarr").images["he"] for name in ("small", "whole"))
    assert max(small.shape) <= 2048
    slide = rg.io.read_slide(big).images["he"]
    np.testing.assert_array_equal(sd.get_pyramid_levels(whole, n=0), sd.get_pyramid_levels(slide, n=0))
    np.testing.assert_allclose(list(sd.get_extent(small).values()), list(sd.get_extent(slide).values()))


def test_spots_of_a_donor_and_chosen_genes(drawn, tmp_path, capsys):
    command = ["predict", drawn / "donor3.zarr", "--reference", drawn / "reference.zarr.zip", "--out", tmp_path]
    code, lines = shell(capsys, *command, "--donor", "donor2", "--genes", "EPCAM", "--n-neighbors", "3")
    assert code == 0, lines
    table = sd.read_zarr(tmp_path / "donor3.zarr").tables["predicted"]
    assert list(table.var_names) == ["EPCAM"]
    assert table.obsm["retrieval_rows"].shape[1] == 3
    assert set(table.uns["retrieval"]["cited"]["donor"]) == {"donor1"}


def test_one_damaged_slide_does_not_stop_the_others(drawn, tmp_path, capsys):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("a", "d"):
        write_pyramid(slides / f"{name}.svs", paint(1, 500, 500))
    (slides / "b.svs").write_bytes((slides / "a.svs").read_bytes()[:5000])
    (slides / "c.zarr").mkdir()
    write_pyramid(slides / "e.tif", paint(1, 500, 500), mpp=None)
    for name in ("notes.txt", "._a.svs"):
        (slides / name).write_text("not a slide")
    out = tmp_path / "out"
    code, lines = shell(capsys, "embed", slides, "--out", out, *TILES)
    assert code == 1 and len(lines) == 6
    assert lines[1].startswith("b: failed. ") and "b.svs" in lines[1]
    assert lines[2].startswith("c: failed. ") and "c.zarr' cannot be read as a SpatialData store" in lines[2]
    assert lines[4] == "e: failed. The microns per pixel of image 'he' are not known. Give them: `--image-mpp 0.25`."
    assert lines[5] == "2 done, 0 unchanged, 3 failed"
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.zarr", "d.zarr"]
    # Mended, only that one is done.
    write_pyramid(slides / "b.svs", paint(2, 500, 500))
    code, lines = shell(capsys, "embed", slides, "--out", out, *TILES)
    assert (code, lines[-1]) == (1, "1 done, 2 unchanged, 2 failed")
    code, lines = shell(capsys, "embed", slides / "e.tif", "--out", out, *TILES, "--image-mpp", "0.5")
    assert (code, lines[-1]) == (0, "1 done, 0 unchanged, 0 failed")


def test_what_was_embedded_before_the_disk_was_full_is_not_embedded_again(drawn, tmp_path, capsys, caplog, monkeypatch):
    command = ["embed", drawn / "slides" / "s1.svs", "--out", tmp_path, *TILES]

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sd.SpatialData, "write", full)
        code, lines = shell(capsys, *command)
    assert code == 1 and lines[0] == "s1: failed. [Errno 28] No space left on device"
    assert not (tmp_path / "s1.zarr").exists()
    with caplog.at_level("INFO", logger="ragst_sd"):
        assert shell(capsys, *command)[0] == 0
    assert "Going on from 1 of 1 parts" in caplog.text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["s1.zarr"]


def test_what_is_not_ours_is_not_replaced(drawn, tmp_path, capsys):
    (tmp_path / "s1.zarr").mkdir()
    (tmp_path / "s1.zarr" / "mine.txt").write_text("mine")
    code, lines = shell(capsys, "embed", drawn / "slides" / "s1.svs", "--out", tmp_path, *TILES)
    assert code == 1 and "was not made by this command" in lines[0]
    assert (tmp_path / "s1.zarr" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["embed", "{slides}", "--out", "{slides}"], "lies in the folder of the results"),
        (["embed", "{slides}", "{slides}/../twin/s1.tif", "--out", "{out}"], "Rename one of them"),
        (["embed", "{out}/none.svs", "--out", "{out}"], "none.svs does not exist"),
        (["embed", "{twin}", "--out", "{out}", "--model-kwargs", "output"], "NAME=VALUE; found 'output'"),
        (["embed", "{twin}", "--out", "{out}", "--model", "uni-2"], "Did you mean 'uni2'"),
        (["predict", "{twin}", "--out", "{out}", "--reference", "{out}/r.zarr.zip"], "r.zarr.zip does not exist"),
        (["predict", "{twin}", "--out", "{out}", "--reference", "r", "--model-kwargs", "a"], "NAME=VALUE; found 'a'"),
        (["predict", "{slides}", "--out", "{out}", "--reference", "{onnx}"], "the ONNX file 'own'. Give the file"),
        (["predict", "{slides}", "--out", "{out}", "--reference", "{other}"], "with weights texture-0; those of"),
        (["predict", "{slides}", "--out", "{out}", "--reference", "{unfitted}"], "is not fitted"),
    ],
)
def test_what_cannot_begin_is_told_in_one_line(drawn, tmp_path, capsys, arguments, told):
    (drawn / "twin").mkdir(exist_ok=True)
    (drawn / "twin" / "s1.tif").touch()
    places = {"slides": drawn / "slides", "twin": drawn / "twin", "out": tmp_path / "out"}
    for name, change in {
        "onnx": {"encoder": "onnx:own"},
        "other": {"weights_hash": "texture-0"},
        "unfitted": {},
    }.items():
        places[name] = tmp_path / f"{name}.zarr.zip"
        if f"{{{name}}}" not in arguments:
            continue
        reference = rg.io.read_reference(drawn / "reference.zarr.zip")
        reference.uns["ragst"]["encoder"] |= change
        del reference.uns["ragst"]["fit"]
        if change:
            from ragst_sd._reference import reference_hash

            reference.uns["ragst"]["content_hash"] = reference_hash(reference)
            rg.tl.fit(reference, method="knn", n_neighbors=5)
        rg.io.write_reference(reference, places[name])
    code, lines = shell(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 1 and len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_onnx_file_embeds_and_predicts(drawn, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from .onnx_files import write

    model = write(tmp_path / "tiny.onnx", outputs=("map", "vector"))
    sections = rg.datasets.synthetic(n_donors=2, n_genes=260, image_px=500, rng=0)
    options = {"model": str(model), "model_kwargs": {"output": "vector"}, "tile_px": 64, "mpp": 1.0, "context": (1,)}
    rg.pp.embed_tiles(sections, **options)
    reference = rg.tl.build_reference(sections, use_rep="X_onnx_tiny")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.io.write_reference(reference, tmp_path / "r.zarr.zip")
    command = [
        "predict",
        drawn / "slides" / "s1.svs",
        "--reference",
        tmp_path / "r.zarr.zip",
        "--out",
        tmp_path / "out",
    ]
    code, lines = shell(capsys, *command, "--model", model, "--model-kwargs", "output=vector")
    assert code == 0, lines
    assert "X_onnx_tiny" in sd.read_zarr(tmp_path / "out" / "s1.zarr").tables["tiles_table"].obsm
    code, lines = shell(capsys, *command, "--model", model, "--model-kwargs", "output=map")
    assert code == 1 and "Give the same ones" in lines[0]
