"""From what `model=` takes, a name, a file or an object, to a ready encoder."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ragst_sd.image.device import Device, resolve_amp, resolve_device
from ragst_sd.image.encoder import Encoder, Triple, hash_weights
from ragst_sd.image.loaders import import_timm, load_foundation_model, load_timm
from ragst_sd.image.onnx_file import is_onnx_file, load_onnx_file
from ragst_sd.image.registry import FOUNDATION_MODELS, find_foundation_model

logger = logging.getLogger(__name__)

TEXTURE = "texture"
DEFAULT_CONTEXT = (1.0, 2.5, 6.0)
_FEW_CONVOLUTIONS = 8
_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")


def resolve_encoder(
    model: Any,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    amp: bool | None = None,
) -> Encoder:
    """Make an encoder of whatever names or is a model.

    Parameters
    ----------
    model
        One of

        - `"texture"`: colour and texture statistics, no weights;
        - a short name of a pathology foundation model (`ragst_sd.image.registry`), or its `hf-hub:` id;
        - any timm name, `hf-hub:org/name`, or `local-dir:/path` (a folder with config.json and weights);
        - the path of an ONNX file, `"model.onnx"` (`ragst_sd.image.onnx_file`);
        - a `torch.nn.Module`, or a callable on (n, 3, h, w) float tensors;
        - an object with `encode_image`, and optionally `get_transform()`, `to(device)` and `name`. A transform is
          applied to each tile as an (h, w, 3) uint8 array; `get_transform()` that returns `None` means that
          `encode_image` takes uint8 tiles.

        A module, callable or object with a string attribute `name` is known by it.
    model_kwargs
        For models by name: arguments of the loader. `checkpoint_path` names a local file (.safetensors, or a torch
        file, read with `weights_only=True`) and nothing is downloaded; for transformers models it is a folder.
        Without it pretrained weights are loaded; `{"pretrained": False}` asks for random ones. For an ONNX file
        `output` names what to take of several outputs, and `pooling` (`"cls"` or `"mean"`) makes tokens one vector.
    mean, std
        Normalisation of RGB in [0, 1] in place of the model's own; three numbers each. Objects and ONNX files need both
        or neither.
    device
        Where to run; `None` is the device a module is on, else a GPU if there is one. A module is moved in place.
    amp
        bfloat16 autocast; `None` where the device does it in hardware. Texture and ONNX files never use it.

    Returns
    -------
    The encoder.

    Raises
    ------
    ValueError
        Unknown name, arguments that do not apply, or weights that do not fit.
    TypeError
        `model` is nothing that can embed.
    ImportError
        The package that builds the model is missing.
    PermissionError
        The model is gated, or loading it runs code from the hub and that was not allowed.
    FileNotFoundError
        No such local file, ONNX file or hub repository.
    ConnectionError
        The hub cannot be reached and the model is not in the cache.
    """
    if isinstance(model, Encoder):
        return model
    mean, std = _rgb_triple(mean, "mean"), _rgb_triple(std, "std")
    if (mean is None) != (std is None) and (is_onnx_file(model) or not isinstance(model, str)):
        raise ValueError(
            f"`mean` and `std` of a model object or an ONNX file go together; found mean={mean!r}, std={std!r}."
        )
    if is_onnx_file(model):
        loaded = load_onnx_file(model, model_kwargs or {}, mean=mean, std=std, device=device)
        return replace(loaded, context=DEFAULT_CONTEXT)
    if not isinstance(model, str):
        if model_kwargs:
            raise ValueError(
                "`model_kwargs` build models by name; `model` is an object already. Build it with them, then pass it."
            )
        return wrap_object(model, mean=mean, std=std, device=device, amp=amp)
    if model == TEXTURE:
        if model_kwargs or mean is not None or std is not None:
            raise ValueError("'texture' has no parameters: leave out `model_kwargs`, `mean` and `std`.")
        from ragst_sd.image.texture import TEXTURE_VERSION, texture_features

        device = resolve_device(device)
        return Encoder(TEXTURE, TEXTURE_VERSION, device, texture_features, context=DEFAULT_CONTEXT, raw=True)
    loaded = _load_by_name(model, model_kwargs or {})
    device = resolve_device(device)
    module: Any = loaded.module.to(device)  # type: ignore[union-attr]
    # Channels last are faster for convolutions; transformers have one or a few at most.
    channels_last = sum(isinstance(part, torch.nn.Conv2d) for part in module.modules()) > _FEW_CONVOLUTIONS
    if channels_last:
        module.to(memory_format=torch.channels_last)
    loaded = replace(loaded, mean=mean or loaded.mean, std=std or loaded.std, context=DEFAULT_CONTEXT)
    return replace(loaded, device=device, amp=resolve_amp(device, amp=amp), channels_last=channels_last)


def _load_by_name(model: str, model_kwargs: Mapping[str, Any]) -> Encoder:
    """A foundation model of the registry, else a model of timm."""
    row = find_foundation_model(model)
    if row is not None:
        return load_foundation_model(row, model_kwargs)
    timm = import_timm()
    if not model.startswith(_SOURCES) and not timm.is_model(model):
        raise ValueError(_unknown_name(model, timm))
    return load_timm(model.replace("hf_hub:", "hf-hub:"), model_kwargs)


def _unknown_name(model: str, timm: Any) -> str:
    """The message for a name that nobody knows, with names that are spelled alike."""
    short = [TEXTURE, *FOUNDATION_MODELS]
    names = [*short, *timm.list_models()]
    close = list(dict.fromkeys(difflib.get_close_matches(model.lower(), names, n=5, cutoff=0.6)))
    hint = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
    hub = f"A hub model is written 'hf-hub:{model}'. " if model.count("/") == 1 else ""
    return (
        f"Unknown model {model!r}. {hint}{hub}Available: {', '.join(short)}, every name of timm.list_models(), "
        "'hf-hub:org/name', 'local-dir:/path', the path of an .onnx file, or a torch module or callable of yours."
    )


def _rgb_triple(values: Sequence[float] | None, name: str) -> Triple:
    if values is None:
        return None
    numbers = tuple(map(float, values))
    # Means in [0, 255] would be taken off inputs in [0, 1].
    if len(numbers) != 3 or max(numbers) > 1 or (name == "std" and min(numbers) <= 0):
        raise ValueError(
            f"`{name}` is three numbers, for RGB in [0, 1]{', above 0' if name == 'std' else ''}; found {values!r}."
        )
    return numbers


def wrap_object(model: Any, *, mean: Triple, std: Triple, device: Device, amp: bool | None) -> Encoder:
    """Make an encoder of a module, a callable, or an object with `encode_image`.

    Parameters
    ----------
    model
        The object.
    mean, std
        Normalisation that the user gave, both or neither; it replaces the object's own transform.
    device
        Where to run; `None` is the device the object's weights are on.
    amp
        bfloat16 autocast, as in `ragst_sd.image.device.resolve_amp`.

    Returns
    -------
    The encoder.
    """
    encode = getattr(model, "encode_image", None)
    if not callable(encode) and not callable(model):
        raise TypeError(
            f"`model` is a {type(model).__name__}. It has to be a name, a torch.nn.Module, a callable on (n, 3, h, w) "
            "float tensors, or an object with `encode_image`."
        )
    held = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    module = held if isinstance(held, torch.nn.Module) else None
    if device is None and module is not None:
        device = next((weights.device for weights in module.parameters()), None)
    device = resolve_device(device)
    movable = model if callable(getattr(model, "to", None)) else module
    if movable is not None:
        movable.to(device)
    name = getattr(model, "name", None)
    name = name if isinstance(name, str) and name else None
    digest, amp = "" if module is None else hash_weights(module), resolve_amp(device, amp=amp)
    forward = encode if callable(encode) else model
    encoder = Encoder(name, digest, device, forward, mean=mean, std=std, amp=amp, module=module)
    if mean is not None:
        return encoder
    if callable(encode) and callable(getattr(model, "get_transform", None)):
        return replace(encoder, forward=_with_transform(encode, model.get_transform(), device, encoder.dtype), raw=True)
    known = getattr(module, "pretrained_cfg", None)
    if known:
        logger.warning(
            "The given module receives RGB in [0, 1] as it is, while its `pretrained_cfg` names mean %s and std %s. "
            "Pass `mean` and `std` if it was trained with them.",
            known.get("mean"),
            known.get("std"),
        )
    return encoder


def _with_transform(encode: Callable, transform: Callable | None, device: torch.device, dtype: torch.dtype) -> Callable:
    """`encode`, for uint8 tiles that go through the model's own transform, one by one."""
    if transform is None:
        return encode

    def forward(tiles: torch.Tensor) -> Any:
        images = tiles.permute(0, 2, 3, 1).cpu().numpy()
        pixels = torch.stack([torch.as_tensor(transform(image)) for image in images])
        return encode(pixels.to(device, dtype if pixels.is_floating_point() else None))

    return forward
