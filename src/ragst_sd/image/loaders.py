"""Networks from timm, transformers and CONCH, with the input that they were trained on."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from pkgutil import resolve_name
from typing import Any, cast

import torch

from ragst_sd.image.encoder import Encoder, Triple, hash_weights
from ragst_sd.image.hub import LOCAL_ADVICE, hub_errors
from ragst_sd.image.registry import FoundationModel

logger = logging.getLogger(__name__)

# arguments that say where the weights come from; all others shape the network and belong to its identity
_SOURCE_KWARGS = frozenset({"checkpoint_path", "pretrained", "cache_dir", "trust_remote_code"})
_FOLDER_ADVICE = "give its folder (config.json and the weights) by name: `model='local-dir:/path/to/folder'`"


def load_timm(model: str, model_kwargs: Mapping[str, Any]) -> Encoder:
    """Load a timm name, `hf-hub:org/name` or `local-dir:/path`.

    Parameters
    ----------
    model
        The name, already known to be one.
    model_kwargs
        Arguments of `timm.create_model`; `checkpoint_path` names a local file of weights.

    Returns
    -------
    The network; its mean, std and input size come from its `pretrained_cfg`.
    """
    from timm.data import resolve_model_data_config

    kwargs = dict(model_kwargs)
    module = _create_timm(model, kwargs, label=model)
    config = resolve_model_data_config(module)
    height, width = config["input_size"][-2:]
    if height != width:
        square = {"pretrained_cfg_overlay": {"input_size": (3, width, width)}}
        raise ValueError(
            f"{model!r} takes images of {height} x {width} px; tiles are square. Pass a square size: "
            f"`model_kwargs={square}`."
        )
    name = model
    if not model.startswith("hf-hub:"):
        architecture = cast("Any", module).pretrained_cfg.get("architecture", "model") if ":" in model else model
        name = f"timm:{architecture}"
    return _encoder_on_cpu(name, module, module, tuple(config["mean"]), tuple(config["std"]), width, kwargs)


def load_foundation_model(row: FoundationModel, model_kwargs: Mapping[str, Any]) -> Encoder:
    """Load a model of the registry, from the hub or from `model_kwargs["checkpoint_path"]`.

    Parameters
    ----------
    row
        The registry's row.
    model_kwargs
        The user's arguments; they win over the row's.

    Returns
    -------
    The network; mean, std, input size and pooling come from the row.
    """
    terms = {True: "commercial use allowed", False: "no commercial use", None: "read its terms"}[row.commercial_use]
    logger.info("%s: licence %s (%s). Cite: %s", row.name, row.license, terms, row.citation)
    loader = {"timm": _load_from_timm, "transformers": _load_from_transformers, "conch": _load_from_conch}[row.loader]
    module, forward = loader(row, dict(model_kwargs))
    return _encoder_on_cpu(f"hf-hub:{row.hub_id}", module, forward, row.mean, row.std, row.input_px, model_kwargs)


def _encoder_on_cpu(
    name: str, module: Any, forward: Callable, mean: Triple, std: Triple, input_px: int, kwargs: Mapping[str, Any]
) -> Encoder:
    """An encoder on the CPU, in whose memory large models are hashed."""
    size = kwargs.get("img_size")
    if size is not None:
        input_px = int(size[-1] if isinstance(size, (tuple, list)) else size)
    shaped_by = {key: value for key, value in kwargs.items() if key not in _SOURCE_KWARGS}
    digest, cpu = hash_weights(module, shaped_by), torch.device("cpu")
    return Encoder(name, digest, cpu, forward, mean=mean, std=std, input_px=input_px, module=module)


def import_timm() -> Any:
    """Import timm, or say what is missing.

    Returns
    -------
    The package.
    """
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        # torchvision raises RuntimeError when it was built for another torch.
        raise ImportError(
            f"Models by name need timm, which cannot be imported ({error}). Install it (pip install timm), with builds "
            "of torch and torchvision that match, from one index: https://pytorch.org/get-started/locally"
        ) from None


def _create_timm(model: str, kwargs: dict[str, Any], *, label: str, url: str | None = None) -> torch.nn.Module:
    timm = import_timm()
    kwargs = {"num_classes": 0, **kwargs}
    checkpoint = kwargs.pop("checkpoint_path", None)
    pretrained = kwargs.pop("pretrained", True) and checkpoint is None
    if checkpoint is not None:
        checkpoint = _existing_file(checkpoint, label)
    elif pretrained:
        _require_pretrained(timm, model)
    else:
        logger.warning(
            "%s has random weights, because of model_kwargs={'pretrained': False}: its embeddings carry what a random "
            "network keeps of the image, and a new call gives other ones.",
            label,
        )
    advice = _FOLDER_ADVICE if model.startswith("hf-hub:") and label == model else LOCAL_ADVICE
    with hub_errors(label, url=url, local_advice=advice):
        module = timm.create_model(model, pretrained=pretrained, **kwargs)
    if checkpoint is not None:
        _load_checkpoint(module, checkpoint, label)
    return module.eval()


def _require_pretrained(timm: Any, model: str) -> None:
    """Raise a `ValueError` that lists what there is if timm has no weights under the name."""
    if ":" in model:
        return
    architecture = model.split(".")[0]
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if not tags or ("." in model and model not in tags):
        available = f"It has weights as {', '.join(tags)}." if tags else "timm has no weights for it."
        raise ValueError(
            f"There are no pretrained weights for {model!r}. {available} A local file goes through "
            "`model_kwargs={'checkpoint_path': ...}`; random weights have to be asked for with "
            "`model_kwargs={'pretrained': False}`."
        )


def _load_checkpoint(module: torch.nn.Module, path: Path, label: str) -> None:
    from timm.models import load_checkpoint

    try:
        keys = load_checkpoint(module, str(path), strict=False, weights_only=True)
    except Exception as error:
        raise ValueError(_unreadable(label, str(path), error)) from error
    classifier = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    missing = [key for key in keys.missing_keys if not key.endswith("num_batches_tracked")]
    foreign = [key for key in keys.unexpected_keys if not (heads and key.startswith(heads))]
    if missing or foreign:
        raise ValueError(
            f"The file {str(path)!r} does not fit {label!r}: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(foreign)} are not part of the network {foreign[:3]}. Check the model name, and pass the "
            "`model_kwargs` that the network was built with (`img_size`, `reg_tokens`, ...)."
        )


def _unreadable(label: str, source: str, error: Exception) -> str:
    """The message for weights that cannot be read."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"The weights of {label!r} could not be read from {source!r}. Give a .safetensors file or a torch file "
        "that holds a state_dict (it is read with weights_only=True, so a pickled module is refused), and the "
        f"`model_kwargs` that the network was built with. The reason: {reason}"
    )


@contextmanager
def _no_code_from_weights() -> Iterator[None]:
    """Have torch refuse pickles that hold more than weights, in packages that load their files themselves."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _load_from_timm(row: FoundationModel, kwargs: dict[str, Any]) -> tuple[torch.nn.Module, Callable]:
    local = kwargs.get("checkpoint_path") is not None or kwargs.get("pretrained") is False
    if row.weights_file and not local:
        from huggingface_hub import hf_hub_download

        with hub_errors(row.hub_id, url=row.url):
            kwargs["checkpoint_path"], local = hf_hub_download(row.hub_id, row.weights_file), True
    source = row.architecture if local else f"hf-hub:{row.hub_id}"
    preset = row.architecture_kwargs if local else row.hub_kwargs
    import_timm()
    kwargs = {**_resolved_classes(preset), **kwargs}
    module = _create_timm(source, kwargs, label=row.name, url=row.url)
    if row.pooling == "cls_mean":
        n_prefix = int(cast("Any", module).num_prefix_tokens)
        return module, lambda tiles: _cls_and_mean(module(tiles), n_prefix)
    return module, module


def _load_from_transformers(row: FoundationModel, kwargs: dict[str, Any]) -> tuple[torch.nn.Module, Callable]:
    transformers = _import_or_tell(row, "transformers", "is built by transformers")
    if row.remote_code and not kwargs.get("trust_remote_code"):
        raise PermissionError(
            f"Loading {row.name!r} runs Python code from {row.url}. Read it, and allow it with "
            "`model_kwargs={'trust_remote_code': True}`."
        )
    folder = kwargs.pop("checkpoint_path", None)
    source = row.hub_id if folder is None else str(Path(folder).expanduser())
    if folder is not None and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"`checkpoint_path` of {row.name!r} is {str(folder)!r}; it has to be a folder with config.json and weights."
        )
    advice = "pass the folder with config.json and the weights: `model_kwargs={'checkpoint_path': '/path/to/folder'}`"
    with hub_errors(row.hub_id, url=row.url, local_advice=advice), _no_code_from_weights():
        module = transformers.AutoModel.from_pretrained(str(source), **{**row.hub_kwargs, **kwargs}).eval()
    if row.pooling == "pooler":
        return module, lambda tiles: module(pixel_values=tiles).pooler_output
    if row.pooling == "cls_mean":
        return module, lambda tiles: _cls_and_mean(module(pixel_values=tiles).last_hidden_state, 1)
    return module, lambda tiles: module(pixel_values=tiles).last_hidden_state[:, 0]


def _load_from_conch(row: FoundationModel, kwargs: dict[str, Any]) -> tuple[torch.nn.Module, Callable]:
    conch = _import_or_tell(row, "conch.open_clip_custom", "needs its authors' package")
    checkpoint = kwargs.pop("checkpoint_path", None)
    source = f"hf_hub:{row.hub_id}" if checkpoint is None else str(_existing_file(checkpoint, row.name))
    try:
        with hub_errors(row.hub_id, url=row.url), _no_code_from_weights():
            module, _ = conch.create_model_from_pretrained("conch_ViT-B-16", checkpoint_path=source, **kwargs)
    except UnpicklingError as error:
        raise ValueError(_unreadable(row.name, source, error)) from None
    module.eval()
    return module, lambda tiles: module.encode_image(tiles, proj_contrast=False, normalize=False)


def _import_or_tell(row: FoundationModel, package: str, why: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{row.name!r} {why}, which cannot be imported ({error}). pip install {row.needs}") from None


def _cls_and_mean(tokens: torch.Tensor, n_prefix: int) -> torch.Tensor:
    """Class token and mean of the patch tokens, which follow `n_prefix` others, side by side."""
    return torch.cat([tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)], dim=-1)


def _resolved_classes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with texts such as `"timm.layers:SwiGLUPacked"` replaced by the class that they name."""
    is_class = {key: isinstance(value, str) and ":" in value for key, value in kwargs.items()}
    return {key: resolve_name(value) if is_class[key] else value for key, value in kwargs.items()}


def _existing_file(path: str | Path, label: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"`checkpoint_path` of {label!r} is {str(path)!r}, which is no file. Give one .safetensors or torch file."
        )
    return file
