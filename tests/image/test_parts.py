"""Iteration in a background thread: order, errors, and threads that end."""

from __future__ import annotations

import threading
import time

import pytest

from ragst_sd.image.parts import in_background


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ragst-prefetch")]


def test_items_come_in_order_from_another_thread():
    names = set()

    def items():
        for i in range(50):
            names.add(threading.current_thread().name)
            yield i

    assert list(in_background(items())) == list(range(50))
    assert names == {"ragst-prefetch_0"}
    assert running() == []


def test_only_so_many_are_made_ahead():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = in_background(items(), depth=2)
    next(ahead)
    patience = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4, "one that was taken, two that wait, one that has no room"
    ahead.close()
    assert len(made) <= 5
    assert running() == []


def test_an_error_comes_at_its_place():
    def items():
        yield 1
        msg = "broken chunk"
        raise OSError(msg)

    ahead = in_background(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="broken chunk"):
        next(ahead)
    assert running() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_early_closes_the_source(error):
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    def use():
        for _ in in_background(items()):
            raise error

    with pytest.raises(error):
        use()
    assert closed == [True]
    assert running() == []
