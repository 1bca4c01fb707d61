"""Threads: one for small steps, and for independent pieces side by side as many as the process may use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Operators of torch and linear algebra of numpy run on one thread inside.

    Each step of a training is many products of small matrices. Threads that share one of them wait for one another,
    beside other programs for much longer than one thread takes. Sums then round alike whatever the number of threads.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        limits = nullcontext()
    else:
        limits = threadpool_limits(1, user_api="blas")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with limits:
            yield
    finally:
        torch.set_num_threads(n_threads)


def n_threads() -> int:
    """Threads of torch (`OMP_NUM_THREADS`), and no more than the affinity and the cgroup of the process allow."""
    try:
        from joblib import cpu_count
    except ImportError:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    else:
        allowed = cpu_count()
    return max(1, min(torch.get_num_threads(), allowed))


def on_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function(item)` for each item, in their order. Numpy and compiled code let other threads run meanwhile."""
    return list(map(function, items) if len(items) <= 1 else side_by_side(function, items))


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what :func:`on_threads` gives, of which no more is made ahead than there are threads."""
    number = n_threads()
    if number == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    # Each piece has one thread, so that no two share a product, inside as well.
    with one_thread(), ThreadPoolExecutor(number) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
