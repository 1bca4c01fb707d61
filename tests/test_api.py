"""What every public function promises: names, types, and a docstring that tells all of it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import ragst_sd as rg
from ragst_sd._settings import Settings

REPOSITORY = Path(__file__).parents[1]
SUBMODULES = ("pp", "tl", "pl", "get", "io", "datasets")
PUBLIC = [f"{submodule}.{name}" for submodule in SUBMODULES for name in import_module(f"ragst_sd.{submodule}").__all__]
SECTIONS = ("Parameters", "Returns", "Raises", "Notes", "References", "Examples")

# Functions whose method others have published, or whose files others have defined.
PUBLISHED = {
    "pp.embed_tiles",
    "pp.tile_grid",
    "pp.harmonize_genes",
    "tl.fit",
    "tl.calibrate",
    "tl.add_cell_types",
    "tl.embed_genes",
    "tl.evaluate",
    "tl.cross_validate",
    "tl.evaluate_perturbation",
    "get.risk_coverage",
    "io.read_hest",
    "io.read_patches",
    "io.read_annotations",
    "io.write_geojson",
    "io.read_embeddings",
    "io.read_slide",
    "io.write_cell_eval",
}
# Functions that compute something: their docstring gives the formula.
COMPUTED = {
    "pp.use_features",
    "tl.fit",
    "tl.predict",
    "tl.calibrate",
    "tl.perturb",
    "tl.build_reference",
    "tl.build_perturbation_reference",
    "tl.add_cell_types",
    "tl.embed_genes",
    "tl.evaluate",
    "tl.evaluate_perturbation",
    "get.influence",
    "get.explain",
}
# What the checks of `_validate.py` raise.
CHECKS = {
    "require_key": "KeyError",
    "require_choice": "ValueError",
    "require_positive": "ValueError",
    "require_type": "TypeError",
    "require_sdata": "TypeError",
}


def function_of(name: str) -> Any:
    submodule, _, function = name.partition(".")
    return getattr(getattr(rg, submodule), function)


def sections_of(doc: str) -> dict[str, str]:
    """Sections of a numpy docstring by their titles; what comes before the first one is under ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def items_of(section: str) -> dict[str, str]:
    """Items of a section and their descriptions; items that share one line share the description."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.strip("\n").splitlines():
        if line[:1].strip():
            names = [part.strip() for part in line.split(",")]
            found |= dict.fromkeys(names, "")
        else:
            for name in names:
                found[name] += line.strip() + "\n"
    return found


def concepts() -> set[str]:
    """Names of arguments that the contributing guide lists."""
    text = (REPOSITORY / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = text.partition("## Names of arguments")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def own_errors(function: Any) -> set[str]:
    """Errors that the body of a function raises itself, or by a check of its arguments."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CHECKS:
            found.add(CHECKS[node.func.id])
    return found


def test_docstrings_are_read_as_they_are_written():
    sections = sections_of(
        """First line.

        Parameters
        ----------
        a, b
            Two things.
        c
            A third.

        Returns
        -------
        Nothing.
        """
    )
    assert list(sections) == ["", "Parameters", "Returns"]
    assert items_of(sections["Parameters"]) == {"a": "Two things.\n", "b": "Two things.\n", "c": "A third.\n"}


@pytest.mark.parametrize("name", PUBLIC)
class TestFunction:
    def test_sections(self, name):
        function = function_of(name)
        sections = sections_of(function.__doc__)
        assert set(sections) - {""} <= set(SECTIONS)
        assert [title for title in SECTIONS if title in sections] == [title for title in sections if title]
        parameters = inspect.signature(function).parameters
        needed = {"Returns", "Examples"} | ({"Parameters", "Raises"} if parameters else set())
        assert needed - set(sections) == set()
        summary = sections[""].strip().splitlines()[0]
        assert summary.endswith(".")
        assert len(summary) <= 120

    def test_every_argument_is_described_once_in_order(self, name):
        function = function_of(name)
        described = items_of(sections_of(function.__doc__).get("Parameters", ""))
        assert list(described) == list(inspect.signature(function).parameters)
        assert [argument for argument, text in described.items() if not text.strip()] == []

    def test_types_stand_in_the_signature_only(self, name):
        described = sections_of(function_of(name).__doc__).get("Parameters", "")
        titles = [line for line in described.splitlines() if line[:1].strip()]
        assert [title for title in titles if ":" in title or "(" in title] == []
        assert not re.search(r"\b(optional|default(s)? to|default: )", described, flags=re.IGNORECASE)

    def test_type_hints_are_there_and_say_something(self, name):
        signature = inspect.signature(function_of(name))
        hints = {argument: p.annotation for argument, p in signature.parameters.items()} | {
            "return": signature.return_annotation
        }
        assert [argument for argument, hint in hints.items() if hint is inspect.Parameter.empty] == []
        containers = ("list", "dict", "tuple", "Sequence", "Mapping", "Callable")
        assert [argument for argument, hint in hints.items() if str(hint) in containers] == []
        # A default of None stands in the type.
        assert [
            argument
            for argument, p in signature.parameters.items()
            if p.default is None and "None" not in str(p.annotation) and str(p.annotation) != "Any"
        ] == []

    def test_only_objects_go_by_position(self, name):
        parameters = inspect.signature(function_of(name)).parameters.values()
        positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 3
        assert [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)] == []
        # Options have defaults; what must be given by name is rare and has one name everywhere.
        required = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
        known = {
            "image_key",
            "use_rep",
            "embedding",
            "perturbations",
            "obs_names",
            "genes",
            "features",
            "path",
            "species",
        }
        assert required <= known

    def test_arguments_have_the_names_of_the_guide(self, name):
        assert set(inspect.signature(function_of(name)).parameters) - concepts() == set()

    def test_what_comes_back_is_described(self, name):
        function = function_of(name)
        text = sections_of(function.__doc__)["Returns"]
        hint = str(inspect.signature(function).return_annotation)
        assert "TODO" not in text
        if hint == "None":
            assert text.strip().startswith("`None`")
        if "DataFrame" in hint:
            assert len(re.findall(r'`"?\w+"?`', text)) >= 2
        if "inplace" in inspect.signature(function).parameters and "None" in hint:
            assert "`inplace=False`" in text

    def test_errors_are_listed(self, name):
        function = function_of(name)
        text = sections_of(function.__doc__).get("Raises", "")
        listed = items_of(text)
        assert own_errors(function) - set(listed) == set()
        assert [error for error, why in listed.items() if not why.strip()] == []

    def test_source_and_formula(self, name):
        doc = function_of(name).__doc__
        if name in PUBLISHED:
            assert re.search(r"https?://|doi:10\.|\(\d{4}\)", doc)
        if name in COMPUTED:
            assert ":math:" in doc or "math::" in doc

    def test_example(self, name):
        example = sections_of(function_of(name).__doc__)["Examples"]
        assert re.search(rf">>> .*\brg\.{re.escape(name)}\(", example) or re.search(
            rf"\.\.\. .*\brg\.{re.escape(name)}\(", example
        )
        assert "+SKIP" not in example
        assert ">>> import ragst_sd as rg" in example or "ragst_sd as rg" in example


def test_every_public_name_is_in_the_reference_of_the_documentation():
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*((?:pp|tl|pl|get|io|datasets)\.\w+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)
    assert "ragst_sd._settings.Settings" in text


def test_table_of_names_holds_no_name_that_nothing_has():
    used = {argument for name in PUBLIC for argument in inspect.signature(function_of(name)).parameters}
    assert concepts() - used - {"metric"} == set()


def test_settings_are_described():
    described = items_of(sections_of(Settings.__doc__)["Attributes"])
    assert list(described) == list(Settings.__annotations__)
    for name in ("override", "reset"):
        method = getattr(Settings, name)
        sections = sections_of(method.__doc__)
        given = [argument for argument in inspect.signature(method).parameters if argument != "self"]
        assert list(items_of(sections.get("Parameters", ""))) == given
