"""Settings for a session: what a call uses for `device`, `batch_size` or `progress` when it is not told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd._validate import hint, listing, require_positive, require_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


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


# How a value is checked, how the text of its environment variable is read, and what it is by default.
_SETTINGS: dict[str, tuple[Callable[[Any], Any], Callable[[str], Any], Callable[[], Any]]] = {
    "device": (_check_device, _parse_device, lambda: None),
    "batch_size": (_check_batch_size, int, lambda: 64),
    "progress": (_check_progress, _parse_progress, lambda: True),
    "cache_dir": (_check_cache_dir, Path, _default_cache_dir),
}


class Settings:
    """Defaults for arguments that a call leaves out.

    Each can also be given by an environment variable, `RAGST_SD_<NAME>`, which is read when the value is needed; a
    value set in Python wins over it.

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

    device: str | None
    batch_size: int
    progress: bool
    cache_dir: Path

    def __getattr__(self, name: str) -> Any:
        # Only what was not set in Python is looked for here.
        check, parse, default = self._functions(name)
        variable = f"RAGST_SD_{name.upper()}"
        text = os.environ.get(variable, "").strip()
        if not text:
            return default()
        try:
            return check(parse(text))
        except (TypeError, ValueError) as error:
            msg = f"Environment variable {variable} is {text!r}: {error}"
            raise ValueError(msg) from None

    def __setattr__(self, name: str, value: Any) -> None:
        check, _, _ = self._functions(name)
        super().__setattr__(name, check(value))

    @staticmethod
    def _functions(name: str) -> tuple[Callable[[Any], Any], Callable[[str], Any], Callable[[], Any]]:
        if name not in _SETTINGS:
            msg = f"There is no setting {name!r}. Available: {listing(_SETTINGS)}.{hint(name, _SETTINGS)}"
            raise AttributeError(msg)
        return _SETTINGS[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_SETTINGS]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in _SETTINGS)
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
        before = dict(vars(self))
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            self.reset()
            vars(self).update(before)

    def reset(self) -> None:
        """Forget the values set in Python: environment variables and defaults count again."""
        vars(self).clear()


settings = Settings()


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The torch device to use: the one given, else the setting, else a GPU where there is one, else the CPU."""
    from ragst_sd.image.amp import resolve_device as resolve

    return resolve(settings.device if device is None else device)
