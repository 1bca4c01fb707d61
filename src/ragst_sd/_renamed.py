"""Names that functions and arguments had in earlier releases, or have in other packages, and what is said of them."""

from __future__ import annotations

import tomllib
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd._validate import hint, listing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SUBMODULES = ("datasets", "pp", "tl", "get", "pl", "io")

_NAMES = tomllib.loads(Path(__file__).with_name("_renamed.toml").read_text(encoding="utf-8"))
FUNCTIONS, ARGUMENTS = _NAMES["functions"], _NAMES["arguments"]


def place_of(package: str, name: str) -> str:
    """Where a function is that a package has not; empty if there is none of that name."""
    old = f"{package.partition('.')[2]}.{name}"
    places = (f"{part}.{name}" for part in SUBMODULES if name in import_module(f"ragst_sd.{part}").__all__)
    place = FUNCTIONS.get(old) or next(places, None)
    return f"rg.{place}" if place else ""


def with_advice_on_names(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function; a call with a name that it does not have gets an error that says the right one."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            msg = _misnamed(function, name, args, kwargs)
            if not msg:
                raise
            raise TypeError(msg) from None

    return call


def _misnamed(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What is wrong with the names in a call; empty if they are right."""
    from inspect import signature

    parameters = signature(function).parameters
    objects = [name for name, argument in parameters.items() if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    by_name = [name for name in parameters if name not in objects]
    parts, extra = [], args[len(objects) :]
    if extra:
        parts.append(f"`rg.{name}` takes {listing(objects)} by position, and {len(args)} were given")
        pairs = zip(by_name, extra, strict=False)
        meant = ", ".join(f"`{argument}={_shown(value)}`" for argument, value in pairs)
        parts[0] += f": write {meant}, or the name that is meant, of {listing(by_name)}." if meant else "."
    for given in kwargs.keys() - parameters.keys():
        new = ARGUMENTS.get(given)
        todo = f"it has {listing(parameters)}.{hint(given, parameters)}"
        if new in parameters:
            todo = f"write `{new}={_shown(kwargs[given])}`."
        parts.append(f"`rg.{name}` has no argument `{given}`: {todo}")
    return " ".join(parts)


def _shown(value: Any) -> str:
    """A value as it is written, if it is short."""
    return f'"{value}"' if isinstance(value, str) else repr(value) if isinstance(value, int | float) else "..."
