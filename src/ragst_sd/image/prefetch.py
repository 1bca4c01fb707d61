"""Work ahead in a background thread: the next batches are read while the encoder is busy with this one."""

from __future__ import annotations

from queue import Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_Item = TypeVar("_Item")
_END = object()
# How often a thread that waits looks whether it is still wanted.
_PATIENCE_S = 0.1


def in_background(items: Iterable[_Item], *, depth: int = 2) -> Generator[_Item, None, None]:
    """Iterate over `items` in a thread of its own, at most `depth` of them ahead.

    An error in the thread is raised here, at the place in the order where it happened. Leaving the iteration early (an
    error, Ctrl-C, `close`) stops the thread and closes `items`.
    """
    queue: Queue[Any] = Queue(maxsize=depth)
    stopped = Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=_PATIENCE_S)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(item):
                    break
        # Whatever it is belongs to the thread that iterates.
        except BaseException as error:  # noqa: BLE001
            failure.append(error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
            put(_END)

    thread = Thread(target=work, name="ragst-prefetch", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            yield item
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()
