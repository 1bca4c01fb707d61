"""ONNX files as encoders: tiny networks, against the same ones in torch."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ragst_sd.image.onnx_file import is_onnx_file  # noqa: E402
from ragst_sd.image.resolve_encoder import DEFAULT_CONTEXT, resolve_encoder  # noqa: E402

from ..onnx_files import network, write  # noqa: E402


def make_tiles(n: int = 5, edge: int = 32):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, edge, edge), dtype=np.uint8))


def expected(pixels, seed: int = 0):
    with torch.no_grad():
        return network(seed)(pixels)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("n", 3, "h", "w"), TensorProto.FLOAT),
        (("n", "h", "w", 3), TensorProto.FLOAT),
        ((1, 3, 32, 32), TensorProto.FLOAT),
        ((2, 3, 32, 32), TensorProto.FLOAT),
        (("n", 3, "h", "w"), TensorProto.DOUBLE),
        (("n", 32, 32, 3), TensorProto.UINT8),
    ],
    ids=["any size", "channels last", "one at a time", "two at a time", "double", "8 bit"],
)
def test_equals_the_network_in_torch(tmp_path, shape, kind) -> None:
    path = write(tmp_path / "tiny.onnx", shape=shape, kind=kind)
    encoder = resolve_encoder(str(path), device="cpu")
    tiles = make_tiles()
    scaled = tiles.float() if kind == TensorProto.UINT8 else tiles.float() / 255
    torch.testing.assert_close(encoder(tiles), expected(scaled).mean((2, 3)), rtol=1e-5, atol=1e-5)
    assert (encoder.name, encoder.context) == ("onnx:tiny", DEFAULT_CONTEXT)
    assert encoder.input_px == (32 if 32 in shape else None)
    assert (encoder.device.type, encoder.precision) == ("cpu", "float32")


def test_tiles_are_resized_and_normalised(tmp_path) -> None:
    path = write(tmp_path / "tiny.onnx", shape=("n", 3, 32, 32))
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
    encoder = resolve_encoder(path, mean=mean, std=std, device="cpu")
    tiles = make_tiles(edge=48)
    pixels = torch.nn.functional.interpolate(tiles.float() / 255, size=(32, 32), mode="bilinear", antialias=True)
    pixels = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder(tiles), expected(pixels).mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "options"),
    [("map", {}), ("vector", {}), ("tokens", {"pooling": "mean"}), ("tokens", {"pooling": "cls"})],
)
def test_an_output_is_taken_by_name(tmp_path, output, options) -> None:
    path = write(tmp_path / "tiny.onnx", outputs=("tokens", "vector", "map"))
    encoder = resolve_encoder(path, model_kwargs={"output": output, **options}, device="cpu")
    maps = expected(make_tiles().float() / 255)
    wanted = maps[:, :, 0, 0] if options.get("pooling") == "cls" else maps.mean((2, 3))
    torch.testing.assert_close(encoder(make_tiles()), wanted, rtol=1e-5, atol=1e-5)


def test_hash_follows_the_files_and_the_output(tmp_path) -> None:
    def digest(path, **options):
        return resolve_encoder(path, model_kwargs=options, device="cpu").weights_hash

    outputs = {"outputs": ("map", "vector")}
    first = write(tmp_path / "first.onnx", **outputs)
    assert digest(first, output="map") == digest(write(tmp_path / "again.onnx", **outputs), output="map")
    found = {
        digest(first, output="map"),
        digest(first, output="vector"),
        digest(write(tmp_path / "other.onnx", seed=1, **outputs), output="map"),
    }
    # Weights in another file: the graph alone is the same.
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        found.add(digest(write(tmp_path / str(seed) / "large.onnx", seed=seed, external="large.data")))
    graphs = [(tmp_path / str(seed) / "large.onnx").read_bytes() for seed in (0, 1)]
    assert graphs[0] == graphs[1]
    assert len(found) == 5


def test_threads_are_those_that_torch_may_use(tmp_path, monkeypatch) -> None:
    import onnxruntime

    given = []
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        given.append((options.intra_op_num_threads, providers))
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    resolve_encoder(write(tmp_path / "tiny.onnx"), device="cpu")
    assert given == [(3, ["CPUExecutionProvider"])]


def test_without_support_for_the_gpu_it_runs_on_the_cpu_unless_the_gpu_was_asked_for(
    tmp_path, monkeypatch, caplog
) -> None:
    import onnxruntime

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = write(tmp_path / "tiny.onnx")
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        assert resolve_encoder(path).device.type == "cpu"
    assert "no support for cuda" in caplog.text
    with pytest.raises(ValueError, match=r"runs on CPUExecutionProvider.*onnxruntime-gpu"):
        resolve_encoder(path, device="cuda")


def test_missing_onnxruntime_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "ragst-sd\[onnx\]"'):
        resolve_encoder(write(tmp_path / "tiny.onnx"))


@pytest.mark.parametrize(
    ("made", "options", "match"),
    [
        ({"outputs": ("map", "vector")}, {}, r"has several outputs.*'map' \['n', 6, 'h2', 'w2'\], 'vector'"),
        ({}, {"model_kwargs": {"output": "logits"}}, "has no output 'logits'.*'map'"),
        ({"outputs": ("tokens",)}, {}, r"`pooling` is None\. Tokens .*'cls'.*'mean'"),
        ({"outputs": ("tokens",)}, {"model_kwargs": {"pooling": "max"}}, "`pooling` is 'max'"),
        ({}, {"model_kwargs": {"pooling": "cls"}}, r"`pooling` is 'cls'.*others none"),
        ({}, {"model_kwargs": {"checkpoint_path": "x"}}, r"\['output', 'pooling'\]; found \['checkpoint_path'\]"),
        ({}, {"mean": (0.5, 0.5, 0.5)}, "go together"),
        (
            {"kind": TensorProto.UINT8},
            {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
            "8 bits as they are: leave out `mean`",
        ),
        ({"shape": ("n", "c", "h", "w")}, {}, r"takes pixels tensor\(float\) \['n', 'c', 'h', 'w'\].*3 channels fixed"),
        ({"shape": ("n", 3, 32, 48)}, {}, "tiles are square"),
        ({"shape": ("n", 32, 48, 3)}, {}, "tiles are square"),
        ({"kind": TensorProto.INT32}, {}, r"tensor\(int32\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, made, options, match) -> None:
    path = write(tmp_path / "tiny.onnx", **made)
    with pytest.raises(ValueError, match=match):
        resolve_encoder(path, device="cpu", **options)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx', which is no file"):
        resolve_encoder(tmp_path / "nowhere.onnx")
    path = write(tmp_path / "tiny.onnx")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"tiny\.onnx' cannot be read as an ONNX file.*onnxruntime says"):
        resolve_encoder(path)
    large = write(tmp_path / "large.onnx", external="large.data")
    (tmp_path / "large.data").unlink()
    with pytest.raises(ValueError, match=r"missing, or.*large\.data"):
        resolve_encoder(large)


def test_a_run_that_fails_says_why(tmp_path) -> None:
    path = write(tmp_path / "tiny.onnx", shape=("n", 3, "h", "w"))
    model = onnx.load(path)
    # A network of which a later part takes one size only, though its input says any.
    model.graph.node[1].CopyFrom(helper.make_node("Add", ["conv", "grid"], ["map"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 6, 16, 16), np.float32), "grid"))
    onnx.save(model, path)
    encoder = resolve_encoder(path, device="cpu")
    assert encoder(make_tiles()).shape == (5, 6)
    with pytest.raises(ValueError, match=r"did not run on tiles of 40 px, which `tile_px` sets.*onnxruntime says"):
        encoder(make_tiles(edge=40))


def test_names_of_files() -> None:
    assert is_onnx_file("model.onnx") and is_onnx_file("A.ONNX")
    assert not any(map(is_onnx_file, ("texture", "onnx", lambda x: x, None)))


def test_a_network_trained_on_tissue(data_dir) -> None:
    """SHELL (MIT): its deepest map, averaged, on drawn and on real tiles; the same as onnxruntime gives."""
    import onnxruntime
    from PIL import Image

    path = data_dir / "weights" / "shell" / "shell_v1_features.onnx"
    with pytest.raises(ValueError, match=r"'logits'.*'add_634'"):
        resolve_encoder(path)
    encoder = resolve_encoder(path, model_kwargs={"output": "add_634"}, device="cpu")
    picture = Image.open(data_dir / "histology" / "mob2k" / "MOB1.jpg").convert("RGB")
    width, height = picture.size
    boxes = [(x, y, x + 96, y + 96) for x, y in ((width // 2, height // 2), (width // 3, height // 2), (0, 0))]
    tiles = torch.stack([torch.from_numpy(np.array(picture.crop(box))).permute(2, 0, 1) for box in boxes])
    found = encoder(tiles)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (maps,) = session.run(["add_634"], {"input": tiles.numpy().astype(np.float32) / 255})
    np.testing.assert_allclose(found, maps.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert found.shape == (3, 128)
    assert (found[0] - found[2]).norm() > (found[0] - found[1]).norm() > 0
