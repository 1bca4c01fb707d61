"""Advice that can be followed: an argument that a message names is one of the function that was called."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import ragst_sd

ROOT = Path(ragst_sd.__file__).parent
PUBLIC = {
    f"{part}.{name}": getattr(importlib.import_module(f"ragst_sd.{part}"), name)
    for part in ("pp", "tl", "pl", "get", "io", "datasets")
    for name in importlib.import_module(f"ragst_sd.{part}").__all__
}
# Messages that a function calls for, in the code, and never reaches.
FRAME = "tables and predictions name their coordinate system themselves"
# A recipe holds arguments of these calls under their names.
RECIPE = {"io.build_recipe": {"model", "model_kwargs", "password", "tile_px"}}
FITTED = "a fit whose blocks are too small holds out sections, and logs its margin for debugging only"
NEVER = {
    ("_elements.shared_coordinate_system", "coordinate_system"): FRAME,
    ("image.hub.LOCAL_ADVICE", "model_kwargs"): "what is no encoder comes with an advice of its own",
    ("retrieval.run._candidates", "backend"): "only who asks for a graph is told that it does not go",
    ("_truth.truth_table", "truth"): "pictures take a SpatialData only",
    ("tl._folds._margin", "margin_um"): FITTED,
    ("tl._folds.block_folds", "split"): FITTED,
    ("tl._response_table._NO_GENES", "genes"): "a table to compare with is read for the genes of the prediction",
}


class Part(NamedTuple):
    """A function or class of a module: what it refers to, and the words in it, without docstrings."""

    refers: set[tuple[str, str]]
    words: str


@cache
def parts():
    """All functions and classes at the top of a module, and strings that stand there under a name."""
    found = {}
    for file in ROOT.rglob("*.py"):
        tree, module = ast.parse(file.read_text("utf-8")), ".".join(file.relative_to(ROOT).with_suffix("").parts)
        known = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ragst_sd."):
                owner = node.module.removeprefix("ragst_sd.")
                known |= {alias.asname or alias.name: (owner, alias.name) for alias in node.names}
        top = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                top[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                top[node.targets[0].id] = node
        known |= {name: (module, name) for name in top}
        for name, node in top.items():
            inner = list(ast.walk(node))
            docs = {id(one.value) for one in inner if isinstance(one, ast.Expr)}
            strings = [x.value for x in inner if isinstance(x, ast.Constant) and id(x) not in docs]
            hints = {id(x) for one in inner for hint in _hints(one) for x in ast.walk(hint)}
            names = {one.id for one in inner if isinstance(one, ast.Name) and id(one) not in hints}
            refers = {known[used] for used in names if used in known}
            found[module, name] = Part(refers, "\x00".join(one for one in strings if isinstance(one, str)))
    return found


def _hints(node):
    """Types in a signature, of which nothing is called."""
    return [hint for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)) if hint is not None]


def reached(function):
    """What a public function refers to, and what that refers to, without other public functions."""
    start = (function.__module__.removeprefix("ragst_sd."), function.__name__)
    others = {(one.__module__.removeprefix("ragst_sd."), one.__name__) for one in PUBLIC.values()} - {start}
    seen, todo = set(), [start]
    while todo:
        one = todo.pop()
        if one in parts() and one not in seen | others:
            seen.add(one)
            todo += parts()[one].refers
    return seen


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_in_messages_are_those_of_the_function(name):
    arguments = {*inspect.signature(PUBLIC[name]).parameters, *RECIPE.get(name, ())}
    for module, part in reached(PUBLIC[name]):
        for argument in re.findall(r"`([a-z_]+)=", parts()[module, part].words):
            if (f"{module}.{part}", argument) not in NEVER:
                assert argument in arguments, f"`{argument}=` in {module}.{part}, which `rg.{name}` may say"


def test_calls_in_messages_have_their_arguments():
    calls = re.findall(r"`rg\.(\w+\.\w+)\(([^`]*)\)", " ".join(part.words for part in parts().values()))
    assert len(calls) > 20
    for name, arguments in calls:
        known = inspect.signature(PUBLIC[name]).parameters
        assert set(re.findall(r"(\w+)=", arguments)) <= set(known), (name, arguments)


def test_exceptions_are_still_said():
    for place, argument in NEVER:
        module, _, part = place.rpartition(".")
        assert f"`{argument}=" in parts()[module, part].words
