"""Checks of arguments, shared by all public functions: what was found, what is available, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_LISTED = 12


def listing(names: Iterable[Any]) -> str:
    """Names for an error message, shortened when there are many."""
    items = [str(name) for name in names]
    if not items:
        return "none"
    shown = ", ".join(repr(item) for item in items[:_LISTED])
    return shown if len(items) <= _LISTED else f"{shown}, ... ({len(items)} in all)"


def hint(name: str, names: Iterable[Any]) -> str:
    """A 'did you mean' clause, empty when nothing is close."""
    items = [str(item) for item in names]
    # Mouse and human symbols differ in case only, which counts as far in a comparison of letters.
    close = [item for item in items if item.lower() == str(name).lower()] or get_close_matches(str(name), items, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def require_key(key: str, container: Mapping[str, Any] | Iterable[str], where: str, todo: str = "") -> None:
    """Raise a `KeyError` that lists the available keys if `key` is not in `container`."""
    # anndata lists `.X` among the layers, under the name None.
    names = [name for name in container if name is not None]
    if key not in names:
        msg = f"Key {key!r} not found in `{where}`. Available: {listing(names)}.{hint(key, names)}"
        # What an object holds is a question of names, which one page answers.
        page = "See `Outputs and key naming` in the documentation." if where.startswith("sdata.") else ""
        raise KeyError(" ".join(part for part in (msg, todo, page) if part))


def require_some(values: Collection[Any], argument: str, todo: str = "Name at least one.") -> None:
    """Raise a `ValueError` if there is nothing in a list or mapping."""
    if not len(values):
        raise ValueError(f"`{argument}` is empty. {todo}")


def require_unique(names: Iterable[Any], what: str, todo: str = "Keep one of each.") -> None:
    """Raise a `ValueError` if a name comes more than once."""
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"{len(twice)} {what} are duplicated, for example {listing(twice[:3])}. {todo}")


def only_one(names: Collection[str], argument: str, what: str) -> str | None:
    """The only name, or `None` if there is none; a `ValueError` if there are several, of which `argument` says one."""
    if len(names) > 1:
        raise ValueError(f"`{argument}` is needed: {len(names)} {what}: {listing(names)}.")
    return next(iter(names), None)


def require_known(
    names: Iterable[str],
    available: Collection[Any],
    argument: str,
    lacking: str = " has",
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error if one of `names` is not `available`; `lacking` leads from the argument to the names."""
    known = {str(name) for name in available}
    missing = [name for name in names if name not in known]
    if missing:
        near = hint(missing[0], available)
        raise error(f"`{argument}`{lacking} {listing(missing)}; available: {listing(available)}.{near}")


def as_names(names: str | Iterable[Any]) -> list[str]:
    """One name or several, without repeats, in their order."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(str(name) for name in names))


def name_list(names: str | Iterable[Any], argument: str, *, most: int | None = None) -> list[str]:
    """One name or several, each once: at least one, and no more than there is place for."""
    require_type(names, (str, Iterable), argument, "Give a name or a list of names.")
    each = as_names(names)
    require_some(each, argument)
    if most is not None and len(each) > most:
        raise ValueError(
            f"`{argument}` names {listing(each)}; there is place for {most}. Call once for each of the others."
        )
    return each


def names_among(
    asked: str | Sequence[str],
    available: Collection[Any],
    argument: str,
    lacking: str = " has",
    error: type[Exception] = ValueError,
) -> list[str]:
    """The names asked for, without repeats: at least one, and all of them available."""
    names = name_list(asked, argument)
    require_known(names, available, argument, lacking, error)
    return names


def require_choice(value: Any, choices: Iterable[Any], argument: str) -> None:
    """Raise a `ValueError` if `value` is not one of `choices`."""
    options = list(choices)
    if value not in options:
        raise ValueError(f"`{argument}` is {value!r}; it must be one of {listing(options)}.{hint(str(value), options)}")


def require_positive(value: Any, argument: str, *, whole: bool = False, optional: bool = False) -> None:
    """Raise a `ValueError` unless `value` is a finite number above zero (whole if asked), or `None` if `optional`."""
    if optional and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0:
        value, number = value.item(), True
    if not number or not 0 < value < float("inf") or (whole and value != int(value)):
        kind = "a whole number" if whole else "a finite number"
        raise ValueError(f"`{argument}` is {value!r}; it must be {kind} above zero.")


def require_between(value: Any, low: float, high: float, argument: str, todo: str = "") -> None:
    """Raise a `ValueError` unless `value` is a number between two others, or one of them."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise ValueError(f"`{argument}` is {value!r}; it must be a number between {low} and {high}. {todo}".rstrip())


def as_seed(rng: Any) -> int:
    """The whole number that a header can record: `rng` itself, or one drawn from what numpy makes a generator of."""
    import numpy as np

    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return int(rng)
    try:
        if isinstance(rng, bool):
            raise TypeError
        return int(np.random.default_rng(rng).integers(2**32))
    except (TypeError, ValueError):
        raise ValueError(
            f"`rng` is {rng!r}; it must be a whole number, at least 0, a generator or seed sequence of numpy, or "
            "None for another draw at each call."
        ) from None


def require_type(value: Any, kind: type | tuple[type, ...], argument: str, todo: str = "") -> None:
    """Raise a `TypeError` naming what was found if `value` is not of `kind`."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(allowed.__name__ for allowed in kinds)
        raise TypeError(f"`{argument}` is a {type(value).__name__}; it must be {wanted}. {todo}".rstrip())


def message_of(error: BaseException) -> str:
    """What an error says, in one line."""
    # An error of the system has a number as its first argument.
    plain = isinstance(error, OSError) and error.errno is not None
    return " ".join(str(error if plain else (error.args or [error])[0]).split()) or type(error).__name__
