"""A recipe's text: its values, and the line on which each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ragst_sd._validate import hint, listing, require_type


@dataclass(frozen=True)
class Place:
    """A field of a recipe, as an error message names it."""

    file: str
    """Name of the file; empty for a recipe that was given as a mapping."""
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict, repr=False)
    path: tuple[str | int, ...] = ()

    def __truediv__(self, step: str | int) -> Place:
        return replace(self, path=(*self.path, step))

    def __str__(self) -> str:
        name = ""
        for step in self.path:
            name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
        # A field that is missing is looked for where it should stand.
        known = next((self.path[:n] for n in range(len(self.path), -1, -1) if self.path[:n] in self.lines), None)
        line = f", line {self.lines[known]}" if known is not None else ""
        where = f"{self.file}{line}" if self.file else "recipe"
        return f"{where}: `{name}`" if name else where


def read_text(recipe: str | PathLike[str] | Mapping[str, Any]) -> tuple[str, Any, Place, Path]:
    """A recipe as text, its values, its place, and the folder that its paths are relative to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, or a field stands in it twice.
    """
    require_type(recipe, (str, PathLike, Mapping), "recipe", "Pass the path of a YAML file, or a mapping.")
    import yaml

    if isinstance(recipe, Mapping):
        return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), recipe, Place(""), Path.cwd()

    path = Path(recipe).expanduser()
    if not path.is_file():
        msg = f"{path} does not exist or is no file. Pass the path of a recipe, a YAML file."
        raise FileNotFoundError(msg)
    written = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(written, yaml.SafeLoader)
        lines: dict[tuple[str | int, ...], int] = {}
        if node is not None:
            _note_lines(node, (), lines, path.name)
        values = yaml.safe_load(written)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        msg = f"{path.name}{line}: this is not YAML: {getattr(error, 'problem', None) or error}."
        raise ValueError(msg) from error
    return written, values, Place(path.name, lines), path.resolve().parent


def _note_lines(node: Any, at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], file: str) -> None:
    import yaml

    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _note_lines(child, (*at, i), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            step = (*at, str(key.value))
            if step in lines:
                # YAML would take the later one in silence.
                msg = f"{Place(file, {step: key.start_mark.line + 1}, step)} stands here again; it is on line {lines[step]} already."
                raise ValueError(msg)
            lines[step] = key.start_mark.line + 1
            _note_lines(child, step, lines, file)


def fields_of(value: Any, place: Place, known: Mapping[str, Any], *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a block, each checked by the function that `known` names for it."""
    if not isinstance(value, Mapping):
        msg = f"{place} is {_shown(value)}; it must be a block of fields: {listing(known)}."
        raise ValueError(msg)
    for name in value:
        if name not in known:
            where = place / str(name)
            msg = f"{where}: there is no such field.{hint(str(name), known)} It may be one of {listing(known)}."
            raise ValueError(msg)
    for name in required:
        if value.get(name) is None:
            msg = f"{place / name} is missing."
            raise ValueError(msg)
    return {name: check(value[name], place / name) for name, check in known.items() if value.get(name) is not None}


def text(value: Any, place: Place) -> str:
    """A name or a sentence; whole numbers, which names may be, are taken as they are written."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        msg = f"{place} is {_shown(value)}; it must be text. Words such as yes, no, on and off need quotation marks."
        raise ValueError(msg)
    return str(value).strip()


def flag(value: Any, place: Place) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        msg = f"{place} is {_shown(value)}; it must be true or false."
        raise ValueError(msg)
    return value


def positive(value: Any, place: Place) -> float:
    """A finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        msg = f"{place} is {_shown(value)}; it must be a finite number above zero."
        raise ValueError(msg)
    return float(value)


def whole(value: Any, place: Place) -> int:
    """A whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{place} is {_shown(value)}; it must be a whole number above zero."
        raise ValueError(msg)
    return value


def seed(value: Any, place: Place) -> int:
    """A whole number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"{place} is {_shown(value)}; it must be a whole number, zero or more."
        raise ValueError(msg)
    return value


def one_of(*choices: str) -> Any:
    """Check of a word among several."""

    def check(value: Any, place: Place) -> str:
        if value not in choices:
            msg = f"{place} is {_shown(value)}; it must be one of {listing(choices)}.{hint(str(value), choices)}"
            raise ValueError(msg)
        return str(value)

    return check


def several(check: Any) -> Any:
    """Check of a list, or of one value that stands for a list of one; nothing may be in it twice."""

    def check_all(value: Any, place: Place) -> list[Any]:
        members = list(value) if isinstance(value, list | tuple) else [value]
        found = [
            check(member, place / i if isinstance(value, list | tuple) else place) for i, member in enumerate(members)
        ]
        twice = [one for i, one in enumerate(found) if one in found[:i]]
        if not found or twice:
            msg = f"{place} names {_shown(twice[0])} twice." if twice else f"{place} is empty."
            raise ValueError(msg)
        return found

    return check_all


def by_name(check: Any) -> Any:
    """Check of a mapping from names to values."""

    def check_all(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            msg = f"{place} is {_shown(value)}; it must be a mapping, one `name: value` per line."
            raise ValueError(msg)
        return {text(name, place / str(name)): check(one, place / str(name)) for name, one in value.items()}

    return check_all


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
