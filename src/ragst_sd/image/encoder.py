"""The encoder: from uint8 tiles to one vector per tile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

Triple = tuple[float, ...] | None
"""A mean or a spread of red, green and blue."""


@dataclass(frozen=True)
class Encoder:
    """A model ready to embed tiles.

    Called with (n, 3, h, w) uint8 tiles it resizes them to `input_px` if they differ (bilinear, antialiased), scales
    them to [0, 1], normalises with `mean` and `std`, and runs the model in eval mode under `torch.inference_mode`.
    A module that was in training mode is put back afterwards. The output is one float32 vector per tile on the CPU;
    a feature map, with channels first or last, is averaged over its pixels, any other shape is refused. A module in
    half or double precision gets its tiles so, and runs without autocast.

    Attributes
    ----------
    name
        Identity for headers; `None` for an anonymous module or callable, whose embeddings are never reused.
    weights_hash
        sha256 of the weights (and of `model_kwargs` that shape the network); "" where there are none to see.
    mean, std
        Normalisation of RGB in [0, 1]; `None` leaves [0, 1] as it is.
    input_px
        Edge to which tiles are resized; `None` takes any.
    context
        Fields of view that this encoder is used with by default, in multiples of the tile.
    device
        Where it runs.
    amp
        Whether it runs under bfloat16 autocast.
    forward
        Prepared tiles to output.
    module
        What is switched to eval mode, if it is a module.
    raw
        Whether `forward` takes the uint8 tiles and prepares them itself.
    channels_last
        Whether pixels, and the weights of the module, lie with channels last in memory.
    """

    name: str | None
    weights_hash: str
    device: torch.device = field(compare=False)
    forward: Callable[[torch.Tensor], Any] = field(repr=False, compare=False)
    mean: Triple = None
    std: Triple = None
    input_px: int | None = None
    context: tuple[float, ...] = (1.0,)
    amp: bool = False
    module: torch.nn.Module | None = field(default=None, repr=False, compare=False)
    raw: bool = field(default=False, repr=False)
    channels_last: bool = field(default=False, repr=False, compare=False)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed tiles.

        Parameters
        ----------
        tiles
            (n, 3, h, w) uint8.

        Returns
        -------
        (n, d) float32 on the CPU.
        """
        # A tensor made in inference mode cannot enter autograd later; its copy can.
        return self.encode(tiles).cpu().clone()

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed tiles without waiting for the device.

        Parameters
        ----------
        tiles
            (n, 3, h, w) uint8.

        Returns
        -------
        (n, d) float32 on the device, made in inference mode.
        """
        training = [] if self.module is None else [part for part in self.module.modules() if part.training]
        for part in training:
            part.training = False
        try:
            amp = self.amp and self.dtype == torch.float32
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=amp):
                output = self._run(self.prepare(tiles))
                return _as_vectors(output, len(tiles), self._label())
        finally:
            for part in training:
                part.training = True

    def prepare(self, tiles: torch.Tensor) -> torch.Tensor:
        """Turn uint8 tiles into the tensor that the model receives.

        Parameters
        ----------
        tiles
            (n, 3, h, w) uint8.

        Returns
        -------
        (n, 3, input_px, input_px) on the device, normalised, in the precision of the weights; the tiles as they are
        where `raw`.
        """
        # Without waiting from pinned memory; an ordinary copy from any other.
        tiles = tiles.to(self.device, non_blocking=True)
        if self.raw:
            return tiles
        pixels = tiles.to(torch.float32) / 255.0
        if self.input_px is not None and tuple(pixels.shape[-2:]) != (self.input_px, self.input_px):
            size = (self.input_px, self.input_px)
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.mean is not None and self.std is not None:
            pixels = (pixels - _per_channel(self.mean, self.device)) / _per_channel(self.std, self.device)
        return pixels.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first weights that are numbers with a point; float32 where there are none."""
        tensors = [] if self.module is None else self.module.parameters()
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    @property
    def precision(self) -> str:
        """In which precision it computes."""
        weights = str(self.dtype).removeprefix("torch.")
        return "bfloat16" if self.amp and weights == "float32" else weights

    def _run(self, pixels: torch.Tensor) -> Any:
        try:
            return self.forward(pixels)
        except (AssertionError, RuntimeError, ValueError) as error:
            expected, (height, width) = None if self.raw else expected_px(self.module), pixels.shape[-2:]
            if expected in (None, (height, width)) or isinstance(error, torch.OutOfMemoryError):
                error.add_note(f"The tiles were {width} x {height} px; `tile_px` sets their size.")
                raise
            raise ValueError(
                f"{self._label()} takes pictures of {expected[1]} x {expected[0]} px, and the tiles have {width} x "
                f"{height} px ({error}). Pass `tile_px={expected[1]}`, or a network that takes any size ("
                "`timm.create_model(..., dynamic_img_size=True)`)."
            ) from error

    def _label(self) -> str:
        return repr(self.name) if self.name is not None else "the given model"


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Kept, because copying three numbers to a GPU waits for all that it has been given to do.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def expected_px(module: torch.nn.Module | None) -> tuple[int, int] | None:
    """(height, width) that a module of timm, torchvision or transformers was built for, where it or a part says so."""
    parts = [] if module is None else list(module.modules())
    places = ("img_size", "image_size", "config.image_size", "pretrained_cfg.input_size")
    for place, part in product(places, parts):
        stated: Any = part
        for name in place.split("."):
            stated = stated.get(name) if isinstance(stated, dict) else getattr(stated, name, None)
        numbers = list(stated) if isinstance(stated, (list, tuple)) else [stated]
        if numbers and all(isinstance(number, int) for number in numbers):
            # One number is the edge of a square; a third one counts channels and comes first.
            return numbers[-2:][0], numbers[-1]
    return None


def _pixel_axes(shape: Sequence[int], label: str) -> tuple[int, int]:
    """The two axes of a feature map (n, c, h, w) or (n, h, w, c) that are its pixels: tiles are square, so maps are."""
    first, second, third = shape[1:]
    if (first == second == third != 1) or (first != second and second != third):
        raise ValueError(
            f"The output of {label} has shape {tuple(shape)}, in which channels cannot be told from pixels. Pool it "
            "in a callable around the model, for example lambda x: model(x).mean((2, 3))."
        )
    return (2, 3) if second == third else (1, 2)


def _as_vectors(output: Any, n: int, label: str) -> torch.Tensor:
    """(n, d) float32 of what a model returns, a feature map averaged over its pixels; anything else is refused."""
    try:
        vectors = torch.as_tensor(output)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"The output of {label} is a {type(output).__name__}, not one tensor. Wrap the model in a callable that "
            "returns one vector per tile."
        ) from None
    if vectors.ndim == 4:
        vectors = vectors.mean(dim=_pixel_axes(vectors.shape, label), dtype=torch.float32)
    if vectors.ndim != 2 or len(vectors) != n:
        raise ValueError(
            f"The output of {label} has shape {tuple(vectors.shape)} for {n} tiles; one vector per tile, ({n}, d), is "
            "needed. Pool tokens in a callable around the model, for example lambda x: model(x)[:, 0]."
        )
    return vectors.to(torch.float32)


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
