"""No page names a function or an argument that does not exist: the README, the documentation, and what assistants read."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import ragst_sd as rg

ROOT = Path(__file__).parents[1]
SUBMODULES = ("pp", "tl", "pl", "get", "io", "datasets")
PUBLIC = [f"{submodule}.{name}" for submodule in SUBMODULES for name in import_module(f"ragst_sd.{submodule}").__all__]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "docs" / "llms.txt"]
    if not {"generated", "_build", "tutorials"} & set(path.relative_to(ROOT).parts)
)
LLMS = ROOT / "docs" / "llms.txt"

pytestmark = pytest.mark.skipif(not LLMS.exists(), reason="no documentation beside the tests")


def blocks_of(text: str) -> list[str]:
    """Python code of a page, block by block, without prompts of doctest and outputs."""
    found = re.findall(
        r"^( *)```(?:python|\{code-block\} python)[^\n]*\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL
    )
    return [textwrap.dedent(code) for _, code in found]


def call_faults(tree: ast.AST) -> list[str]:
    """What is wrong with the calls of `rg.<submodule>.<function>` in some code."""
    faults = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match = re.fullmatch(r"rg\.(\w+)\.(\w+)", ast.unparse(node.func))
        if match is None or match[1] == "settings":
            continue
        if f"{match[1]}.{match[2]}" not in PUBLIC:
            faults.append(f"{match[0]} does not exist")
            continue
        signature = inspect.signature(getattr(getattr(rg, match[1]), match[2]))
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            continue
        given = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
        try:
            # `...` stands for what a page leaves out.
            positional = [argument for argument in node.args if ast.unparse(argument) != "..."]
            complete = len(positional) == len(node.args) and len(given) == len(node.keywords)
            (signature.bind if complete else signature.bind_partial)(*positional, **given)
        except TypeError as error:
            faults.append(f"{ast.unparse(node)}: {error}")
    return faults


def test_faults_are_found():
    code = """
    rg.tl.predct(query)
    rg.tl.predict(query, reference, "X_texture")
    rg.tl.predict(query)
    rg.tl.predict(query, reference, n_neighbours=3)
    rg.tl.predict(query, reference, n_neighbors=3)
    rg.tl.predict(query, ...)
    """
    faults = call_faults(ast.parse(textwrap.dedent(code)))
    assert len(faults) == 4
    assert blocks_of("```python\na\n```\n\n  ```python\n  b\n  ```\n```bash\nc\n```\n") == ["a\n", "b\n"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "llms.txt":
        # Its wrong calls are shown as such.
        text = text.partition("## Wrong, and right")[0]
    faults = []
    for code in blocks_of(text):
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            faults.append(f"{error}: {code}")
            continue
        faults += call_faults(tree)
    # Names in running text.
    for submodule, name in re.findall(r"\brg\.(\w+)\.(\w+)", text):
        if submodule in SUBMODULES and f"{submodule}.{name}" not in PUBLIC and not name.startswith("_"):
            faults.append(f"rg.{submodule}.{name} does not exist")
        if submodule == "settings" and name not in dir(rg.settings):
            faults.append(f"rg.settings.{name} does not exist")
    assert sorted(set(faults)) == []


def test_assistants_are_told_every_function_as_it_is():
    text = LLMS.read_text(encoding="utf-8").partition("## All functions")[2]
    told = dict(re.findall(r"^- `rg\.(\w+\.\w+)(\(.*\) -> .*)`$", text, flags=re.MULTILINE))
    again = "Run `python tools/make_llms.py`."
    assert sorted(told) == sorted(PUBLIC), again
    for name, written in told.items():
        arguments = ast.parse(f"def function{written}: ...").body[0].args
        given = {argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]}
        submodule, _, function = name.partition(".")
        signature = inspect.signature(getattr(getattr(rg, submodule), function))
        assert given <= set(signature.parameters), f"{name}. {again}"
        positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [argument.arg for argument in arguments.args] == positional, f"{name}. {again}"


def test_pages_that_messages_lead_to_are_there():
    headings = {
        line.lstrip("#").strip()
        for path in (ROOT / "docs").rglob("*.md")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }
    sources = [path.read_text(encoding="utf-8") for path in Path(rg.__file__).parent.rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"See `([^`{]+)` in the documentation", text)}
    assert {"Resolution of an image", "Outputs and key naming", "Gated models"} <= named
    assert named - headings == set()


def test_errors_of_the_first_minutes_lead_to_a_page(query, fitted):
    from ragst_sd.image.hub import hub_errors

    query.attrs.clear()
    for call in (rg.pp.embed_tiles, rg.pp.tile_grid):
        with pytest.raises(ValueError, match="See `Resolution of an image` in the documentation"):
            call(query, image_key="he")
    with pytest.raises(KeyError, match="See `Outputs and key naming` in the documentation"):
        rg.pp.embed_tiles(query, image_key="HE")
    with pytest.raises(KeyError, match="See `Outputs and key naming` in the documentation"):
        rg.get.neighbors(query)

    class GatedRepoError(OSError):
        """As the hub names it."""

    with pytest.raises(PermissionError, match="See `Gated models` in the documentation"), hub_errors("owner/model"):
        raise GatedRepoError
