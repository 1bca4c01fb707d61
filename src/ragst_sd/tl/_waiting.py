"""How long a call takes: said before it starts where that is over a minute, and while it runs."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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


class Parts:
    """Parts of a call that are done one after the other."""

    def __init__(self, total: int, *, show: bool) -> None:
        from tqdm.auto import tqdm

        self._total, self._done, self._start = total, 0, time.monotonic()
        self._bar = tqdm(total=total, bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}", disable=not show)

    def start(self, what: str) -> None:
        """Say what is done now, and after the first part how much time is left."""
        left = ""
        if self._done:
            left = (
                f", about {in_words((time.monotonic() - self._start) / self._done * (self._total - self._done))} left"
            )
        self._bar.set_description_str(f"{what}{left}")
        logger.info("%s%s.", what, left)

    def finish(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.update()

    def close(self) -> None:
        """Take the bar down."""
        self._bar.close()


@contextmanager
def in_parts(total: int, *, show: bool) -> Iterator[Parts]:
    """Count parts of a call, with a bar where one is to be shown."""
    parts = Parts(total, show=show)
    try:
        yield parts
    finally:
        parts.close()
