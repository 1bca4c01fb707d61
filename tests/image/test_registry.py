"""The registry of pathology foundation models and their loaders."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ragst_sd.image.registry import FOUNDATION_MODELS, FoundationModel, find_foundation_model

ROWS = list(FOUNDATION_MODELS.values())
TIMM_ROWS = [row for row in ROWS if row.loader == "timm" and not row.weights_file]


def make_tiles(n: int = 2, edge: int = 224):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, edge, edge), dtype=np.uint8))


def test_names() -> None:
    gated = "uni uni2 virchow2 h-optimus-0 h-optimus-1 h0-mini gigapath hibou-b hibou-l conch"
    free = "phikon phikon-v2 midnight kaiko-vits16 kaiko-vits8 kaiko-vitb16 kaiko-vitb8 kaiko-vitl14 lunit-vits16 lunit-vits8 gpfm"
    assert set(FOUNDATION_MODELS) == {*gated.split(), *free.split()}
    assert {name for name, row in FOUNDATION_MODELS.items() if row.gated is False} == set(free.split())
    assert all(name == row.name for name, row in FOUNDATION_MODELS.items())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_complete(row: FoundationModel) -> None:
    assert row.hub_id.count("/") == 1
    assert row.loader in {"timm", "transformers", "conch"}
    assert row.pooling in {"", "cls", "cls_mean", "pooler"}
    assert row.license
    assert row.citation
    assert all(0 < value < 1 for value in (*row.mean, *row.std))
    assert set(row.unverified) <= {field.name for field in dataclasses.fields(row)}
    if row.gated is None or row.commercial_use is None:
        assert {"gated", "commercial_use"} & set(row.unverified)
    if "NC" in row.license or "non-commercial" in row.license:
        assert row.commercial_use is False


def test_lookup() -> None:
    assert find_foundation_model("UNI2") is FOUNDATION_MODELS["uni2"]
    assert find_foundation_model("hf-hub:MahmoodLab/UNI2-h") is FOUNDATION_MODELS["uni2"]
    assert find_foundation_model("hf_hub:mahmoodlab/uni") is FOUNDATION_MODELS["uni"]
    assert find_foundation_model("hf-hub:MahmoodLab/UNI@main") is None
    assert find_foundation_model("resnet50") is None


@pytest.mark.parametrize(
    ("name", "millions", "n_prefix"),
    [
        ("uni", 303.4, 1),
        pytest.param("uni2", 681.4, 9, marks=pytest.mark.slow),
        ("virchow2", 631.2, 5),
        pytest.param("h-optimus-0", 1134.8, 5, marks=pytest.mark.slow),
        pytest.param("h-optimus-1", 1134.8, 5, marks=pytest.mark.slow),
        pytest.param("gigapath", 1135.0, 1, marks=pytest.mark.slow),
        ("h0-mini", 85.7, 5),
        ("gpfm", 303.2, 1),
        ("lunit-vits8", 21.7, 1),
        ("kaiko-vits16", 21.7, 1),
        ("kaiko-vitb8", 85.8, 1),
        ("kaiko-vitl14", 304.4, 5),
    ],
)
def test_architectures_have_the_published_size(name, millions, n_prefix) -> None:
    """Built without memory: parameter counts and widths that the authors report."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    from ragst_sd.image.loaders import _cls_and_mean, _resolved_classes

    row = FOUNDATION_MODELS[name]
    with torch.device("meta"):
        model = timm.create_model(row.architecture, num_classes=0, **_resolved_classes(row.architecture_kwargs)).eval()
        output = model(torch.empty(2, 3, row.input_px, row.input_px))
    if row.pooling == "cls_mean":
        output = _cls_and_mean(output, model.num_prefix_tokens)
    assert output.shape == (2, row.width)
    assert model.num_prefix_tokens == n_prefix
    assert sum(tensor.numel() for tensor in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.fixture
def small_vit(monkeypatch) -> dict:
    """Every architecture of the registry becomes a tiny one with the same arguments otherwise."""
    pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    calls: dict = {}
    create = timm.create_model

    def fake(model_name, pretrained=False, **kwargs):
        calls.update(model_name=model_name, pretrained=pretrained, kwargs=dict(kwargs))
        kwargs |= {"embed_dim": 48, "depth": 2, "num_heads": 3}
        if model_name.startswith("hf-hub:"):  # what the hub's configuration adds
            model_name = find_foundation_model(model_name).architecture
            kwargs |= {"img_size": 224, "dynamic_img_size": True}
        return create(model_name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", fake)
    return calls


@pytest.mark.parametrize("row", TIMM_ROWS, ids=lambda row: row.name)
def test_hub_call_has_the_arguments_of_the_model_card(small_vit, row, caplog) -> None:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    with caplog.at_level("INFO", logger="ragst_sd"):
        encoder = resolve_encoder(row.name, device="cpu", amp=False)
    assert (small_vit["model_name"], small_vit["pretrained"]) == (f"hf-hub:{row.hub_id}", True)
    assert set(small_vit["kwargs"]) == {*row.hub_kwargs, "num_classes"}
    assert not any(isinstance(value, str) and ":" in value for value in small_vit["kwargs"].values())
    assert (encoder.name, encoder.mean, encoder.std) == (f"hf-hub:{row.hub_id}", row.mean, row.std)
    assert encoder.input_px == 224
    assert row.license in caplog.text
    assert row.citation in caplog.text


def test_virchow2_joins_class_token_and_mean_of_patches(small_vit) -> None:
    torch = pytest.importorskip("torch")
    from ragst_sd.image.resolve_encoder import resolve_encoder

    encoder = resolve_encoder("virchow2", model_kwargs={"pretrained": False}, device="cpu", amp=False)
    assert small_vit["model_name"] == "vit_huge_patch14_224"
    tiles = make_tiles()
    with torch.no_grad():
        tokens = encoder.module(encoder.prepare(tiles))
    assert tokens.shape[1] == 1 + 4 + 16 * 16
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)
    torch.testing.assert_close(encoder(tiles), expected, rtol=1e-4, atol=1e-5)


def test_local_file_needs_no_hub(small_vit, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from ragst_sd.image.resolve_encoder import resolve_encoder

    first = resolve_encoder("uni2", model_kwargs={"pretrained": False}, device="cpu", amp=False)
    torch.save(first.module.state_dict(), tmp_path / "pytorch_model.bin")
    second = resolve_encoder(
        "uni2", model_kwargs={"checkpoint_path": tmp_path / "pytorch_model.bin"}, device="cpu", amp=False
    )
    assert (small_vit["model_name"], small_vit["pretrained"]) == ("vit_giant_patch14_224", False)
    assert first == second
    assert torch.equal(first(make_tiles()), second(make_tiles()))


def test_a_file_of_weights_is_taken_from_a_repository_that_timm_cannot_load(small_vit, tmp_path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    import huggingface_hub

    from ragst_sd.image.resolve_encoder import resolve_encoder

    first = resolve_encoder("gpfm", model_kwargs={"pretrained": False}, device="cpu", amp=False)
    torch.save(first.module.state_dict(), tmp_path / "GPFM.pth")
    asked = []

    def download(*names):
        asked.append(names)
        return str(tmp_path / "GPFM.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    second = resolve_encoder("gpfm", device="cpu", amp=False)
    assert asked == [("majiabo/GPFM", "GPFM.pth")]
    assert (small_vit["model_name"], small_vit["pretrained"]) == ("vit_large_patch14_dinov2", False)
    assert second == first
    assert torch.equal(first(make_tiles()), second(make_tiles()))


def test_the_users_arguments_win(small_vit) -> None:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    plain = resolve_encoder("uni", device="cpu")
    changed = resolve_encoder("uni", model_kwargs={"init_values": 0.5, "img_size": 112}, device="cpu")
    assert small_vit["kwargs"]["init_values"] == 0.5
    assert (plain.input_px, changed.input_px) == (224, 112)


@pytest.mark.parametrize(
    ("name", "package", "advice"),
    [
        ("phikon-v2", "transformers", "pip install transformers"),
        ("hibou-b", "transformers", "transformers<5"),
        ("conch", "conch", "mahmoodlab/CONCH"),
    ],
)
def test_missing_package_is_named(monkeypatch, name, package, advice) -> None:
    pytest.importorskip("torch")
    from ragst_sd.image.resolve_encoder import resolve_encoder

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.open_clip_custom", None)
    with pytest.raises(ImportError, match=advice):
        resolve_encoder(name)


@pytest.fixture
def fake_transformers(monkeypatch):
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(3, 8)

        def forward(self, pixel_values):
            tokens = self.proj(pixel_values.flatten(2).transpose(1, 2)[:, :5])
            return SimpleNamespace(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))

    calls = []
    torch.manual_seed(0)
    model = Model()

    def from_pretrained(source, **kwargs):
        calls.append((source, kwargs))
        return model

    module = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return calls, model, module


@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "hibou-b", "midnight"])
def test_transformers_models_are_pooled_by_their_rule(fake_transformers, tmp_path, name) -> None:
    torch = pytest.importorskip("torch")
    from ragst_sd.image.resolve_encoder import resolve_encoder

    calls, model, _ = fake_transformers
    row = FOUNDATION_MODELS[name]
    allowed = {"trust_remote_code": True} if row.remote_code else {}
    passed = {**row.hub_kwargs, **allowed}
    # Without it the pooling layer has random weights, and so another hash each time.
    assert (name == "phikon") is (passed.get("add_pooling_layer") is False)
    encoder = resolve_encoder(name, model_kwargs=allowed, device="cpu", amp=False)
    assert calls == [(row.hub_id, passed)]
    with torch.no_grad():
        output = model(encoder.prepare(make_tiles()))
    tokens = output.last_hidden_state
    expected = {
        "cls": tokens[:, 0],
        "pooler": output.pooler_output,
        "cls_mean": torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1),
    }
    torch.testing.assert_close(encoder(make_tiles()), expected[row.pooling])
    with pytest.raises(FileNotFoundError, match=r"a folder with config\.json"):
        resolve_encoder(name, model_kwargs={"checkpoint_path": tmp_path, **allowed}, device="cpu")
    (tmp_path / "config.json").touch()
    resolve_encoder(name, model_kwargs={"checkpoint_path": tmp_path, **allowed}, device="cpu")
    assert calls[-1] == (str(tmp_path), passed)


def test_code_from_the_hub_runs_only_when_allowed(fake_transformers) -> None:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    calls, _, _ = fake_transformers
    with pytest.raises(PermissionError, match="trust_remote_code"):
        resolve_encoder("hibou-b")
    assert not calls


def test_errors_that_transformers_wraps_are_retold(fake_transformers) -> None:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    class GatedRepoError(Exception):
        pass

    def from_pretrained(source, **kwargs):
        try:
            raise GatedRepoError
        except GatedRepoError as error:
            msg = "You are trying to access a gated repo."
            raise OSError(msg) from error

    fake_transformers[2].AutoModel = SimpleNamespace(from_pretrained=from_pretrained)
    with pytest.raises(PermissionError, match=r"huggingface\.co/owkin/phikon-v2.*hf auth login"):
        resolve_encoder("phikon-v2")


def test_conch_is_built_by_its_package(monkeypatch, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from ragst_sd.image.resolve_encoder import resolve_encoder

    class Model(torch.nn.Module):
        def encode_image(self, images, *, proj_contrast, normalize):
            assert (proj_contrast, normalize) == (False, False)
            return images.mean(dim=(2, 3))

    calls = []

    def create_model_from_pretrained(config, checkpoint_path):
        calls.append((config, checkpoint_path))
        return Model(), None

    package = ModuleType("conch.open_clip_custom")
    package.create_model_from_pretrained = create_model_from_pretrained
    monkeypatch.setitem(sys.modules, "conch", ModuleType("conch"))
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", package)
    encoder = resolve_encoder("conch", device="cpu", amp=False)
    assert calls == [("conch_ViT-B-16", "hf_hub:MahmoodLab/CONCH")]
    assert encoder.prepare(make_tiles(edge=64)).shape == (2, 3, 448, 448)
    assert encoder(make_tiles(edge=64)).shape == (2, 3)
    weights = tmp_path / "pytorch_model.bin"
    weights.touch()
    resolve_encoder("conch", model_kwargs={"checkpoint_path": weights}, device="cpu")
    assert calls[-1] == ("conch_ViT-B-16", str(weights))
