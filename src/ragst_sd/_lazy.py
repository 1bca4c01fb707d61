"""Exports that are imported on first use, so that the top level stays light (SPEC 1)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def lazy_functions(
    package: str, names: Sequence[str], *, moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose function `name` lives in its private module `_name`.

    `moved` names, for functions that the package had in an earlier release, where they are now.
    """

    def load(name: str) -> Any:
        return getattr(import_module(f"{package}._{name}"), name)

    return lazy_attributes(package, dict.fromkeys(names, load), moved=moved)


def lazy_attributes(
    package: str, loaders: dict[str, Callable[[str], Any]], *, moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; every name is loaded once and then kept in the package."""

    def __getattr__(name: str) -> Any:
        if name not in loaders:
            msg = f"module {package!r} has no attribute {name!r}"
            place = (moved or {}).get(name)
            raise AttributeError(f"{msg}: it is now `{place}`" if place else msg, name=name, obj=sys.modules[package])
        value = loaders[name](name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({name for name in vars(sys.modules[package]) if name.startswith("__")} | loaders.keys())

    return __getattr__, __dir__
