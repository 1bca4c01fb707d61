"""Encoders by name: timm, local files, the given weights, texture."""

from __future__ import annotations

import ast
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")

from ragst_sd.image.encoder import Encoder  # noqa: E402
from ragst_sd.image.resolve_encoder import resolve_encoder  # noqa: E402

TINY = "test_resnet"
TINY_VIT = "test_vit"


def make_tiles(n: int = 5, edge: int = 160, seed: int = 0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, edge, edge), dtype=np.uint8))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name in (TINY, TINY_VIT):
        torch.manual_seed(3)
        model = timm.create_model(name, num_classes=0)
        for part in model.modules():  # running statistics that differ from the initial ones
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 1.5)
        paths[name] = folder / f"{name}.safetensors"
        safetensors_torch.save_file(model.state_dict(), paths[name])
    paths["torch"] = folder / f"{TINY}.pth"
    torch.save(safetensors_torch.load_file(paths[TINY]), paths["torch"])
    return paths


def load(checkpoints, name: str = TINY, **kwargs) -> Encoder:
    return resolve_encoder(
        name, model_kwargs={"checkpoint_path": checkpoints[name]}, device="cpu", **({"amp": False} | kwargs)
    )


@pytest.mark.parametrize("name", [TINY, TINY_VIT])
def test_equals_the_direct_timm_call(checkpoints, name) -> None:
    encoder = load(checkpoints, name)
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(checkpoints[name])).eval()
    config = timm.data.resolve_model_data_config(model)
    tiles = make_tiles(edge=config["input_size"][-1])
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((tiles.float() / 255 - mean) / std)
    found = encoder(tiles)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.shape == (5, model.num_features)
    assert not found.is_inference()
    assert (encoder.name, encoder.context, encoder.input_px) == (
        f"timm:{name}",
        (1.0, 2.5, 6.0),
        config["input_size"][-1],
    )
    assert (encoder.mean, encoder.std) == (tuple(config["mean"]), tuple(config["std"]))


def test_tiles_of_another_edge_are_resized(checkpoints) -> None:
    encoder = load(checkpoints)
    tiles = make_tiles(2, edge=300)
    resized = torch.nn.functional.interpolate(
        tiles.float(), size=(encoder.input_px,) * 2, mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(
        encoder.prepare(tiles),
        (resized / 255 - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(1, 3, 1, 1),
    )
    assert encoder(tiles).shape == (2, encoder(make_tiles(1)).shape[1])


def test_mean_and_std_are_overridden_one_by_one(checkpoints) -> None:
    own = load(checkpoints)
    other = load(checkpoints, mean=(0.2, 0.3, 0.4))
    assert (other.mean, other.std) == ((0.2, 0.3, 0.4), own.std)
    assert load(checkpoints, std=(0.1, 0.2, 0.3)).std == (0.1, 0.2, 0.3)
    tiles = make_tiles(2)
    assert not torch.allclose(own(tiles), other(tiles), atol=1e-3)
    white = torch.full((1, 3, 160, 160), 255, dtype=torch.uint8)
    torch.testing.assert_close(other.prepare(white)[0, :, 0, 0], (1 - torch.tensor(other.mean)) / torch.tensor(own.std))


@pytest.mark.parametrize("bad", [{"mean": (0.5, 0.5)}, {"std": (0.0, 1.0, 1.0)}, {"mean": (124.0, 117.0, 104.0)}])
def test_wrong_mean_or_std_is_refused(checkpoints, bad) -> None:
    with pytest.raises(ValueError, match="three numbers"):
        load(checkpoints, **bad)


def test_a_tile_does_not_depend_on_its_batch(checkpoints) -> None:
    encoder = load(checkpoints, amp=None)
    tiles = make_tiles(6)
    alone = torch.cat([encoder(tiles[i : i + 1]) for i in range(6)])
    together = encoder(tiles)
    tolerance = 2e-2 if encoder.amp else 1e-5
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(encoder(tiles.flip(0)).flip(0), together, rtol=tolerance, atol=tolerance)


def test_autocast_stays_close_and_is_used(checkpoints) -> None:
    tiles = make_tiles()
    exact, fast = load(checkpoints)(tiles), load(checkpoints, amp=True)(tiles)
    assert fast.dtype == torch.float32
    assert not torch.equal(exact, fast)
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.999


def test_torch_file_and_safetensors_give_the_same_encoder(checkpoints) -> None:
    first = load(checkpoints)
    second = resolve_encoder(TINY, model_kwargs={"checkpoint_path": str(checkpoints["torch"])}, device="cpu", amp=False)
    assert first == second
    assert re.fullmatch(r"[0-9a-f]{64}", first.weights_hash)


def test_hash_follows_weights_and_shaping_arguments(checkpoints, tmp_path) -> None:
    reference = load(checkpoints).weights_hash
    state = safetensors_torch.load_file(checkpoints[TINY])
    state[min(state)] += 1e-3
    safetensors_torch.save_file(state, tmp_path / "other.safetensors")
    changed = resolve_encoder(TINY, model_kwargs={"checkpoint_path": tmp_path / "other.safetensors"}, device="cpu")
    shaped = resolve_encoder(
        TINY, model_kwargs={"checkpoint_path": checkpoints[TINY], "global_pool": "max"}, device="cpu"
    )
    assert len({reference, changed.weights_hash, shaped.weights_hash}) == 3
    assert not torch.allclose(load(checkpoints)(make_tiles(1)), shaped(make_tiles(1)), atol=1e-2)


def test_classifier_in_the_file_is_left_out(checkpoints, tmp_path) -> None:
    state = timm.create_model(TINY, num_classes=10).state_dict()
    safetensors_torch.save_file(state, tmp_path / "head.safetensors")
    encoder = resolve_encoder(TINY, model_kwargs={"checkpoint_path": tmp_path / "head.safetensors"}, device="cpu")
    assert encoder(make_tiles(2)).shape == (2, load(checkpoints)(make_tiles(2)).shape[1])


@pytest.mark.parametrize("content", ["missing", "foreign", "shape", "pickle", "garbage"])
def test_weights_that_do_not_fit_are_refused(checkpoints, tmp_path, content) -> None:
    state = safetensors_torch.load_file(checkpoints[TINY])
    path = tmp_path / "bad.pth"
    if content == "missing":
        del state[min(state)]
    elif content == "foreign":
        state["blocks.99.weight"] = torch.zeros(2)
    elif content == "shape":
        state[min(state)] = torch.zeros(7)
    torch.save(Encoder if content == "pickle" else state, path)
    if content == "garbage":
        path.write_bytes(b"not weights")
    match = {"missing": "1 tensors are missing", "foreign": "blocks.99.weight"}.get(content, "could not be read")
    with pytest.raises(ValueError, match=match) as caught:
        resolve_encoder(TINY, model_kwargs={"checkpoint_path": path}, device="cpu")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_of_weights_does_not_run(tmp_path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="weights_only=True"):
        resolve_encoder(TINY, model_kwargs={"checkpoint_path": tmp_path / "evil.pth"}, device="cpu")
    assert not (tmp_path / "proof").exists()


def test_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        resolve_encoder(TINY, model_kwargs={"checkpoint_path": "/nowhere.safetensors"})


@pytest.mark.parametrize("name", [TINY, TINY_VIT])
def test_network_for_rectangles_takes_the_squares_that_the_message_names(name, monkeypatch) -> None:
    """As timm's `vit_base_patch16_sapiens2`, for 1024 x 768 px."""
    import timm.models._builder as builder

    rectangle = replace(builder.get_pretrained_cfg(name), input_size=(3, 64, 32))
    monkeypatch.setattr(builder, "get_pretrained_cfg", lambda *_, **__: rectangle)
    with pytest.raises(ValueError, match="takes images of 64 x 32 px; tiles are square") as refused:
        resolve_encoder(name, model_kwargs={"pretrained": False}, device="cpu")
    advised = re.search(r"`model_kwargs=(.*)`", str(refused.value)).group(1)
    encoder = resolve_encoder(name, model_kwargs={"pretrained": False, **ast.literal_eval(advised)}, device="cpu")
    assert encoder.input_px == 32
    assert encoder(make_tiles(2, 32)).shape[0] == 2


def test_random_weights_only_when_asked_for(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        encoder = resolve_encoder(TINY, model_kwargs={"pretrained": False}, device="cpu")
    assert "random weights" in caplog.text
    assert len(encoder.weights_hash) == 64
    with pytest.raises(ValueError, match=r"no pretrained weights for 'resnet50\.no_such_tag'.*a1_in1k"):
        resolve_encoder("resnet50.no_such_tag")
    with pytest.raises(ValueError, match="timm has no weights"):
        resolve_encoder("vit_giant_patch14_224")


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnet5O", "'resnet50'"), ("uni-2", "'uni2'"), ("textur", "'texture'"), ("VIRCHOW", "'virchow2'")],
)
def test_unknown_names_get_close_matches(name, close) -> None:
    with pytest.raises(ValueError, match=f"Unknown model {name!r}.*{close}.*h-optimus-1"):
        resolve_encoder(name)


def test_hub_id_without_prefix_is_explained() -> None:
    with pytest.raises(ValueError, match="hf-hub:some/model"):
        resolve_encoder("some/model")


def test_list_of_feature_maps_is_refused(checkpoints) -> None:
    encoder = resolve_encoder(TINY, model_kwargs={"pretrained": False, "features_only": True, "num_classes": None})
    with pytest.raises(TypeError, match="is a list, not one tensor"):
        encoder(make_tiles(2))


def test_an_encoder_is_passed_through(checkpoints) -> None:
    encoder = load(checkpoints)
    assert resolve_encoder(encoder) is encoder


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="sees no CUDA GPU"):
        resolve_encoder(lambda x: x, device="cuda")


def test_texture() -> None:
    texture = pytest.importorskip("ragst_sd.image.texture")
    encoder = resolve_encoder("texture", device="cpu", amp=True)
    tiles = make_tiles(4, edge=64)
    torch.testing.assert_close(encoder(tiles), texture.texture_features(tiles).float(), rtol=0, atol=0)
    assert encoder(tiles).shape == (4, len(texture.texture_names()))
    assert (encoder.name, encoder.context, encoder.mean, encoder.input_px) == ("texture", (1.0, 2.5, 6.0), None, None)
    assert encoder.weights_hash
    assert not encoder.amp
    with pytest.raises(ValueError, match="no parameters"):
        resolve_encoder("texture", mean=(0.5,) * 3, std=(0.5,) * 3)


def real_tiles(root: Path, n: int = 24):
    from PIL import Image

    image = np.asarray(Image.open(root / "histology" / "mob2k" / "MOB1.jpg").convert("RGB"))
    rng = np.random.default_rng(0)
    tiles = []
    while len(tiles) < n:
        y, x = rng.integers(0, image.shape[0] - 224), rng.integers(0, image.shape[1] - 224)
        tile = image[y : y + 224, x : x + 224]
        if tile.std() > 15:  # tissue, not glass
            tiles.append(torch.from_numpy(tile.copy()).permute(2, 0, 1))
    return torch.stack(tiles)


@pytest.mark.slow
@pytest.mark.skipif("RAGST_SD_TEST_DATA" not in os.environ, reason="RAGST_SD_TEST_DATA is not set: no real tiles")
def test_real_weights_on_real_tiles() -> None:
    root = Path(os.environ["RAGST_SD_TEST_DATA"])
    encoder = resolve_encoder(
        "mobilenetv2_100",
        model_kwargs={"pad_type": "same", "checkpoint_path": root / "weights" / "mobilenetv2_100_tf.safetensors"},
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        device="cpu",
        amp=False,
    )
    tiles = real_tiles(root)
    vectors = encoder(tiles)
    assert vectors.shape == (24, 1280)
    assert torch.isfinite(vectors).all()
    assert (vectors.std(dim=0) > 0).float().mean() > 0.9
    normal = torch.nn.functional.normalize(vectors - vectors.mean(dim=0))
    # a mirrored tile is nearer to its original than any other tile is: the network sees content
    mirrored = torch.nn.functional.normalize(encoder(tiles.flip(3)) - vectors.mean(dim=0))
    assert (mirrored @ normal.T).argmax(dim=1).tolist() == list(range(24))


@pytest.mark.parametrize(("name", "last"), [("mobilenetv2_035", True), ("vit_tiny_patch16_224", False)])
def test_only_convolutional_networks_run_with_channels_last(name, last) -> None:
    encoder = resolve_encoder(name, model_kwargs={"pretrained": False}, device="cpu", amp=False)
    assert encoder.channels_last is last
    tiles = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    assert encoder.prepare(tiles).is_contiguous(memory_format=torch.channels_last) is last
    if last:
        expected = replace(encoder, channels_last=False)(tiles)
        torch.testing.assert_close(encoder(tiles), expected, rtol=1e-4, atol=1e-5)
