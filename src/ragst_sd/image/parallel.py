"""Work on many small tensors at once: one operator per core instead of all cores on one operator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_LOCK = Lock()


def map_single_threaded(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Apply `function` to every item, items side by side on as many threads as torch may use, in order.

    Small operators lose more by splitting than they gain, and badly so where other programs keep a core busy. With
    one thread per operator, sums also round alike whatever the number of threads.
    """
    # The number of threads is a setting of the process: two calls at once would restore each other's.
    with _LOCK:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if n_threads == 1 or len(items) == 1:
                return [function(item) for item in items]
            with ThreadPoolExecutor(min(n_threads, len(items))) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(n_threads)
