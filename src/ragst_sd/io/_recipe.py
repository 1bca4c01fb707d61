"""What a recipe may say, as types, and the reader that holds a YAML file to them."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from ragst_sd._validate import hint, listing, message_of, require_type, require_unique
from ragst_sd.datasets._references import recipe_path
from ragst_sd.image.onnx_file import is_onnx_file

T = TypeVar("T")
Seed = NewType("Seed", int)
Steps = tuple[str | int, ...]

VERSION = 1


@dataclass(frozen=True)
class Place:
    """A field of a recipe, as an error message names it."""

    file: str = ""
    """Name of the file; empty for a recipe that was given as a mapping."""
    folder: Path = field(default_factory=Path.cwd)
    """What paths are relative to."""
    lines: Mapping[Steps, int] = field(default_factory=dict, repr=False)
    path: Steps = ()

    def __truediv__(self, step: str | int) -> Place:
        return replace(self, path=(*self.path, step))

    def __str__(self) -> str:
        name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        # A field that is missing has the line of the block that it should stand in.
        blocks = (self.path[:n] for n in range(len(self.path), -1, -1))
        line = next((f", line {self.lines[block]}" for block in blocks if block in self.lines), "")
        where = f"{self.file}{line}" if self.file else "recipe"
        return f"{where}: `{name}`" if name else where

    @contextmanager
    def named_in_errors(self, what: str = "") -> Iterator[None]:
        """Put the place in the recipe, followed by `what`, before the message of an error."""
        try:
            yield
        except (KeyError, ValueError, ConnectionError, FileNotFoundError, PermissionError) as error:
            raise type(error)(f"{self}{what}: {message_of(error)}") from error


# Readers of fields that their type alone does not describe; such a field names its reader as `metadata={"read": ...}`.
def _genes(value: Any, place: Place) -> list[str] | int:
    if isinstance(value, Mapping):
        return _block(MostVariable, value, place).most_variable
    if isinstance(value, list):
        # The content hash knows the order of genes; a recipe means the set.
        return sorted(set(_value(list[str], value, place)))
    raise _wrong(value, place, "a list of names, or `most_variable:` with a number", " Left out, all genes stay.")


def _mpp(value: Any, place: Place) -> float | None:
    return None if value == "native" else _value(float, value, place)


def _context(value: Any, place: Place) -> list[float]:
    read = _value(list[float], value, place)
    with place.named_in_errors():
        # Each one embeds all tiles again.
        require_unique(read, "numbers")
    return read


@dataclass(frozen=True)
class MostVariable:
    """How many of the most variable genes are kept."""

    most_variable: int


@dataclass(frozen=True)
class Filters:
    """Which spots are kept."""

    min_counts: float | None = None
    min_genes: int | None = None
    in_tissue: bool | None = None
    obs: dict[str, list[str]] | None = None
    """Column of `obs` -> values that are kept."""


@dataclass(frozen=True)
class Source:
    """One data set of the catalogue, or one folder of sections."""

    dataset: str | None = None
    folder: Path | None = None
    path: Path | None = None
    samples: list[str] | None = None
    prefix: str = ""
    donor: str | None = None
    donors: dict[str, str] = field(default_factory=dict)
    tissue: str | None = None
    technology: str | None = None
    license: str | None = None
    citation: str | None = None
    panel: str | None = None
    image_mpp: float | None = None
    um_between_centers: float | None = None
    bin_um: int | None = None
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class Model:
    """The encoder, as `rg.pp.embed_tiles` takes it."""

    model: str = "texture"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    amp: bool | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Tiles:
    """The tiles that are embedded, as `rg.pp.embed_tiles` takes them."""

    tile_px: int = 224
    mpp: float | None = field(default=0.5, metadata={"read": _mpp})
    context: list[float] | None = field(default=None, metadata={"read": _context})


@dataclass(frozen=True)
class Merging:
    """How sections become a reference, as `rg.tl.build_reference` takes it."""

    layer: str | None = None
    unit: Literal["counts", "log1p_cp10k"] = "counts"
    obs: list[str] = field(default_factory=list)
    standardize: bool = True
    thumbnails: bool = True
    harmonize: bool = False
    orthologues_to: Literal["human", "mouse"] | None = None


@dataclass(frozen=True)
class Fit:
    """What `rg.tl.fit` is called with."""

    method: str | None = None
    n_neighbors: int | None = None
    n_candidates: int | None = None
    metric: str | None = None
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a reference holds."""

    version: int
    sources: list[Source]
    name: str = ""
    published: str | None = None
    """Repository on the hub that holds the built reference."""
    filters: Filters = field(default_factory=Filters)
    encoder: Model = field(default_factory=Model)
    tiles: Tiles = field(default_factory=Tiles)
    genes: list[str] | int | None = field(default=None, metadata={"read": _genes})
    """Names, the number of most variable ones, or all."""
    reference: Merging = field(default_factory=Merging)
    fit: Fit | None = None
    seed: Seed = Seed(0)


def read_recipe(recipe: str | PathLike[str] | Mapping[str, Any]) -> tuple[Recipe, str, Place]:
    """A recipe, its text, and where it stands.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, or a field is unknown, missing, wrong or given twice; the message names file, line and field.
    """
    values, text, place = _load_text(recipe)
    read = _block(Recipe, values, place)
    if read.version != VERSION:
        raise ValueError(f"{place / 'version'} is {read.version}; this installation reads version {VERSION}.")
    where, model, kwargs = place / "encoder", read.encoder.model, read.encoder.model_kwargs
    if is_onnx_file(model):
        model = str(_value(Path, model, where / "model"))
    if "checkpoint_path" in kwargs:
        file = _value(Path, kwargs["checkpoint_path"], where / "model_kwargs" / "checkpoint_path")
        kwargs = {**kwargs, "checkpoint_path": str(file)}
    encoder = replace(read.encoder, model=model, model_kwargs=kwargs)
    sources = [_completed(source, read.filters, place / "sources" / i) for i, source in enumerate(read.sources)]
    name = read.name or Path(place.file).stem or "reference"
    return replace(read, name=name, sources=sources, encoder=encoder), text, place


def _completed(source: Source, common: Filters, place: Place) -> Source:
    """A source with the filters of the recipe where it has none; a `ValueError` if its fields exclude one another."""
    if (source.dataset is None) == (source.folder is None):
        raise ValueError(
            f"{place} must have either `dataset:` (a name of the catalogue) or `folder:` (of sections), and not both."
        )
    excluded = {
        "dataset": ("donor", "um_between_centers"),
        "folder": ("path", "bin_um"),
        "image_mpp": ("um_between_centers",),
    }
    for given, others in excluded.items():
        for name in others:
            if getattr(source, given) is not None and getattr(source, name) is not None:
                raise ValueError(f"{place / name} does not go with `{given}:`.")
    of_source = {name: value for name, value in vars(source.filters).items() if value is not None}
    return replace(source, filters=replace(common, **of_source))


def _load_text(recipe: str | PathLike[str] | Mapping[str, Any]) -> tuple[Any, str, Place]:
    require_type(recipe, (str, PathLike, Mapping), "recipe", "Pass the path of a YAML file, or a mapping.")

    if isinstance(recipe, Mapping):
        return recipe, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), Place()
    path = recipe_path(recipe)
    text = path.read_text(encoding="utf-8")
    lines: dict[Steps, int] = {}
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _note_lines(node, (), lines, path.name)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path.name}{line}: this is not YAML: {getattr(error, 'problem', None) or error}.") from error
    return values, text, Place(path.name, path.resolve().parent, lines)


def _note_lines(node: Any, at: Steps, lines: dict[Steps, int], file: str) -> None:
    """Note the line of every field."""
    lines.setdefault(at, node.start_mark.line + 1)
    if node.id == "sequence":
        for i, child in enumerate(node.value):
            _note_lines(child, (*at, i), lines, file)
    elif node.id == "mapping":
        for key, child in node.value:
            step = (*at, str(key.value))
            line = key.start_mark.line + 1
            if step in lines:
                # YAML would take the later one in silence.
                raise ValueError(
                    f"{Place(file, lines={step: line}, path=step)} stands here again; it is on line {lines[step]} "
                    "already."
                )
            lines[step] = line
            _note_lines(child, step, lines, file)


def _block(kind: type[T], value: Any, place: Place) -> T:
    """A block of a recipe as the dataclass that names its fields. A field without a value counts as left out."""
    known = {member.name: member for member in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise _wrong(value, place, f"a block of fields: {listing(known)}")
    for name in map(str, value):
        if name not in known:
            raise ValueError(f"{place / name}: there is no such field.{hint(name, known)} There are {listing(known)}.")
    types, given = get_type_hints(kind), {}
    for name, member in known.items():
        if value.get(name) is not None:
            read = member.metadata.get("read", partial(_value, types[name]))
            given[name] = read(value[name], place / name)
        elif member.default is MISSING and member.default_factory is MISSING:
            raise ValueError(f"{place / name} is missing.")
    return kind(**given)


# Whether a value is of a kind, and what the message asks for.
_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: isinstance(value, int) and value > 0, "a whole number above zero"),
    Seed: (lambda value: isinstance(value, int) and value >= 0, "a whole number, zero or more"),
    float: (lambda value: isinstance(value, int | float) and 0 < value < float("inf"), "a finite number above zero"),
    # Names may be whole numbers.
    str: (
        lambda value: isinstance(value, str | int) and bool(str(value).strip()),
        "text. Words such as yes, no, on and off need quotation marks",
    ),
}


def _value(kind: Any, value: Any, place: Place) -> Any:
    """A value of a recipe as the type that its field has."""
    outer, inner = get_origin(kind), get_args(kind)
    if type(None) in inner:
        return _value(next(member for member in inner if member is not type(None)), value, place)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _block(cast("type[Any]", kind), value, place)
    if kind is Path:
        return _path(_value(str, value, place), place)
    if outer in (list, tuple):
        if not isinstance(value, list | tuple):
            # One value stands for a list of one.
            return outer([_value(inner[0], value, place)])
        if not value:
            raise ValueError(f"{place} is empty.")
        return outer(_value(inner[0], member, place / i) for i, member in enumerate(value))
    if outer is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, place, "a mapping, one `name: value` per line")
        return {str(name): _value(inner[1], member, place / str(name)) for name, member in value.items()}
    if outer is Literal:
        if value not in inner:
            raise _wrong(value, place, f"one of {listing(inner)}", hint(str(value), inner))
        return value
    check, wanted = _PLAIN[kind]
    if isinstance(value, bool) != (kind is bool) or not check(value):
        raise _wrong(value, place, wanted)
    return str(value).strip() if kind is str else kind(value)


def _wrong(value: Any, place: Place, wanted: str, todo: str = "") -> ValueError:
    return ValueError(f"{place} is {reprlib.repr(value)}; it must be {wanted}.{todo}")


def _path(value: str, place: Place) -> Path:
    """A path with its environment variables filled in, relative to the recipe's folder."""
    path = os.path.expandvars(value)
    unset = re.search(r"\$\{?(\w+)", path)
    if unset is not None:
        raise ValueError(f"{place}: the environment variable {unset[1]} is not set.")
    return place.folder / Path(path).expanduser()
