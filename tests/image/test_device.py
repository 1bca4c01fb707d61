"""Where a model runs and in which precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image import device as devices  # noqa: E402


@pytest.mark.parametrize(("major", "fast"), [(7, False), (8, True), (9, True)])
def test_cuda_gains_from_ampere_on(monkeypatch, major, fast) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert devices.resolve_amp(torch.device("cuda"), amp=None) is fast
    assert devices.resolve_amp(torch.device("cuda"), amp=not fast) is (not fast)


@pytest.mark.parametrize("found", [(False, False), (True, False), (False, True)])
def test_cpu_gains_from_avx512_bf16_or_amx(monkeypatch, found) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: found[0], raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: found[1], raising=False)
    assert devices.resolve_amp(torch.device("cpu"), amp=None) is any(found)


def test_cpu_is_taken_for_slow_where_torch_does_not_say(monkeypatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, None, raising=False)
    assert not devices.has_fast_bfloat16(torch.device("cpu"))


def test_other_devices_stay_in_float32() -> None:
    assert not devices.has_fast_bfloat16(torch.device("meta"))


def test_device_by_default(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.resolve_device().type == "cpu"
