"""The device on which a model runs, and in which precision."""

from __future__ import annotations

import torch

Device = str | torch.device | None


def resolve_device(device: Device = None) -> torch.device:
    """Device that `device` names.

    Parameters
    ----------
    device
        A torch device or its name; `None` takes a GPU where there is one (CUDA, then Apple's MPS), else the CPU.

    Returns
    -------
    The device.
    """
    if device is None:
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"`device={str(device)!r}` was asked for, but this torch ({torch.__version__}) sees no CUDA GPU. "
            "Use `device='cpu'`, or `device=None` for what is there."
        )
    return resolved


def resolve_amp(device: torch.device, *, amp: bool | None) -> bool:
    """Whether a model runs under bfloat16 autocast on a device.

    Parameters
    ----------
    amp
        True or False decide; `None` means where the hardware multiplies bfloat16 matrices natively.
    device
        The device the model runs on.

    Returns
    -------
    True if autocast is to be used.
    """
    return has_fast_bfloat16(device) if amp is None else bool(amp)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    CUDA GPUs do from compute capability 8.0 (Ampere), CPUs with AVX512-BF16 or AMX.

    Parameters
    ----------
    device
        The device.

    Returns
    -------
    True if so; False also where it cannot be found out.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe() for probe in probes if callable(probe))
