"""Exports that are imported on first use, so that the top level stays light (SPEC 1)."""

from __future__ import annotations

import re
import sys
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any

from ragst_sd._renamed import place_of, with_advice_on_names

if TYPE_CHECKING:
    from collections.abc import Callable


def lazy_functions(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package: the functions that its `__init__.pyi` imports.

    Function `name` lives in the private module `_name`.
    """
    stub = (resources.files(package) / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r" as (\w+)$", stub, flags=re.MULTILINE)

    def load(name: str) -> Any:
        module = import_module(f"{package}._{name}")
        function = with_advice_on_names(getattr(module, name), f"{package.partition('.')[2]}.{name}")
        # Where a pickle looks for it.
        setattr(module, name, function)
        return function

    return names, *lazy_attributes(package, dict.fromkeys(names, load))


def lazy_attributes(
    package: str, loaders: dict[str, Callable[[str], Any]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; every name is loaded once and then kept in the package."""

    def __getattr__(name: str) -> Any:
        if name not in loaders:
            msg = f"module {package!r} has no attribute {name!r}"
            place = "" if name.startswith("_") else place_of(package, name)
            raise AttributeError(f"{msg}: it is `{place}`" if place else msg, name=name, obj=sys.modules[package])
        value = loaders[name](name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({name for name in vars(sys.modules[package]) if name.startswith("__")} | loaders.keys())

    return __getattr__, __dir__
