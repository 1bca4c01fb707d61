"""Work in pieces: one after the other, or on the workers of a `dask.distributed` client where one is active."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from ragst_sd._dask import active_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

# Pieces that wait for each thread of the cluster: more would pile up results that nobody has taken yet.
_AHEAD = 3


def spread_over_workers(function: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
    """Yield `function(shared, item)` for each item, in their order.

    With a client, what is shared goes to the workers directly, and not through the scheduler. Pieces of a worker that dies are
    done again on another; what an item gives does not depend on where it is done. Leaving early cancels what is left.
    """
    client = active_client()
    if client is None:
        for item in items:
            yield function(shared, item)
        return
    from distributed import CancelledError

    held = scattered = _scattered(client, shared)
    ahead = _AHEAD * max(1, sum(client.nthreads().values()))
    waiting: deque[tuple[T, Any, Any]] = deque()

    def handed_out(item: T) -> tuple[T, Any, Any]:
        return item, held, client.submit(function, held, item, pure=False)

    def taken() -> R:
        nonlocal held
        item, own, future = waiting[0]
        try:
            result: R = future.result()
        except CancelledError:
            # What workers held was lost, or results that cannot be made again without it.
            if own is not scattered:
                raise
            if held is scattered:
                logger.info("All workers that held what the pieces share were lost: the scheduler keeps it now.")
                held = _through_scheduler(client, shared)
            waiting[0] = handed_out(item)
            result = waiting[0][2].result()
        waiting.popleft()
        return result

    try:
        for item in items:
            waiting.append(handed_out(item))
            if len(waiting) > ahead:
                yield taken()
        while waiting:
            yield taken()
    finally:
        client.cancel([*(future for _, _, future in waiting), held, scattered])


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
    return client.submit(_received, shared, pure=False)


def _received(shared: S) -> S:
    return shared
