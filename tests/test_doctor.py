"""`ragst-sd doctor`: what it says of this installation, and of one that lacks something."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

import ragst_sd as rg
from ragst_sd import _doctor
from ragst_sd.__main__ import main
from ragst_sd.image.registry import FOUNDATION_MODELS


def doctor(capsys, *arguments: str) -> tuple[int, str]:
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out


def place_of(encoder: str, told: str) -> str:
    """The line, with those that go on with it, that names an encoder."""
    lines = re.sub(r"\n {4,}", " ", told).splitlines()
    (line,) = (line for line in lines if line.startswith("  ") and re.search(rf"(: |, ){encoder}(,|$)", line))
    return line.strip()


@pytest.fixture(autouse=True)
def empty_hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)


def test_it_fits_on_a_screen_and_names_everything(capsys):
    code, told = doctor(capsys)
    assert code == 0
    assert len(told.splitlines()) <= 32
    assert max(map(len, told.splitlines())) <= 100
    assert f"ragst_sd {rg.__version__}" in told and f"torch {torch.__version__.partition('+')[0]}" in told
    assert f"torch uses {torch.get_num_threads()} of the" in told
    assert re.search(r"memory: \d+\.\d GB free of the \d+\.\d GB", told)
    assert place_of("texture", told).startswith("run here now")
    for name in FOUNDATION_MODELS:
        assert place_of(name, told)
    assert place_of("uni2", told).startswith(
        "after a download, once you have accepted their terms (`hf auth login` first)"
    )
    assert place_of("lunit-vits8", told).startswith("after a download:")


def test_login_and_weights_in_the_cache_are_seen(capsys, monkeypatch):
    import huggingface_hub

    held = {("MahmoodLab/UNI2-h", "pytorch_model.bin"), ("majiabo/GPFM", "GPFM.pth")}
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: "file" if names in held else None)
    _, told = doctor(capsys)
    assert "secret" not in told
    assert {place_of(name, told).partition(":")[0] for name in ("uni2", "gpfm", "texture")} == {"run here now"}
    assert "(you are logged in)" in place_of("uni", told)


def test_what_is_missing_is_named(capsys, monkeypatch):
    def version(name):
        if name not in ("torch", "timm"):
            raise _doctor.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(_doctor, "version", version)
    _, told = doctor(capsys)
    told = re.sub(r"\n {4,}", " ", told)
    assert 'encoders that are ONNX files (pip install "ragst-sd[onnx]")' in told
    assert place_of("phikon", told).startswith("after pip install transformers")
    assert "any .onnx file" not in told


def test_a_package_that_does_not_import_is_told_with_its_reason(capsys, monkeypatch):
    real = importlib.import_module

    def broken(name, *args):
        if name == "timm":
            msg = "operator torchvision::nms does not exist"
            raise RuntimeError(msg)
        return real(name, *args)

    monkeypatch.setattr(_doctor.importlib, "import_module", broken)
    code, told = doctor(capsys)
    assert code == 1
    assert "missing: timm: operator torchvision::nms does not exist" in told


def test_one_encoder_is_tried(capsys):
    code, told = doctor(capsys, "--model", "texture")
    assert code == 0 and re.fullmatch(r"texture runs here: \d+ numbers per tile, on \S+, in float32\.\n", told)
    assert main(["doctor", "--model", "uni-2"]) == 1
    assert "Did you mean 'uni2'" in capsys.readouterr().err
