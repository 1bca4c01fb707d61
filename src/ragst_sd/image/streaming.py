"""Batches of tiles through an encoder, without letting a GPU wait for them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

# Batches handed to the device before the first of their results is fetched.
_IN_FLIGHT = 2


def embed_batches(
    batches: Iterable[tuple[np.ndarray, torch.Tensor]], encoder: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embed batches of tiles so that a GPU never waits: the next batch is handed over before a result is fetched.

    Parameters
    ----------
    batches
        Indices, and uint8 tiles (b, 3, h, w).
    encoder
        Maps tiles to a tensor (b, d).

    Yields
    ------
    Indices and float32 (b, d), in order.

    Raises
    ------
    ValueError
        If the encoder returns NaN or infinite values.
    """
    encode = getattr(encoder, "encode", encoder)
    waiting: deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = deque()
    for index, tiles in batches:
        waiting.append((index, _fetch_later(encode(tiles))))
        if len(waiting) >= _IN_FLIGHT:
            ready, fetch = waiting.popleft()
            yield ready, _finite(fetch())
    for ready, fetch in waiting:
        yield ready, _finite(fetch())


def pin(tiles: torch.Tensor, encoder: object) -> torch.Tensor:
    """Tiles in memory from which a CUDA encoder copies without waiting; as they are for any other encoder."""
    return tiles.pin_memory() if getattr(getattr(encoder, "device", None), "type", "cpu") == "cuda" else tiles


def _fetch_later(vectors: torch.Tensor) -> Callable[[], np.ndarray]:
    import torch

    if vectors.device.type != "cuda":
        return vectors.cpu().numpy
    # The copy is queued behind this batch alone; asking for it later does not wait for the batches after it.
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def fetch() -> np.ndarray:
        copied.synchronize()
        return host.numpy().copy()

    return fetch


def _finite(values: np.ndarray) -> np.ndarray:
    fine = np.isfinite(values).all(axis=1)
    if not fine.all():
        msg = (
            f"The encoder returned NaN or infinite values for {int((~fine).sum())} of {len(values)} tiles of a batch. "
            "Check its weights and `mean` and `std`, or pass `amp=False` if reduced precision overflows."
        )
        raise ValueError(msg)
    return values
