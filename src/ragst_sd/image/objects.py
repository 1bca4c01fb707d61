"""Encoders made of objects that the user built."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ragst_sd.image.amp import resolve_amp, resolve_device
from ragst_sd.image.encoder import Encoder
from ragst_sd.image.weights import hash_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

logger = logging.getLogger(__name__)


def wrap_object(
    model: Any,
    *,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    device: str | torch.device | None,
    amp: bool | None,
) -> Encoder:
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
        bfloat16 autocast, as in `ragst_sd.image.amp.resolve_amp`.

    Returns
    -------
    The encoder.
    """
    import torch

    if (mean is None) != (std is None):
        msg = f"`mean` and `std` of a model object go together; found mean={mean!r}, std={std!r}."
        raise ValueError(msg)
    encode = getattr(model, "encode_image", None)
    if not callable(encode) and not callable(model):
        msg = (
            f"`model` is a {type(model).__name__}. It has to be a name, a torch.nn.Module, a callable on (n, 3, h, w) "
            "float tensors, or an object with `encode_image`."
        )
        raise TypeError(msg)
    held = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    module = held if isinstance(held, torch.nn.Module) else None
    where = resolve_device(device if device is not None else _device_of(module))
    movable = model if callable(getattr(model, "to", None)) else module
    if movable is not None:
        movable.to(where)
    name = getattr(model, "name", None)
    encoder = Encoder(
        name=name if isinstance(name, str) and name else None,
        weights_hash="" if module is None else hash_weights(module),
        mean=mean,
        std=std,
        input_px=None,
        context=(1.0,),
        device=where,
        forward=encode if callable(encode) else model,
        amp=resolve_amp(where, amp=amp),
        module=module,
    )
    if mean is not None:
        return encoder
    if callable(encode) and callable(getattr(model, "get_transform", None)):
        return replace(encoder, forward=_with_transform(encode, model.get_transform(), where, encoder.dtype), raw=True)
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
    if transform is None:
        return encode

    def forward(tiles: torch.Tensor) -> Any:
        import torch

        images = tiles.permute(0, 2, 3, 1).cpu().numpy()
        pixels = torch.stack([torch.as_tensor(transform(image)) for image in images])
        return encode(pixels.to(device, dtype if pixels.is_floating_point() else None))

    return forward


def _device_of(module: torch.nn.Module | None) -> torch.device | None:
    if module is None:
        return None
    return next((tensor.device for tensor in module.state_dict().values() if hasattr(tensor, "device")), None)
