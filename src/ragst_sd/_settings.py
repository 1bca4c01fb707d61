"""Settings for a session: what a call uses for `device`, `batch_size` or `progress` when it is not told."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd._validate import hint, listing, require_choice, require_positive, require_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_DEFAULTS: dict[str, Any] = {"device": None, "batch_size": 64, "progress": True, "cache_dir": None}


def _checked(name: str, value: Any) -> Any:
    """The value of a setting in the type that is kept; an error if it cannot be one."""
    if name == "batch_size":
        require_positive(value, name, whole=True)
        return int(value)
    if name == "progress":
        require_type(value, bool, name)
        return value
    if name == "cache_dir":
        require_type(value, (str, Path), name)
        return Path(value).expanduser()
    if value is not None and not re.fullmatch(r"[a-z]+(:\d+)?", str(value)):
        raise ValueError(
            f"`device` is {value!r}; it must be None or the name of a torch device, such as 'cpu', 'cuda' or 'cuda:1'."
        )
    return None if value is None else str(value)


def _parsed(name: str, text: str) -> Any:
    """What the text of an environment variable means."""
    if name == "progress":
        require_choice(text.lower(), sorted(_TRUE | _FALSE), name)
        return text.lower() in _TRUE
    if name == "device" and text.lower() in {"none", "auto"}:
        return None
    return int(text) if name == "batch_size" else text


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
        self._require(name)
        variable = f"RAGST_SD_{name.upper()}"
        text = os.environ.get(variable, "").strip()
        if not text and name == "cache_dir":
            return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ragst_sd"
        try:
            return _checked(name, _parsed(name, text)) if text else _DEFAULTS[name]
        except (TypeError, ValueError) as error:
            raise ValueError(f"Environment variable {variable} is {text!r}: {error}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        super().__setattr__(name, _checked(name, value))

    @staticmethod
    def _require(name: str) -> None:
        if name not in _DEFAULTS:
            raise AttributeError(
                f"There is no setting {name!r}. Available: {listing(_DEFAULTS)}.{hint(name, _DEFAULTS)}"
            )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_DEFAULTS]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in _DEFAULTS)
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
    from ragst_sd.image.device import resolve_device as resolve

    return resolve(settings.device if device is None else device)
