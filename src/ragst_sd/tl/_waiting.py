"""How long a call takes: said before it starts where that is over a minute, and while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

# Seconds per row of a fit on two cores, at 1,536 features: `python benchmarks/seconds.py --only fit`.
_PER_ROW = {"rag": 3.5e-3, "random_rag": 3.5e-3, "mlp": 4e-3}
_PER_ROW_OF_OTHERS = 1e-3
_LONG = 60.0


def expected_seconds(methods: Iterable[str], n_rows: int) -> float:
    """About how long fits of these methods on so many rows take together."""
    return sum(_PER_ROW.get(method, _PER_ROW_OF_OTHERS) * n_rows for method in methods)


def in_words(seconds: float) -> str:
    """A length of time, as roughly as it is known."""
    if seconds < 60:
        return f"{max(1, round(seconds)):d} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say_if_long(seconds: float, doing: str, quicker: str) -> None:
    """Say how long something will take, and what is quicker, where it is over a minute."""
    if seconds > _LONG:
        logger.warning("%s will take about %s. %s", doing, in_words(seconds), quicker)


@contextmanager
def in_parts(total: int, *, show: bool) -> Iterator[Callable[[str], None]]:
    """A function to call before each part of a call: it says what is done now, and how much time is left."""
    start, numbers = time.monotonic(), count()
    with tqdm(total=total, bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}", disable=not show) as bar:

        def begin(what: str) -> None:
            done = next(numbers)
            bar.update(done - bar.n)
            left = f", about {in_words((time.monotonic() - start) / done * (total - done))} left" if done else ""
            bar.set_description_str(f"{what}{left}")
            logger.info("%s%s.", what, left)

        yield begin
        bar.update(total - bar.n)
