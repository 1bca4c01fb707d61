"""Work ahead in a background thread: the next batches are read while the encoder is busy with this one."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_Item = TypeVar("_Item")
_END = object()


def in_background(items: Iterable[_Item], *, depth: int = 2) -> Generator[_Item, None, None]:
    """Iterate over `items` in a thread of its own, at most `depth` of them ahead.

    An error in the thread is raised here, at the place in the order where it happened. Leaving the iteration early (an
    error, Ctrl-C, `close`) stops the thread and closes `items`.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ragst-prefetch") as pool:
        # One more than wait is being made.
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(depth + 1))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, iterator, _END))
                yield cast("_Item", item)
        finally:
            for future in waiting:
                future.cancel()
            if hasattr(iterator, "close"):
                pool.submit(iterator.close).result()
