from __future__ import annotations

import pathlib

import pytest

import ragst_sd as rg
from ragst_sd._settings import Settings, resolve_device


@pytest.fixture
def settings(monkeypatch):
    for name in ("DEVICE", "BATCH_SIZE", "PROGRESS", "CACHE_DIR"):
        monkeypatch.delenv(f"RAGST_SD_{name}", raising=False)
    return Settings()


def test_defaults(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert settings.device is None
    assert settings.batch_size == 64
    assert settings.progress is True
    assert settings.cache_dir == tmp_path / "ragst_sd"
    assert not settings.cache_dir.exists()


def test_the_package_has_one_object():
    from ragst_sd._settings import settings

    assert rg.settings is settings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("device", "cuda:1", "cuda:1"),
        ("device", "none", None),
        ("batch_size", "8", 8),
        ("progress", "0", False),
        ("progress", "Yes", True),
        ("cache_dir", "/some/where", pathlib.Path("/some/where")),
    ],
)
def test_environment_variables_count_and_a_set_value_wins(settings, monkeypatch, name, text, value):
    default = getattr(settings, name)
    monkeypatch.setenv(f"RAGST_SD_{name.upper()}", text)
    assert getattr(settings, name) == value
    setattr(settings, name, default)
    assert getattr(settings, name) == default
    settings.reset()
    assert getattr(settings, name) == value


def test_an_empty_environment_variable_is_none_at_all(settings, monkeypatch):
    monkeypatch.setenv("RAGST_SD_BATCH_SIZE", "")
    assert settings.batch_size == 64


@pytest.mark.parametrize(
    ("name", "text"), [("BATCH_SIZE", "many"), ("BATCH_SIZE", "0"), ("PROGRESS", "perhaps"), ("DEVICE", "gpu 1")]
)
def test_errors_name_the_environment_variable(settings, monkeypatch, name, text):
    monkeypatch.setenv(f"RAGST_SD_{name}", text)
    with pytest.raises(ValueError, match=f"RAGST_SD_{name} is '{text}'"):
        getattr(settings, name.lower())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("batch_size", 0, ValueError),
        ("batch_size", 2.5, ValueError),
        ("batch_size", "16", ValueError),
        ("progress", 1, TypeError),
        ("cache_dir", 3, TypeError),
        ("device", "GPU", ValueError),
        ("device", 0, ValueError),
    ],
)
def test_bad_values_are_refused_and_leave_the_setting_alone(settings, name, value, error):
    before = getattr(settings, name)
    with pytest.raises(error, match=f"`{name}`"):
        setattr(settings, name, value)
    assert getattr(settings, name) == before


def test_unknown_settings_are_refused_with_a_hint(settings):
    with pytest.raises(AttributeError, match=r"'batchsize'.*Did you mean 'batch_size'"):
        settings.batchsize = 3


def test_override_restores_also_after_an_error(settings):
    def fail_inside():
        with settings.override(batch_size=5, progress=False) as inner, settings.override(batch_size=7):
            assert inner is settings
            assert (settings.batch_size, settings.progress) == (7, False)
            settings.device = "cpu"
            msg = "inside"
            raise KeyError(msg)

    settings.batch_size = 3
    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert (settings.batch_size, settings.progress, settings.device) == (3, True, None)


def test_override_changes_nothing_if_one_value_is_refused(settings):
    with pytest.raises(ValueError, match="`batch_size`"), settings.override(progress=False, batch_size=-1):
        pass
    assert settings.progress is True


def test_home_is_expanded_and_the_repr_shows_every_setting(settings):
    settings.cache_dir = "~/somewhere"
    assert settings.cache_dir == pathlib.Path.home() / "somewhere"
    assert repr(settings).startswith("Settings(device=None, batch_size=64, progress=True, cache_dir=")


def test_resolve_device_prefers_the_argument_then_the_setting():
    import torch

    from ragst_sd.image.device import resolve_device as image_device

    with rg.settings.override(device="meta"):
        assert resolve_device() == torch.device("meta")
        assert resolve_device("cpu") == torch.device("cpu")
        assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    with rg.settings.override(device=None):
        assert resolve_device() == image_device(None)
