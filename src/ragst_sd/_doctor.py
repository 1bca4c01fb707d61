"""What `ragst-sd doctor` tells: what is installed, what can run here, and what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import textwrap
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import ragst_sd as rg
from ragst_sd._validate import message_of
from ragst_sd.image.registry import FoundationModel

# What breaks when it was built for something else is imported; of the others the version is enough.
_IMPORTED = ("torch", "timm", "openslide", "spatialdata", "anndata", "zarr")
_PACKAGES = ("numpy", "pandas", "scipy", "scanpy", "squidpy", "dask")
_OPTIONAL = {
    "onnxruntime": ("ragst-sd[onnx]", "encoders that are ONNX files"),
    "transformers": ("transformers", "encoders of transformers"),
    "cellxgene-census": ("ragst-sd[census]", "single cells of the CELLxGENE Census"),
    "spatialdata-plot": ("spatialdata-plot", "maps of elements"),
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_WIDTH = 100


def doctor() -> tuple[list[str], int]:
    """Look at this installation and this machine; nothing is downloaded, and no model is loaded.

    Returns
    -------
    Lines to print, and the exit code: 1 if a package that is needed cannot be imported.
    """
    installed, broken = _packages()
    lines = [f"ragst_sd {rg.__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += _line("packages", installed)
    if "torch" not in broken:
        lines += _line("device", [_device()])
        lines += _line("threads", [_threads()])
    lines += _line("memory", [_memory()])
    lines += _line("encoders", [])
    for what, names in _encoders().items():
        lines += _line(f"  {what}", names)
    lines += _line("cache", [str(rg.settings.cache_dir)])
    missing = [f"{name}: {reason}" for name, reason in broken.items()]
    missing += [f'{what} (pip install "{pip}")' for name, (pip, what) in _OPTIONAL.items() if not _version(name)]
    lines += _line("missing", missing or ["nothing"], end=";")
    return lines, int(bool(broken))


def try_encoder(name: str) -> list[str]:
    """Load an encoder as :func:`ragst_sd.pp.embed_tiles` would, and embed one grey tile."""
    import torch

    from ragst_sd.image.resolve_encoder import resolve_encoder

    encoder = resolve_encoder(name, device=rg.settings.device)
    edge = encoder.input_px or 224
    (vector,) = encoder(torch.full((1, 3, edge, edge), 128, dtype=torch.uint8))
    return [f"{name} runs here: {len(vector)} numbers per tile, on {encoder.device}, in {encoder.precision}."]


def _packages() -> tuple[list[str], dict[str, str]]:
    broken = {}
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            # A library that is missing below is an OSError, torchvision of another torch a RuntimeError.
            broken[name] = message_of(error)
    names = [*(name for name in _IMPORTED if name not in broken), *_PACKAGES, *_OPTIONAL]
    return [f"{name} {number}" for name in names if (number := _version(name))], broken


def _version(name: str) -> str:
    try:
        return version({"openslide": "openslide-python"}.get(name, name))
    except PackageNotFoundError:
        return ""


def _device() -> str:
    import torch

    from ragst_sd._settings import resolve_device
    from ragst_sd.image.device import has_fast_bfloat16

    try:
        device = resolve_device()
    except RuntimeError as error:
        return message_of(error)
    what = str(device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        what += f" ({torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB)"
    return what + (", bfloat16 in hardware" if has_fast_bfloat16(device) else ", float32")


def _threads() -> str:
    import torch
    from dask.system import cpu_count

    used, allowed = torch.get_num_threads(), cpu_count()
    return f"torch uses {used} of the {allowed} that this process may use; this machine has {os.cpu_count()}"


def _memory() -> str:
    import psutil
    from distributed.system import memory_limit

    free = min(psutil.virtual_memory().available, allowed := memory_limit())
    return f"{free / 1e9:.1f} GB free of the {allowed / 1e9:.1f} GB that this process may use"


def _encoders() -> dict[str, list[str]]:
    """Encoders by what is between them and a first embedding."""
    from huggingface_hub import get_token

    from ragst_sd.image.registry import FOUNDATION_MODELS

    token = "you are logged in" if get_token() else "`hf auth login` first"
    ready, free = "run here now", "after a download"
    gated = f"after a download, once you have accepted their terms ({token})"
    by_need: dict[str, list[str]] = {ready: ["texture"], free: [], gated: []}
    if _version("onnxruntime"):
        by_need[ready].append("any .onnx file")
    for name, row in FOUNDATION_MODELS.items():
        package = {"transformers": "transformers", "conch": "conch"}.get(row.loader, "timm")
        if not _version(package):
            by_need.setdefault(f"after pip install {row.needs}", []).append(name)
        else:
            by_need[ready if _has_weights(row) else free if row.gated is False else gated].append(name)
    by_need[free].append("any timm name")
    return {what: names for what, names in by_need.items() if names}


def _has_weights(row: FoundationModel) -> bool:
    """Whether weights lie in the cache of the Hugging Face hub."""
    from huggingface_hub import try_to_load_from_cache

    files = (row.weights_file,) if row.weights_file else _WEIGHTS
    return any(isinstance(try_to_load_from_cache(row.hub_id, file), str) for file in files)


def _line(what: str, parts: Iterable[str], *, end: str = ",") -> list[str]:
    """One line of the report, wrapped to several if it is long."""
    text = f"{end} ".join(parts)
    return textwrap.wrap(f"{what}: {text}".rstrip(), _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
