"""Options of methods: the fields of a dataclass, each of which knows what its values may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np


def _option(default: Any, wanted: str, fine: Callable[[Any], bool]) -> Any:
    """A field with its default, and what a value has to be."""
    return field(default=default, metadata={"complaint": lambda value: "" if fine(value) else wanted})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def count(default: int, least: int = 1) -> Any:
    """A whole number, at least `least`."""

    def fine(value: Any) -> bool:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)

    return _option(default, f"a whole number, at least {least}", fine)


def number(default: float, wanted: str, fine: Callable[[float], bool]) -> Any:
    """A number for which `fine` holds, in the words `wanted`."""
    return _option(default, wanted, lambda value: _is_number(value) and fine(value))


def positive(default: float) -> Any:
    """A number above 0."""
    return number(default, "a number above 0", lambda value: value > 0)


def not_negative(default: float) -> Any:
    """A number that is at least 0."""
    return number(default, "a number, at least 0", lambda value: value >= 0)


def share(default: float) -> Any:
    """A number from 0 to below 1."""
    return number(default, "a number, at least 0 and below 1", lambda value: 0 <= value < 1)


def numbers(default: tuple[float, ...]) -> Any:
    """A sequence of numbers above 0."""

    def fine(values: Any) -> bool:
        listed = list(values) if np.ndim(values) == 1 else []
        return bool(listed) and all(_is_number(value) and value > 0 for value in listed)

    return _option(default, "a sequence of numbers above 0", fine)


def choice(default: str, *allowed: str) -> Any:
    """One of some texts."""
    wanted = f"one of {', '.join(map(repr, allowed))}"
    return _option(default, wanted, lambda value: isinstance(value, str) and value in allowed)


def switch(*, default: bool) -> Any:
    """True or False."""
    return _option(default, "one of True, False", lambda value: isinstance(value, bool | np.bool_))


@dataclass(frozen=True)
class Options:
    """What every method of tissue has.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    """

    n_components: int = count(64)


@dataclass(frozen=True)
class CitingOptions(Options):
    """What every method of tissue that cites has.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    center_sections
        Take measured values relative to the mean of their section, and put them on the mean of the rows that may be
        used.
    """

    center_sections: bool = switch(default=True)


def resolve_options(
    methods: Mapping[str, Any], name: str, given: Mapping[str, Any] | None, *, available: str = "available"
) -> Any:
    """The options of the method with this name, one of `methods`: its defaults with the given ones laid over them.

    Raises
    ------
    ValueError
        If the method or an option does not exist, or an option has a value that makes no sense.
    """
    if name not in methods:
        raise ValueError(f"`method` is {name!r}; {available}: {', '.join(map(repr, methods))}.")
    known = {option.name: option for option in fields(methods[name].options)}
    unknown = sorted(set(given or {}) - set(known))
    if unknown:
        has = ", ".join(map(repr, known)) or "none"
        raise ValueError(f"Method {name!r} has no option {', '.join(map(repr, unknown))}; it has {has}.")
    options = dict(given or {})
    for option, value in options.items():
        complaint, default = known[option].metadata.get("complaint"), cast("Any", known[option].default)
        wanted = complaint(value) if complaint else ""
        if wanted:
            raise ValueError(f"`{option}` is {value!r}; for method {name!r} it must be {wanted}.")
        if complaint:
            # As Python's own, whatever kind of number was given.
            options[option] = tuple(map(float, value)) if isinstance(default, tuple) else type(default)(value)
    return methods[name].options(**options)
