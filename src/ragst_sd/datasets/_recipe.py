"""A recipe: what it may say, and what holds where it says nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd.datasets._recipe_place import (
    Place,
    by_name,
    fields_of,
    flag,
    one_of,
    positive,
    read_text,
    seed,
    several,
    text,
    whole,
)
from ragst_sd.reference.normalize import UNITS
from ragst_sd.reference.symbols import SPECIES

if TYPE_CHECKING:
    from os import PathLike

VERSION = 1
# What `rg.tl.build_reference(sources=...)` takes.
DETAILS = ("tissue", "technology", "license", "citation", "panel")
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")
_FOLDER_ONLY = ("donor", "um_between_centers")
_DATASET_ONLY = ("path", "bin_um")


@dataclass(frozen=True)
class Filters:
    """Which spots are kept."""

    min_counts: float | None = None
    min_genes: int | None = None
    in_tissue: bool = False
    obs: Mapping[str, list[str]] = field(default_factory=dict)
    """Column of `obs` -> values that are kept."""


@dataclass(frozen=True)
class Source:
    """One data set of the catalogue, or one folder of sections."""

    place: Place
    dataset: str | None
    folder: Path | None
    samples: list[str] | None
    filters: Filters
    prefix: str = ""
    donor: str | None = None
    donors: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    image_mpp: float | None = None
    um_between_centers: float | None = None
    path: Path | None = None
    bin_um: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a reference holds."""

    name: str
    sources: tuple[Source, ...]
    encoder: Mapping[str, Any]
    tiles: Mapping[str, Any]
    reference: Mapping[str, Any]
    genes: list[str] | int | None
    """Names, the number of most variable ones, or all."""
    fit: Mapping[str, Any] | None
    seed: int
    text: str
    """The recipe as it was given."""
    place: Place


_NATIVE = "native"


def _mpp(value: Any, place: Place) -> float | None:
    return None if value == _NATIVE else positive(value, place)


_TILES = {"tile_px": whole, "mpp": _mpp, "context": several(positive)}
_REFERENCE = {
    "layer": text,
    "unit": one_of(*UNITS),
    "obs": several(text),
    "standardize": flag,
    "thumbnails": flag,
    "harmonize": flag,
    "orthologues_to": one_of(*SPECIES),
}
_FILTERS = {"min_counts": positive, "min_genes": whole, "in_tissue": flag, "obs": by_name(several(text))}
_FIT = {"method": text, "n_neighbors": whole, "n_candidates": whole, "metric": text, "options": lambda value, _: value}


def read_recipe(recipe: str | PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Read and check a recipe.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a field is unknown, missing or wrong; the message names file, line and field.
    """
    given, values, place, folder = read_text(recipe)

    def expanded(value: Any, where: Place) -> Path:
        return _path(text(value, where), where, folder)

    def model_kwargs(value: Any, where: Place) -> dict[str, Any]:
        arguments = by_name(lambda one, _: one)(value, where)
        name = "checkpoint_path"
        return arguments | ({name: str(expanded(arguments[name], where / name))} if name in arguments else {})

    numbers = several(positive)
    known_encoder = {
        "model": text,
        "model_kwargs": model_kwargs,
        "mean": numbers,
        "std": numbers,
        "amp": flag,
        "batch_size": whole,
    }
    found = fields_of(
        values,
        place,
        {
            "version": lambda value, where: value,
            "name": text,
            "sources": lambda value, where: value,
            "filters": lambda value, where: fields_of(value, where, _FILTERS),
            "encoder": lambda value, where: fields_of(value, where, known_encoder),
            "tiles": lambda value, where: fields_of(value, where, _TILES),
            "genes": _genes,
            "reference": lambda value, where: fields_of(value, where, _REFERENCE),
            "fit": lambda value, where: fields_of(value, where, _FIT),
            "seed": seed,
        },
        required=("version", "sources"),
    )
    if found["version"] != VERSION:
        msg = f"{place / 'version'} is {found['version']!r}; this installation reads recipes of version {VERSION}."
        raise ValueError(msg)
    return Recipe(
        name=found.get("name", Path(place.file).stem or "reference"),
        sources=_sources(found["sources"], place / "sources", found.get("filters", {}), expanded),
        encoder={"model": "texture", "batch_size": 64} | found.get("encoder", {}),
        tiles={"tile_px": 224, "mpp": 0.5} | found.get("tiles", {}),
        reference={"unit": UNITS[0], "standardize": True, "thumbnails": True, "harmonize": False}
        | found.get("reference", {}),
        genes=found.get("genes"),
        fit=found.get("fit"),
        seed=found.get("seed", 0),
        text=given,
        place=place,
    )


def filters_as_plain(filters: Filters) -> dict[str, Any]:
    """Filters as numbers, texts and lists, for hashes."""
    return {**asdict(filters), "obs": {name: sorted(values) for name, values in filters.obs.items()}}


def _sources(value: Any, place: Place, common: Mapping[str, Any], expanded: Any) -> tuple[Source, ...]:
    if not isinstance(value, list) or not value:
        msg = f"{place} must be a list of at least one source, each with `dataset:` or `folder:`."
        raise ValueError(msg)
    known = {
        "dataset": text,
        "folder": expanded,
        "path": expanded,
        "samples": several(text),
        "prefix": text,
        "donor": text,
        "donors": by_name(text),
        **dict.fromkeys(DETAILS, text),
        "image_mpp": positive,
        "um_between_centers": positive,
        "bin_um": whole,
        "filters": lambda one, where: fields_of(one, where, _FILTERS),
    }
    sources = []
    for i, one in enumerate(value):
        where = place / i
        given = fields_of(one, where, known)
        if ("dataset" in given) == ("folder" in given):
            msg = f"{where} must have either `dataset:` (a name of the catalogue) or `folder:` (of sections), and not both."
            raise ValueError(msg)
        for name in _FOLDER_ONLY if "dataset" in given else _DATASET_ONLY:
            if name in given:
                kind = "dataset" if "dataset" in given else "folder"
                msg = f"{where / name} does not go with `{kind}:`."
                raise ValueError(msg)
        sources.append(
            Source(
                place=where,
                dataset=given.get("dataset"),
                folder=given.get("folder"),
                samples=given.get("samples"),
                filters=Filters(**{**common, **given.get("filters", {})}),
                prefix=given.get("prefix", ""),
                donor=given.get("donor"),
                donors=given.get("donors", {}),
                details={name: given[name] for name in DETAILS if name in given},
                image_mpp=given.get("image_mpp"),
                um_between_centers=given.get("um_between_centers"),
                path=given.get("path"),
                bin_um=given.get("bin_um"),
            )
        )
    return tuple(sources)


def _genes(value: Any, place: Place) -> list[str] | int:
    if isinstance(value, Mapping):
        return fields_of(value, place, {"most_variable": whole}, required=("most_variable",))["most_variable"]
    if isinstance(value, list):
        return several(text)(value, place)
    msg = f"{place} is {value!r}; it must be a list of names, or `most_variable:` with a number. Left out, all genes stay."
    raise ValueError(msg)


def _path(value: str, place: Place, folder: Path) -> Path:
    """A path with its environment variables filled in, relative to the recipe's folder."""

    def variable(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            msg = f"{place}: the environment variable {name} is not set."
            raise ValueError(msg)
        return os.environ[name]

    return folder / Path(_VARIABLE.sub(variable, value)).expanduser()
