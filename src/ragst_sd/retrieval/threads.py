"""Threads: one for small steps, and for independent pieces side by side as many as the process may use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock, local
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class _Limit:
    """The limit of the whole process while calls in several threads overlap.

    Only the thread that set the limit of numpy's linear algebra can lift it, so the call that set it lifts it.
    """

    def __init__(self) -> None:
        self.lock, self.calls, self.n_threads = Lock(), 0, 1

    def enter(self) -> ExitStack:
        limits = ExitStack()
        with self.lock:
            if not self.calls:
                self.n_threads = torch.get_num_threads()
                with suppress(ImportError):
                    from threadpoolctl import threadpool_limits

                    limits.enter_context(threadpool_limits(1, user_api="blas"))
            self.calls += 1
        torch.set_num_threads(1)
        return limits

    def leave(self, limits: ExitStack) -> None:
        with self.lock:
            self.calls -= 1
            limits.close()
            torch.set_num_threads(self.n_threads)


# `inside`: whether this thread is inside the limit.
_THREAD, _LIMIT = local(), _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """Operators of torch and linear algebra of numpy run on one thread inside.

    Each step of a training is many products of small matrices. Threads that share one of them wait for one another,
    beside other programs for much longer than one thread takes. Sums then round alike whatever the number of threads.
    Users call the package from threads of their own, so that calls may overlap.
    """
    if getattr(_THREAD, "inside", False):
        yield
        return
    limits = _LIMIT.enter()
    _THREAD.inside = True
    try:
        yield
    finally:
        _THREAD.inside = False
        _LIMIT.leave(limits)


def n_threads() -> int:
    """Threads of torch (`OMP_NUM_THREADS`), and no more than the affinity and the cgroup of the process allow."""
    with suppress(ImportError):
        from joblib import cpu_count

        return max(1, min(torch.get_num_threads(), cpu_count()))
    return torch.get_num_threads()


def on_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function(item)` for each item, in their order. Numpy and compiled code let other threads run meanwhile."""
    return list(map(function, items) if len(items) <= 1 else side_by_side(function, items))


def _stay_inside() -> None:
    """A thread of the pool has the limit of the call that it works for."""
    _THREAD.inside = True
    torch.set_num_threads(1)


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the same one by one, with no more results computed ahead than there are threads."""
    number = n_threads()
    if number == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    # Each piece has one thread, so that no two share a product, inside as well.
    with one_thread(), ThreadPoolExecutor(number, initializer=_stay_inside) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
