"""Independent pieces of work side by side, on as many threads as the process may use."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


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
    number = min(n_threads(), len(items))
    if number <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(function, items))
