"""Models from a hub: a small server on 127.0.0.1 answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEAN, STD = (0.7, 0.6, 0.5), (0.2, 0.3, 0.4)


class Hub(BaseHTTPRequestHandler):
    """`/org/name/resolve/<revision>/<file>` with the headers that a client asks for."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[1:2] in (["gated"], ["denied"]):  # not logged in; logged in without access
            return self.refuse(401 if parts[1] == "gated" else 403, "GatedRepo", "Access to model is restricted.")
        if parts[1:2] == ["absent"]:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        path = self.folder / parts[-1]
        if parts[:2] != ["lab", "tiny"] or not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0)
    safetensors_torch.save_file(model.state_dict(), folder / "model.safetensors")
    pretrained_cfg = {"input_size": [3, 160, 160], "mean": MEAN, "std": STD, "num_classes": 0, "classifier": "head"}
    pretrained_cfg["fixed_input_size"] = True
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def endpoint(hub_folder):
    handler = type("Handler", (Hub,), {"folder": hub_folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


CODE = """
    import json, sys, time, traceback
    import torch
    time.sleep = lambda seconds: None  # the client waits between attempts
    from ragst_sd.image.resolve_encoder import resolve_encoder
    for model in sys.argv[1:]:
        try:
            encoder = resolve_encoder(model, device="cpu", amp=False)
            tiles = torch.arange(2 * 3 * 160 * 160).remainder(251).to(torch.uint8).reshape(2, 3, 160, 160)
            found = {"name": encoder.name, "hash": encoder.weights_hash, "mean": encoder.mean, "std": encoder.std,
                     "vectors": encoder(tiles).tolist()}
        except Exception as error:
            found = {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
        print("RESULT " + json.dumps(found))
"""


def resolve_in_subprocess(endpoint: str, cache: Path, *models: str, **env: str) -> list[dict]:
    """`HF_ENDPOINT` is read when huggingface_hub is imported, hence a fresh interpreter."""
    keep = {key: value for key, value in os.environ.items() if not key.upper().startswith("HF_")}
    keep |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "3",
    }
    keep |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **env}
    command = [sys.executable, "-c", textwrap.dedent(CODE), *models]
    done = subprocess.run(command, env=keep, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(models), done.stderr
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answers(endpoint, cache) -> dict[str, dict]:
    models = ("hf-hub:lab/tiny", "hf_hub:lab/tiny", "hf-hub:lab/gated", "hf-hub:lab/denied", "hf-hub:lab/absent")
    models += ("hf-hub:lab/other",)
    return dict(zip(models, resolve_in_subprocess(endpoint, cache, *models), strict=True))


def test_model_and_its_normalisation_come_from_the_hub(answers, hub_folder) -> None:
    found = answers["hf-hub:lab/tiny"]
    assert "error" not in found, found
    model = timm.create_model("test_vit", num_classes=0, checkpoint_path=str(hub_folder / "model.safetensors")).eval()
    tiles = torch.arange(2 * 3 * 160 * 160).remainder(251).reshape(2, 3, 160, 160) / 255
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found["vectors"]), model((tiles - mean) / std), rtol=1e-4, atol=1e-5)
    assert found["name"] == "hf-hub:lab/tiny"
    assert (tuple(found["mean"]), tuple(found["std"])) == (MEAN, STD)
    assert answers["hf_hub:lab/tiny"] == found


def assert_clean(found: dict) -> None:
    assert "huggingface_hub" not in found["trace"]
    assert "During handling" not in found["trace"]
    assert "direct cause" not in found["trace"]


@pytest.mark.parametrize("name", ["gated", "denied"])
def test_gated_model_says_how_to_get_it(answers, endpoint, name) -> None:
    found = answers[f"hf-hub:lab/{name}"]
    assert found["error"] == "PermissionError"
    for part in (f"'hf-hub:lab/{name}' is gated", f"{endpoint}/lab/{name}", "hf auth login", "local-dir:"):
        assert part in found["message"]
    assert_clean(found)


def test_absent_model(answers, endpoint) -> None:
    found = answers["hf-hub:lab/absent"]
    assert found["error"] == "FileNotFoundError"
    assert f"{endpoint}/lab/absent" in found["message"]
    assert_clean(found)


def test_repository_that_is_no_timm_model(answers) -> None:
    found = answers["hf-hub:lab/other"]
    assert found["error"] == "FileNotFoundError"
    assert "not a timm model" in found["message"]
    assert_clean(found)


@pytest.mark.slow
def test_offline_uses_the_cache_and_else_says_so(answers, cache) -> None:
    cached, other, registered, plain = resolve_in_subprocess(
        "http://127.0.0.1:9", cache, "hf-hub:lab/tiny", "hf-hub:lab/new", "uni", "resnet10t", HF_HUB_OFFLINE="1"
    )
    assert cached == answers["hf-hub:lab/tiny"]
    for found in (other, registered, plain):
        assert found["error"] == "ConnectionError"
        assert "offline mode is set" in found["message"]
        assert_clean(found)
    assert "local-dir:" in other["message"]
    assert "'checkpoint_path'" in registered["message"]
    assert "'checkpoint_path'" in plain["message"]


@pytest.mark.slow
def test_unreachable_hub(tmp_path) -> None:
    (found,) = resolve_in_subprocess("http://127.0.0.1:9", tmp_path, "hf-hub:lab/tiny")
    assert found["error"] == "ConnectionError"
    assert "cannot be reached" in found["message"] or "download failed" in found["message"]
    assert_clean(found)


def test_local_folder_replaces_the_hub(hub_folder) -> None:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    encoder = resolve_encoder(f"local-dir:{hub_folder}", device="cpu", amp=False)
    assert (encoder.name, encoder.mean, encoder.std) == ("timm:test_vit", MEAN, STD)
    assert encoder(torch.zeros(1, 3, 160, 160, dtype=torch.uint8)).shape == (1, 64)
