"""Threads are lent and given back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.texture import map_single_threaded  # noqa: E402


def test_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail(item: int) -> int:
        msg = f"item {item}"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="item 0"):
        map_single_threaded(fail, [0, 1, 2])
    assert torch.get_num_threads() == before
    assert map_single_threaded(lambda i: i * i, list(range(20))) == [i * i for i in range(20)]
    try:
        torch.set_num_threads(2)
        assert map_single_threaded(lambda _: torch.get_num_threads(), list(range(4))) == [1] * 4
    finally:
        torch.set_num_threads(before)
