"""Work in pieces: one after the other, or on the workers of a `dask.distributed` client where one is active."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from ragst_sd._dask import active_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

# Pieces that wait for each thread of the cluster: more would pile up results that nobody has taken yet.
_AHEAD = 3


def spread_over_workers(function: Callable[[S, T], R], items: Iterable[T], shared: S) -> Iterator[R]:
    """Yield `function(shared, item)` for each item, in their order.

    With a client, pieces of a worker that dies are done again on another; what an item gives does not depend on where it is
    done. Leaving early cancels what is left.
    """
    client = active_client()
    if client is None:
        for item in items:
            yield function(shared, item)
        return
    # The result of a task, and no scattered data: should the worker that holds it die, the scheduler makes it again.
    held = client.submit(_received, shared, pure=False)
    ahead = _AHEAD * max(1, sum(client.nthreads().values()))
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(client.submit(function, held, item, pure=False))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        client.cancel([*waiting, held])


def _received(shared: S) -> S:
    return shared
