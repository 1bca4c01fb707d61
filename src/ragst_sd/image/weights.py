"""Identity of a network's weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def hash_weights(module: torch.nn.Module, shaped_by: Mapping[str, Any] | None = None) -> str:
    """sha256 over the state of a module.

    Parameters
    ----------
    module
        The module; its parameters and buffers are hashed in the order of their names, with dtype and shape.
    shaped_by
        Arguments that change what the network computes without showing in its weights; hashed too if there are any.

    Returns
    -------
    The digest in hex; "" for a module without any state.
    """
    import torch

    state = module.state_dict()
    if not state:
        return ""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        if not isinstance(value, torch.Tensor):
            digest.update(f"{key}|{value!r}".encode())
            continue
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        # numpy has no bfloat16: the bytes are hashed, whatever they encode
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    for key, value in sorted((shaped_by or {}).items()):
        digest.update(f"{key}={_spell(value)}|".encode())
    return digest.hexdigest()


def _spell(value: Any) -> str:
    """Spell a value the same way in every run, which the repr of a function is not."""
    qualified = getattr(value, "__qualname__", None)
    return repr(value) if qualified is None else f"{getattr(value, '__module__', '')}.{qualified}"
