"""ONNX files as encoders, run by onnxruntime."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ragst_sd.image.device import Device, resolve_device
from ragst_sd.image.encoder import Encoder, Triple

logger = logging.getLogger(__name__)

SUFFIX = ".onnx"
# A protobuf entry of tensors whose values lie in another file: the key "location", the length of a path, the path.
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
_POOLING = ("cls", "mean")
_OPTIONS = ("output", "pooling")


def is_onnx_file(model: Any) -> bool:
    """Whether `model` names an ONNX file."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).lower().endswith(SUFFIX)


def load_onnx_file(
    path: str | os.PathLike[str], model_kwargs: Mapping[str, Any], *, mean: Triple, std: Triple, device: Device
) -> Encoder:
    """Make an encoder of an ONNX file; the size, layout and type of its input are read from the file.

    Parameters
    ----------
    path
        The file. Weights that it keeps in other files are looked for beside it.
    model_kwargs
        `output` names the output to take, which may be left out where there is one only. `pooling` is for an output
        of tokens (n, t, d): `"cls"` takes the first, `"mean"` averages all. A map (n, d, h, w) or (n, h, w, d) is
        averaged over its pixels.
    mean, std
        Normalisation of RGB in [0, 1], both or neither; pixels of 8 bits have none.
    device
        Where to run; `None` is a GPU where onnxruntime has one, else the CPU, with as many threads as torch may use.

    Returns
    -------
    The encoder, named `onnx:<name of the file>`. Its hash is that of the files and of `model_kwargs`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ImportError
        onnxruntime is missing.
    ValueError
        The file cannot be read, takes something else than RGB tiles, or has several outputs of which none is named.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`model` is {str(path)!r}, which is no file. Give the path of an ONNX file.")
    unknown = sorted(set(model_kwargs) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"`model_kwargs` of an ONNX file are {list(_OPTIONS)}; found {unknown}.")
    resolved, session = _open_session(path, device)
    name, layout, dtype, batch, edge = _read_input(session.get_inputs(), path)
    if dtype == np.uint8 and mean is not None:
        raise ValueError(f"{path.name} takes pixels of 8 bits as they are: leave out `mean` and `std`.")
    output = _chosen_output(session.get_outputs(), model_kwargs.get("output"), path)
    pool = _pooling_of(model_kwargs.get("pooling"), output, path)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        array = pixels.cpu().numpy()
        array = np.rint(255 * array).astype(np.uint8) if dtype == np.uint8 else array.astype(dtype, copy=False)
        if layout == "NHWC":
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        size = batch or len(array)
        vectors = []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            # A batch of fixed size is filled up; what comes of the filling is cut off below.
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            try:
                (values,) = session.run([output.name], {name: filled})
            except Exception as error:
                raise ValueError(
                    f"{path.name} did not run on tiles of {pixels.shape[-1]} px, which `tile_px` sets. {_said(error)}"
                ) from error
            vectors.append(pool(values)[: len(part)])
        return torch.from_numpy(np.concatenate(vectors))

    size = edge or "any number of"
    logger.info("%s: input %s of %s px as %s, output %s.", path.name, layout, size, dtype.__name__, output.name)
    digest = _hash_files(path, model_kwargs)
    return Encoder(f"onnx:{path.stem}", digest, resolved, forward, mean=mean, std=std, input_px=edge)


def _open_session(path: Path, device: Device) -> tuple[torch.device, Any]:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            f'ONNX files need onnxruntime, which cannot be imported ({error}). Install it: pip install "ragst-sd[onnx]"'
        ) from None
    resolved, has_cuda = resolve_device(device), "CUDAExecutionProvider" in runtime.get_available_providers()
    if resolved.type != "cpu" and not (resolved.type == "cuda" and has_cuda):
        if device is not None:
            raise ValueError(
                f"`device={str(device)!r}` was asked for, but this onnxruntime ({runtime.__version__}) runs on "
                f"{', '.join(runtime.get_available_providers())}. Use `device='cpu'`, or install onnxruntime-gpu."
            )
        logger.info("This onnxruntime has no support for %s: %s runs on the CPU.", resolved.type, path.name)
        resolved = torch.device("cpu")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if resolved.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": resolved.index or 0}))
    try:
        return resolved, runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as an ONNX file: it is damaged, weights that it keeps in another file are "
            f"missing, or it needs another onnxruntime than {runtime.__version__}. {_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    return f"onnxruntime says: {' '.join(str(error).split())[:300]}"


def _read_input(inputs: Sequence[Any], path: Path) -> tuple[str, str, type, int | None, int | None]:
    """Name, layout, type, size of a batch and edge of the tiles; `None` where the file leaves a size open."""
    first, described = inputs[0], "; ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in inputs)
    sizes = [size if isinstance(size, int) and size > 0 else None for size in first.shape]
    layouts = [key for key, channel in (("NCHW", 1), ("NHWC", 3)) if len(sizes) == 4 and sizes[channel] == 3]
    if len(inputs) != 1 or first.type not in _NUMPY or len(layouts) != 1:
        raise ValueError(
            f"{path.name} takes {described}. An encoder takes one tensor of RGB tiles, (n, 3, h, w) or (n, h, w, 3), "
            "of floats or 8 bit. Export it so, with 3 channels fixed, or pass a callable around it as `model`."
        )
    height, width = sizes[2:] if layouts == ["NCHW"] else sizes[1:3]
    if height != width:
        raise ValueError(
            f"{path.name} takes pictures of {first.shape}; tiles are square. Export it for squares, or for any size."
        )
    return first.name, layouts[0], _NUMPY[first.type], sizes[0], height


def _chosen_output(outputs: Sequence[Any], wanted: str | None, path: Path) -> Any:
    named = {output.name: output for output in outputs}
    if wanted is None and len(named) == 1:
        return outputs[0]
    if wanted not in named:
        described = ", ".join(f"{output.name!r} {output.shape}" for output in outputs)
        lacking = "has several outputs" if wanted is None else f"has no output {wanted!r}"
        raise ValueError(f"{path.name} {lacking}. Choose one by `model_kwargs={{'output': ...}}`: {described}.")
    return named[wanted]


def _pooling_of(pooling: str | None, output: Any, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function that makes an output one vector per tile; only tokens (n, t, d) need to be told how."""
    is_tokens = len(output.shape) == 3
    if pooling not in (_POOLING if is_tokens else (None,)):
        raise ValueError(
            f"The output {output.name!r} of {path.name} has shape {output.shape}, and `pooling` is {pooling!r}. Tokens "
            "(n, t, d) need `model_kwargs={'pooling': 'cls'}` or `'mean'`, which makes one vector of them; others none."
        )
    if pooling == "mean":
        return lambda values: values.mean(axis=1, dtype=np.float32)
    return (lambda values: values[:, 0]) if pooling == "cls" else np.asarray


def _hash_files(path: Path, model_kwargs: Mapping[str, Any]) -> str:
    """sha256 of the file, of the files beside it that hold its weights, and of what else decides what comes out."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    names = {content[at.end() : at.end() + at.group(1)[0]] for at in _LOCATION.finditer(content)}
    for place in sorted(path.parent / os.fsdecode(name) for name in names):
        if place.is_file():
            with place.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(repr(sorted(model_kwargs.items())).encode())
    return digest.hexdigest()
