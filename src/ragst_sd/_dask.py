"""All that is known of dask: how images are read through it, and how tiles are embedded on the workers of a cluster."""

from __future__ import annotations

import logging
import re
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._temporary import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ragst_sd.image.embedding import Pyramid
    from ragst_sd.image.encoder import Encoder
    from ragst_sd.image.frames import FieldOfView
    from ragst_sd.image.parts import Part

logger = logging.getLogger(__name__)

# A chunk this large takes seconds to decode, and more than one of them does not fit beside the rest.
_HUGE_BYTES = 2**27
_STORED_CHUNK_PX = 1024
_LOCK = Lock()
# The encoder that this process used last, by the key of its job: one is enough, and two may not fit on a GPU.
_ENCODERS: dict[str, Encoder] = {}


def active_client() -> Any:
    """The `dask.distributed` client of this session; `None` without one, and inside a task of a worker."""
    # Whoever has a client has imported the package; importing it takes a while.
    distributed = sys.modules.get("distributed")
    if distributed is None or _this_worker() is not None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def _this_worker() -> Any:
    """The worker in whose task this runs; `None` outside of tasks."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except ValueError:
        return None


class Slices:
    """A dask array of which every piece is computed in the thread that asks for it.

    The threads that read ahead are ours: dask's own would come on top of them, at some milliseconds for every piece.
    """

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.array[key].compute(scheduler="synchronous"))


def read_in_calling_thread(pyramid: Pyramid, *, always: bool = False) -> Pyramid:
    """The pyramid with dask levels that compute a piece in the thread that asks for it.

    The arrays are left to dask where the user chose a scheduler, unless `always`.
    """
    from dask.array import Array
    from dask.base import get_scheduler

    if not always and get_scheduler() is not None:
        return pyramid

    def direct(level: Any) -> Any:
        if not isinstance(level, Array):
            return level
        stored = _zarr_behind(level)
        return Slices(level) if stored is None else stored

    return replace(pyramid, levels=tuple(map(direct, pyramid.levels)))


def _zarr_behind(array: Any) -> Any:
    """The zarr array that a dask array reads and passes on as it is; `None` where anything else is done.

    Building and running a graph for every piece takes longer than decompressing it.
    """
    import zarr
    from dask.array.core import getter, slices_from_chunks

    if len(array.dask.layers) != 2 or array.name not in array.dask.layers:
        return None
    (source,) = (layer for name, layer in array.dask.layers.items() if name != array.name)
    held = [getattr(value, "value", value) for value in dict(source).values()]
    if len(held) != 1 or not isinstance(held[0], zarr.Array):
        return None
    stored: Any = held[0]
    if stored.shape != array.shape or stored.dtype != array.dtype:
        return None
    tasks = dict(array.dask.layers[array.name])
    blocks = np.ndindex(*array.numblocks)
    for block, region in zip(blocks, slices_from_chunks(array.chunks), strict=True):
        task: Any = tasks.get((array.name, *block))
        if getattr(task, "func", None) is not getter or task.kwargs.get("lock") or len(task.args) != 2:
            return None
        if getattr(task.args[1], "value", None) != region:
            return None
    return stored


@contextmanager
def without_huge_chunks(pyramid: Pyramid, used: Iterable[int]) -> Iterator[Pyramid]:
    """The pyramid for reading in pieces.

    Where one of the levels in `used` is decoded in chunks of more than 128 MB (a TIFF in one strip, say), all of them
    are decoded once, together, into a temporary zarr store, which is deleted on leaving.
    """
    levels = sorted(set(used))
    if not any(_is_huge(pyramid.levels[k]) for k in levels):
        yield pyramid
        return
    import dask.array as da
    import zarr

    with temporary_folder() as folder:
        stored: dict[int, Any] = {
            k: zarr.create_array(
                folder / str(k),
                shape=pyramid.levels[k].shape,
                dtype=pyramid.levels[k].dtype,
                chunks=(pyramid.levels[k].shape[0], *(min(_STORED_CHUNK_PX, size) for size in pyramid.shapes[k])),
            )
            for k in levels
        }
        logger.info(
            "The image is stored in chunks of up to %.0f MB, which would be decoded again and again: it is decoded once "
            "into a temporary store in '%s' (up to %.0f MB). Write it with smaller chunks "
            "(`sdata.write` after `Image2DModel.parse(..., chunks=(3, 1024, 1024))`) to spare this.",
            max(_chunk_bytes(pyramid.levels[k]) for k in levels) / 1e6,
            folder,
            sum(array.nbytes for array in stored.values()) / 1e6,
        )
        # One call, so that levels that are computed from the same pixels share their decoding.
        da.store(
            [da.asarray(pyramid.levels[k]).rechunk(stored[k].chunks) for k in levels],
            list(stored.values()),
            lock=False,
        )
        yield replace(
            pyramid,
            levels=tuple(stored.get(k, level) for k, level in enumerate(pyramid.levels)),
            chunks=tuple(stored[k].chunks[1:] if k in stored else chunk for k, chunk in enumerate(pyramid.chunks)),
        )


def _chunk_bytes(level: Any) -> float:
    sizes = getattr(level, "chunksize", None)
    return 0.0 if sizes is None else float(np.prod(sizes)) * level.dtype.itemsize


def _is_huge(level: Any) -> bool:
    if _chunk_bytes(level) <= _HUGE_BYTES:
        return False
    # Pixels that lie in memory are only looked at, whatever the chunks are said to be.
    held = [getattr(value, "value", value) for value in dict(level.dask).values()]
    return sum(value.nbytes for value in held if isinstance(value, np.ndarray)) < level.nbytes


@dataclass(frozen=True)
class Job:
    """What a worker has to know to embed a part."""

    key: str
    """Names the job; workers keep its encoder under this name."""
    pyramid: Pyramid
    centers: np.ndarray
    fields: tuple[FieldOfView, ...]
    batch_size: int
    num_workers: int
    model: Any
    """Name or object, as the user gave it."""
    options: Mapping[str, Any]
    """Further arguments of `resolve_encoder`; without a device each worker takes its own."""
    weights_hash: str
    """Of the encoder here; workers must find the same."""


def embed_on_workers(client: Any, job: Job, parts: Sequence[Part]) -> Iterator[tuple[int, np.ndarray]]:
    """Embed parts on the workers of a cluster.

    A part whose worker dies is done again on another. Leaving early cancels what has not been done.

    Yields
    ------
    Positions in `parts`, in the order in which they are done, and their embeddings.
    """
    from distributed import as_completed

    # A task of its own and no scattered data: should the worker that holds it die, the scheduler sends it again.
    shared = client.submit(_receive, job, pure=False)
    futures = {client.submit(_embed_part, shared, part, pure=False): k for k, part in enumerate(parts)}
    logger.info("Embedding %d parts on %d workers.", len(parts), len(client.scheduler_info()["workers"]))
    try:
        for future in as_completed(list(futures)):
            values = future.result()
            yield futures[future], values
            future.release()
    finally:
        client.cancel([*futures, shared])


def _receive(job: Job) -> Job:
    return job


def _embed_part(job: Job, part: Part) -> np.ndarray:
    from ragst_sd.image.parts import embed_parts

    _require_stores(job.pyramid)
    pyramid = read_in_calling_thread(job.pyramid, always=True)
    (values,) = embed_parts(
        pyramid,
        job.centers,
        job.fields,
        [part],
        _encoder_of(job),
        batch_size=job.batch_size,
        num_workers=job.num_workers,
    )
    return values


def _require_stores(pyramid: Pyramid) -> None:
    """Refuse levels that lie in folders which this machine does not see: zarr would read them as black, without an error.

    Raises
    ------
    FileNotFoundError
        If a folder is missing.
    """
    import zarr
    from zarr.storage import LocalStore

    for level in pyramid.levels:
        held = dict(level.dask).values() if hasattr(level, "dask") else [level]
        for value in held:
            array = getattr(value, "value", value)
            if not isinstance(array, zarr.Array) or not isinstance(array.store, LocalStore):
                continue
            folder = array.store.root / array.store_path.path
            if not folder.is_dir():
                msg = (
                    f"The image lies in {str(folder)!r}, which the worker on {socket.gethostname()!r} does not see. Write it to a "
                    "disk that all machines share. Images of one huge chunk are decoded into a temporary folder: set TMPDIR to "
                    "one that all machines share before Python starts, or write the image with smaller chunks."
                )
                raise FileNotFoundError(msg)


def _encoder_of(job: Job) -> Encoder:
    from ragst_sd.image.encoders import resolve_encoder

    with _LOCK:
        if job.key not in _ENCODERS:
            _ENCODERS.clear()
            options = dict(job.options)
            if options.get("device") is None:
                options["device"] = own_device()
            encoder = resolve_encoder(job.model, **options)
            if encoder.weights_hash != job.weights_hash:
                msg = (
                    f"The weights of {encoder.name!r} on this worker are not those of the session that asked for them. "
                    "Give all machines the same file (`model_kwargs={'checkpoint_path': ...}`); random weights "
                    "(`{'pretrained': False}`) differ everywhere: build the network once and pass the module."
                )
                raise ValueError(msg)
            _ENCODERS[job.key] = encoder
        return _ENCODERS[job.key]


def own_device() -> str | None:
    """The device of the settings; inside a task of a worker that has none set, the worker's own GPU."""
    from ragst_sd._settings import settings

    worker = _this_worker()
    if settings.device is not None or worker is None:
        return settings.device
    import torch

    if not torch.cuda.is_available():
        return None
    index = gpu_of_worker(str(worker.name), torch.cuda.device_count(), one_worker_per_gpu="dask_cuda" in sys.modules)
    return f"cuda:{index}"


def gpu_of_worker(name: str, n_visible: int, *, one_worker_per_gpu: bool) -> int:
    """Index of the GPU that a worker uses, among those it sees.

    dask-cuda puts each worker's own GPU first. Elsewhere workers of one machine see the same GPUs and are told apart by the
    number at the end of their names (`LocalCluster`: 0, 1, ...; dask-jobqueue: `SLURMCluster-3-0`, `SLURMCluster-3-1`).
    """
    if one_worker_per_gpu:
        return 0
    number = re.search(r"\d+$", name)
    return int(number.group()) % n_visible if number else 0
