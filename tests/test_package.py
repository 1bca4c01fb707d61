"""Rules that hold for the package as a whole."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import ragst_sd as rg

ROOT = Path(rg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
RIM = ("pp", "tl", "pl", "get", "io", "datasets")
CORE = ("image", "retrieval", "reference")
PUBLIC = [(name, function) for name in RIM for function in import_module(f"ragst_sd.{name}").__all__]

# objects that come first and may be given by position
DATA_ARGUMENTS = {
    "sdata",
    "sdatas",
    "data",
    "adata",
    "reference",
    "references",
    "adata_sc",
    "gmt",
    "counts",
    "patches",
    "image",
    "path",
    "name",
    "scores",
    "recipe",
    "repository",
}

LIGHT = ["torch", "timm", "spatialdata", "matplotlib", "anndata", "scanpy", "squidpy", "pandas", "scipy", "sklearn"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path, *, typing: bool = True) -> set[str]:
    """Full names of the modules (and names in them) that a file imports, anywhere in it, for its types only or not."""
    blocks = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.If)]
    of_types = [block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" and not typing]
    skipped = {node for block in of_types for node in ast.walk(block)}
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in set(ast.walk(tree_of(path))) - skipped:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def violations(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    prefixes = tuple(f"ragst_sd.{name}" for name in forbidden)
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == folder
        for name in sorted(imports_of(path))
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    ]


def python(code: str) -> str:
    """Standard output of a fresh interpreter that finds this package first."""
    path = os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_are_read_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "ragst_sd")
    file = tmp_path / "ragst_sd" / "image" / "tiles.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import ragst_sd.tl as t\ndef f():\n    from ..pp import a\n    from ragst_sd import get\n    from . import b\n"
    )
    assert imports_of(file) >= {"ragst_sd.tl", "ragst_sd.pp", "ragst_sd.pp.a", "ragst_sd.get", "ragst_sd.image.b"}
    other = file.with_name("stain.py")
    other.write_text("import ragst_sd.tl\nif TYPE_CHECKING:\n    from ragst_sd import get\n")
    assert imports_of(other) - imports_of(other, typing=False) >= {"ragst_sd.get"}


@pytest.mark.parametrize("core", CORE)
def test_core_never_imports_the_rim(core):
    assert any(path.relative_to(ROOT).parts[0] == core for path in FILES)
    assert violations(core, RIM) == []


def test_image_and_retrieval_never_import_each_other():
    assert violations("image", ("retrieval", "reference")) == []
    assert violations("retrieval", ("image", "reference")) == []


def test_results_are_read_and_drawn_without_tl():
    assert violations("get", ("tl",)) == violations("pl", ("tl",)) == []


@pytest.mark.parametrize("core", CORE)
def test_core_imports_in_one_direction(core):
    """A method knows neither the table of methods nor the runner, which know it."""
    paths = {module_name(path): path for path in FILES if path.relative_to(ROOT).parts[0] == core}
    graph = {name: (imports_of(path, typing=False) & set(paths)) - {name} for name, path in paths.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(paths)


def test_what_all_share_imports_no_step_of_the_analysis():
    shared = [path for path in FILES if path.parent == ROOT and path.name != "__init__.py"]
    found = {
        path.name for path in shared for name in imports_of(path) if name.split(".")[1:2] in (["tl"], ["get"], ["pl"])
    }
    assert found == set()


def test_tools_never_import_what_reads_their_results():
    assert violations("tl", ("get",)) == []


def test_a_reference_is_opened_in_one_place():
    """Only there does an AnnData become a bank; the core makes banks of arrays."""
    calls = [(path, node) for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    makers = {path.relative_to(ROOT) for path, node in calls if ast.unparse(node.func).split(".")[-1] == "Bank"}
    assert {path.as_posix() for path in makers if path.parts[0] != "retrieval"} == {"_bank.py"}


def test_core_knows_no_spatialdata():
    heavy = {"spatialdata", "spatialdata_io", "squidpy", "scanpy", "geopandas", "matplotlib"}
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] in CORE
        for name in imports_of(path)
        if name.split(".")[0] in heavy
    ]
    assert found == []


def test_no_file_is_long():
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_nothing_is_pickled():
    forbidden = {f"{module}.{name}" for module in ("pickle", "joblib") for name in ("load", "loads", "dump", "dumps")}
    found = []
    for path in FILES:
        used = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        used |= imports_of(path)
        found += [f"{path.relative_to(ROOT)}: {name}" for name in used & forbidden]
        names = {name.split(".")[0] for name in imports_of(path)}
        found += [f"{path.relative_to(ROOT)}: {name}" for name in names & {"cloudpickle", "dill", "shelve", "marshal"}]
    assert found == []


def test_top_level_is_light():
    out = python(f"import sys, ragst_sd; ragst_sd.settings; print([m for m in {LIGHT} if m in sys.modules])")
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", RIM)
def test_submodules_are_light_until_a_function_is_used(name):
    out = python(f"import sys, ragst_sd as rg; dir(rg.{name}); print([m for m in {LIGHT} if m in sys.modules])")
    assert out.strip() == "[]"


def test_top_level_names():
    assert {*RIM, "settings", "__version__"} <= set(dir(rg))
    assert not {name for name in dir(rg) if not name.startswith("__")} - {*RIM, "settings"}
    assert set(rg.__all__) == {*RIM, "settings", "__version__"}
    assert rg.__version__[0].isdigit()


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'ragst_sd' has no attribute 'tool'"):
        rg.tool  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'ragst_sd\.tl' has no attribute 'predct'"):
        rg.tl.predct  # noqa: B018


def test_core_runs_where_only_numpy_and_torch_are_installed():
    modules = [module_name(path) for path in FILES if path.relative_to(ROOT).parts[0] in ("image", "retrieval")]
    out = python(f"""
import sys, sysconfig
from importlib.machinery import PathFinder

import torch  # with all that it needs itself

allowed = {{*sys.stdlib_module_names, "ragst_sd", "torch", "numpy"}} | {{name.split(".")[0] for name in sys.modules}}

class OnlyNumpyAndTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

# torch itself looks for optional packages; what this process holds already must not help ours
for name in [name for name in sys.modules if name.split(".")[0] in {LIGHT[1:]!r}]:
    del sys.modules[name]
allowed -= set({LIGHT[1:]!r})
sys.meta_path.insert(0, OnlyNumpyAndTorch)

import importlib
for blocked in {LIGHT[1:]!r}:
    try:
        importlib.import_module(blocked)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{blocked}} was not blocked")
for name in {modules!r}:
    importlib.import_module(name)
    print(name)
""")
    assert out.split() == modules


@pytest.mark.parametrize(("submodule", "name"), PUBLIC, ids=[".".join(item) for item in PUBLIC])
class TestPublicFunctions:
    def test_lives_in_its_own_private_file(self, submodule, name):
        function = getattr(getattr(rg, submodule), name)
        assert function.__module__ == f"ragst_sd.{submodule}._{name}"
        assert name in dir(getattr(rg, submodule))

    def test_data_come_first_and_all_else_is_keyword_only(self, submodule, name):
        parameters = inspect.signature(getattr(getattr(rg, submodule), name)).parameters.values()
        positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        # What is registered is an object too, and no choice among names.
        registered = {"method"} if name == "register_method" else set()
        assert set(positional) <= DATA_ARGUMENTS | registered

    def test_is_annotated(self, submodule, name):
        signature = inspect.signature(getattr(getattr(rg, submodule), name))
        bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
        assert bare == []
        assert signature.return_annotation is not inspect.Signature.empty

    def test_docstring_documents_every_parameter(self, submodule, name):
        function = getattr(getattr(rg, submodule), name)
        doc = inspect.getdoc(function) or ""
        assert len(doc) > 80
        if inspect.signature(function).return_annotation not in (None, "None"):
            assert "Returns\n-------" in doc
        section = doc.partition("Parameters\n----------\n")[2].partition("\n---")[0]
        listed = {word.strip() for line in section.splitlines() if line[:1].strip() for word in line.split(",")}
        assert set(inspect.signature(function).parameters) - listed == set()
