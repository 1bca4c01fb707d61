"""Checks of the options of methods: each option means the same in every method that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.gate import GATES

if TYPE_CHECKING:
    from collections.abc import Mapping

_COUNTS = (
    "n_components",
    "n_latent",
    "n_train_genes",
    "n_seeds",
    "max_steps",
    "batch_size",
    "width",
    "rank",
    "layers",
    "heads",
    "set_size",
)
_COUNTS_OR_NONE = ("hidden", "gate_hidden", "adjustment_rank")
_POSITIVE = ("sharpness", "temperature", "learning_rate", "alpha")
_NOT_NEGATIVE = ("sparsity", "correlation", "weight_decay", "pseudobulk")
_CHOICES = {
    "gate": tuple(GATES),
    "scope": ("set", "cell"),
    "candidates": ("nearest", "random", "none"),
    "weighting": ("distance", "uniform"),
    "center_sections": (True, False),
    "cell_types": (True, False),
    "within_context": (True, False),
}


def resolve_options(
    methods: Mapping[str, Any], name: str, given: Mapping[str, Any] | None, *, available: str = "available"
) -> dict[str, Any]:
    """Defaults of the method with this name, one of `methods`, with the given options laid over them.

    Raises
    ------
    ValueError
        If the method or an option does not exist, or an option has a value that makes no sense.
    """
    if name not in methods:
        msg = f"`method` is {name!r}; {available}: {', '.join(map(repr, methods))}."
        raise ValueError(msg)
    defaults = methods[name].options
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        has = ", ".join(map(repr, defaults)) or "none"
        msg = f"Method {name!r} has no option {', '.join(map(repr, unknown))}; it has {has}."
        raise ValueError(msg)
    options = {**defaults, **(given or {})}
    for option, value in options.items():
        wanted = _complaint(name, option, value)
        if wanted:
            msg = f"`{option}` is {value!r}; for method {name!r} it must be {wanted}."
            raise ValueError(msg)
    return options


def _complaint(method: str, name: str, value: Any) -> str:
    """What the value should have been; empty if it is fine, or if only the method itself knows the option."""
    if name in _CHOICES:
        known = any(value is one or (isinstance(value, str) and value == one) for one in _CHOICES[name])
        return "" if known or isinstance(value, np.bool_) else f"one of {', '.join(map(repr, _CHOICES[name]))}"
    if name in ("alphas", "penalties", "sharpnesses"):
        array = np.atleast_1d(np.asarray(value))
        fine = array.size and np.issubdtype(array.dtype, np.number) and np.isfinite(array).all() and (array > 0).all()
        return "" if fine and np.ndim(value) == 1 else "a sequence of numbers above 0"
    if name in (*_COUNTS, *_COUNTS_OR_NONE):
        least = 1 if name in _COUNTS or method == "mlp" else 0
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return "" if whole and value >= least else f"a whole number, at least {least}"
    if name not in (*_POSITIVE, *_NOT_NEGATIVE, "dropout"):
        return ""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not np.isfinite(value):
        return "a number"
    if name == "dropout":
        return "" if 0 <= value < 1 else "at least 0 and below 1"
    if name in _POSITIVE:
        return "" if value > 0 else "above 0"
    return "" if value >= 0 else "at least 0"
