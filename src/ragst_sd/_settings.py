"""Settings for a session: what a call uses for `device`, `batch_size` or `progress` when it is not told."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ragst_sd._validate import hint, listing, require_positive, require_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

T = TypeVar("T")

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class _Setting(Generic[T]):
    """A validated attribute: the value set, else the environment variable, else the default."""

    def __init__(self, check: Callable[[Any], T], parse: Callable[[str], Any], default: Callable[[], T]) -> None:
        self.check, self.parse, self.default = check, parse, default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.variable = f"RAGST_SD_{name.upper()}"

    @overload
    def __get__(self, instance: None, owner: type) -> _Setting[T]: ...

    @overload
    def __get__(self, instance: Settings, owner: type) -> T: ...

    def __get__(self, instance: Settings | None, owner: type) -> _Setting[T] | T:
        if instance is None:
            return self
        if self.name in instance._values:
            return instance._values[self.name]
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default()
        try:
            return self.check(self.parse(text))
        except (TypeError, ValueError) as error:
            msg = f"Environment variable {self.variable} is {text!r}: {error}"
            raise ValueError(msg) from None

    def __set__(self, instance: Settings, value: Any) -> None:
        instance._values[self.name] = self.check(value)


def _check_device(value: Any) -> str | None:
    if value is None:
        return None
    device = str(value)
    if not re.fullmatch(r"[a-z]+(:\d+)?", device):
        msg = (
            f"`device` is {value!r}; it must be None or the name of a torch device, such as 'cpu', 'cuda' or 'cuda:1'."
        )
        raise ValueError(msg)
    return device


def _parse_device(text: str) -> str | None:
    return None if text.lower() in {"none", "auto"} else text


def _check_batch_size(value: Any) -> int:
    require_positive(value, "batch_size", whole=True)
    return int(value)


def _check_progress(value: Any) -> bool:
    require_type(value, bool, "progress")
    return value


def _parse_progress(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        msg = f"it must be one of {listing(sorted(_TRUE | _FALSE))}."
        raise ValueError(msg)
    return text.lower() in _TRUE


def _check_cache_dir(value: Any) -> Path:
    require_type(value, (str, Path), "cache_dir")
    return Path(value).expanduser()


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ragst_sd"


class Settings:
    """Defaults for arguments that a call leaves out.

    Each can also be given by an environment variable, `RAGST_SD_<NAME>`, which is read when the value is needed; a value
    set in Python wins over it.

    Attributes
    ----------
    device
        Torch device on which encoders and fits run (`RAGST_SD_DEVICE`). `None`, the default, takes a GPU where there is
        one and else the CPU.
    batch_size
        Tiles encoded at once (`RAGST_SD_BATCH_SIZE`); 64 by default.
    progress
        Show progress bars (`RAGST_SD_PROGRESS`); true by default.
    cache_dir
        Folder for files that may be deleted at any time (`RAGST_SD_CACHE_DIR`); by default `ragst_sd` in the user's
        cache folder. It is created when something is first put there. Weights of encoders are not kept here but in
        the cache of the Hugging Face hub.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> with rg.settings.override(progress=False, batch_size=16):
    ...     rg.settings.batch_size
    16
    """

    __slots__ = ("_values",)
    _values: dict[str, Any]

    device = _Setting(_check_device, _parse_device, lambda: None)
    batch_size = _Setting(_check_batch_size, int, lambda: 64)
    progress = _Setting(_check_progress, _parse_progress, lambda: True)
    cache_dir = _Setting(_check_cache_dir, Path, _default_cache_dir)

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})

    def __setattr__(self, name: str, value: Any) -> None:
        names = self._names()
        if name not in names:
            msg = f"There is no setting {name!r}. Available: {listing(names)}.{hint(name, names)}"
            raise AttributeError(msg)
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names())
        return f"Settings({values})"

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Use other values inside a `with` block.

        Parameters
        ----------
        values
            Settings by name. If one of them is refused, none is changed.

        Returns
        -------
        A context manager that restores all settings on leaving the block.
        """
        before = dict(self._values)
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            object.__setattr__(self, "_values", before)

    def reset(self) -> None:
        """Forget the values set in Python: environment variables and defaults count again."""
        self._values.clear()

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name, value in vars(cls).items() if isinstance(value, _Setting)]


settings = Settings()


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The torch device to use: the one given, else the setting, else a GPU where there is one, else the CPU."""
    from ragst_sd.image.amp import resolve_device as resolve

    return resolve(settings.device if device is None else device)
