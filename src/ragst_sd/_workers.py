"""All that is known of dask: work in pieces, here or on a cluster's workers, and images that are read lazily."""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
import torch
import zarr
from dask.base import get_scheduler
from zarr.storage import LocalStore

from ragst_sd._replacing import temporary_folder
from ragst_sd._settings import settings
from ragst_sd.image.embedding import Pyramid
from ragst_sd.retrieval.threads import side_by_side

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

# Pieces that wait for each thread of the cluster: more would pile up results that nobody has taken yet.
_AHEAD = 3
# A chunk this large takes seconds to decode, and more than one of them does not fit beside the rest.
_HUGE_BYTES = 2**27
_STORED_CHUNK_PX = 1024


def active_client() -> Any:
    """The `dask.distributed` client of this session; `None` without one, and inside a task of a worker."""
    return None if _this_worker() is not None else _of_distributed("default_client")


def _this_worker() -> Any:
    """The worker in whose task this runs; `None` outside of tasks."""
    return _of_distributed("get_worker")


def _of_distributed(what: str) -> Any:
    # Whoever has a client has imported the package; importing it takes a while.
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else getattr(distributed, what)()
    except ValueError:
        return None


def spread_over_workers(function: Callable[[S, T], R], items: Iterable[T], shared: S) -> Generator[R, None, None]:
    """Yield `function(shared, item)` for each item, in their order.

    With a client, what is shared goes to each worker once, and not through the scheduler. Pieces of a worker that dies
    are done again on another; what an item gives does not depend on where it is done. Leaving early cancels what is
    left.
    """
    client = active_client()
    if client is None:
        for item in items:
            yield function(shared, item)
        return
    from distributed import CancelledError

    # What tasks are given for `shared`; replaced once, should all copies be lost.
    copies = scattered = _scattered(client, shared)
    waiting: deque[tuple[T, Any]] = deque()

    def submit(item: T) -> Any:
        return client.submit(function, copies, item, pure=False)

    def next_result() -> R:
        nonlocal copies
        item, future = waiting[0]
        try:
            result: R = future.result()
        except CancelledError:
            # All workers that held a copy were lost, or results that cannot be made again without one.
            if copies is scattered:
                copies = _through_scheduler(client, shared)
            waiting[0] = item, submit(item)
            result = waiting[0][1].result()
        waiting.popleft()
        return result

    try:
        for item in items:
            waiting.append((item, submit(item)))
            if len(waiting) > _AHEAD * max(1, sum(client.nthreads().values())):
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        client.cancel([*(future for _, future in waiting), copies, scattered])


def spread_blocks(function: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
    """Yield `function(shared, block)` for blocks of spots, on workers or else on the threads of this process."""
    if active_client() is None:
        return side_by_side(partial(function, shared), items)
    return spread_over_workers(function, items, shared)


def _scattered(client: Any, shared: Any) -> Any:
    """A copy for each worker, which they pass on to one another."""
    if client.nthreads():
        try:
            # A list, as a mapping would be taken apart.
            return client.scatter([shared], direct=True, broadcast=True, hash=False)[0]
        except (OSError, TimeoutError) as error:
            logger.info("The workers cannot be reached from here (%s): the scheduler passes on what they need.", error)
    # A cluster that has no workers yet starts them for a task.
    return _through_scheduler(client, shared)


def _through_scheduler(client: Any, shared: Any) -> Any:
    """The result of a task: should the workers that hold it die, the scheduler has it made again."""
    return client.submit(lambda received: received, shared, pure=False)


class _ComputedInThread:
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
    if not always and get_scheduler() is not None:
        return pyramid

    def direct(level: Any) -> Any:
        if not hasattr(level, "dask"):
            return level
        stored = _zarr_behind(level)
        return _ComputedInThread(level) if stored is None else stored

    return replace(pyramid, levels=tuple(map(direct, pyramid.levels)))


def _zarr_behind(array: Any) -> Any:
    """The zarr array that a dask array reads and passes on as it is; `None` where anything else is done.

    Building and running a graph for every piece takes longer than decompressing it.
    """
    # `dask.array.from_zarr` gives this name; whatever is done with the array afterwards gives another.
    held = _held(array) if array.name.startswith("from-zarr-") else []
    return next((value for value in held if isinstance(value, zarr.Array)), None)


def is_at_hand(level: Any) -> bool:
    """Whether a level lies in memory or in a zarr store, so that looking at it computes nothing."""
    return not _decoded_bytes(level) or _zarr_behind(level) is not None


def require_stored(levels: Iterable[Any], what: str) -> None:
    """Raise a `FileNotFoundError` if a zarr store that pixels are read from is gone: zarr would read zeros."""
    stored = (value for level in levels for value in _held(level) if isinstance(value, zarr.Array))
    for place in {Path(array.store.root) / array.path for array in stored if isinstance(array.store, LocalStore)}:
        if not place.exists():
            raise FileNotFoundError(
                f"{what} is read from {place}, which is not there: the store was moved, deleted or is not mounted. "
                "Read the object again from where its store lies now (`spatialdata.read_zarr`)."
            )


def _held(level: Any) -> list[Any]:
    """The arrays and tasks in the graph of a level; the level itself where it has no graph."""
    graph = dict(level.dask).values() if hasattr(level, "dask") else [level]
    return [getattr(value, "value", value) for value in graph]


@contextmanager
def without_huge_chunks(pyramid: Pyramid, used: Iterable[int]) -> Iterator[Pyramid]:
    """The pyramid for reading in pieces.

    Levels in `used` that are decoded in one chunk (a TIFF in one strip, say) are decoded once, into memory. Where a
    chunk has more than 128 MB, all levels in `used` are decoded once, together, into a temporary zarr store, which is
    deleted on leaving.
    """
    levels = {k: pyramid.levels[k] for k in sorted(set(used))}
    huge = max(map(_decoded_bytes, levels.values()))
    if huge <= _HUGE_BYTES:
        whole = [k for k, level in levels.items() if _decoded_bytes(level) and level.npartitions == 1]
        pixels = dict(zip(whole, dask.compute(*(levels[k] for k in whole)), strict=True))
        read = tuple(pixels.get(k, level) for k, level in enumerate(pyramid.levels))
        yield replace(pyramid, levels=read) if pixels else pyramid
        return

    with temporary_folder() as folder:
        stored: dict[int, Any] = {}
        for k, level in levels.items():
            chunks = (level.shape[0], *(min(_STORED_CHUNK_PX, size) for size in pyramid.shapes[k]))
            stored[k] = zarr.create_array(folder / str(k), shape=level.shape, dtype=level.dtype, chunks=chunks)
        logger.info(
            "The image is stored in chunks of up to %.0f MB, which would be decoded again and again: it is decoded "
            "once into a temporary store in '%s' (up to %.0f MB). Write it with smaller chunks "
            "(`sdata.write` after `Image2DModel.parse(..., chunks=(3, 1024, 1024))`) to spare this.",
            huge / 1e6,
            folder,
            sum(array.nbytes for array in stored.values()) / 1e6,
        )
        # One call, so that levels that are computed from the same pixels share their decoding.
        sources = [da.asarray(level).rechunk(stored[k].chunks) for k, level in levels.items()]
        da.store(sources, list(stored.values()), lock=False)
        yield replace(
            pyramid,
            levels=tuple(stored.get(k, level) for k, level in enumerate(pyramid.levels)),
            chunks=tuple(stored[k].chunks[1:] if k in stored else chunk for k, chunk in enumerate(pyramid.chunks)),
        )


def _decoded_bytes(level: Any) -> float:
    """Bytes of the largest chunk that is decoded whole; 0 for pixels that lie in memory, which are only looked at."""
    if not hasattr(level, "dask"):
        return 0.0
    in_memory = sum(value.nbytes for value in _held(level) if isinstance(value, np.ndarray))
    return 0.0 if in_memory >= level.nbytes else float(np.prod(level.chunksize)) * level.dtype.itemsize


def require_stores(pyramid: Pyramid) -> None:
    """Refuse levels in folders that this machine does not see: zarr would read them as black, without an error.

    Raises
    ------
    FileNotFoundError
        If a folder is missing.
    """
    for array in (value for level in pyramid.levels for value in _held(level)):
        if not isinstance(array, zarr.Array) or not isinstance(array.store, LocalStore):
            continue
        folder = array.store.root / array.store_path.path
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The image lies in {str(folder)!r}, which the worker on {socket.gethostname()!r} cannot access. "
                "Write it to a disk that all machines share. Images with one huge chunk are decoded into a temporary "
                "folder: before Python starts, set TMPDIR to a folder that all machines share, or write the image with "
                "smaller chunks."
            )


def worker_device() -> str | None:
    """The device of the settings; inside a task of a worker that has none set, the worker's own GPU."""
    worker = _this_worker()
    if settings.device is not None or worker is None:
        return settings.device
    if not torch.cuda.is_available():
        return None
    index = gpu_of_worker(str(worker.name), torch.cuda.device_count(), one_worker_per_gpu="dask_cuda" in sys.modules)
    return f"cuda:{index}"


def gpu_of_worker(name: str, n_visible: int, *, one_worker_per_gpu: bool) -> int:
    """Index of the GPU that a worker uses, among those it sees.

    dask-cuda puts each worker's own GPU first. Elsewhere workers of one machine see the same GPUs and are told apart
    by the number at the end of their names (`LocalCluster`: 0, 1, ...; dask-jobqueue: `SLURMCluster-3-0`,
    `SLURMCluster-3-1`).
    """
    if one_worker_per_gpu:
        return 0
    number = re.search(r"\d+$", name)
    return int(number.group()) % n_visible if number else 0
