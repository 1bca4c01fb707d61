"""The worked examples of the contributing guide, followed to the letter: each change touches the places that it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ragst_sd as rg
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import CitingOptions, choice
from ragst_sd.retrieval.rag import RagOptions

from .datasets.catalog_schema import catalog_faults

GUIDE = Path(__file__).parents[1] / "docs" / "contributing.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="no documentation beside the tests")


def example(heading: str, language: str = "python") -> str:
    section = GUIDE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return code


def apply_diff(package: Path, diff: str) -> None:
    """Change files as a diff without line numbers says; what it changes must stand there once."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, flags=re.MULTILINE | re.DOTALL):
        lines = body.splitlines()
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        text = (package / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, (name, before)
        (package / name).write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the package with all examples that change its files."""
    home = tmp_path_factory.mktemp("changed")
    package = home / "ragst_sd"
    shutil.copytree(Path(rg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for heading in ("Add a field to predicted tables", "Add a metric"):
        apply_diff(package, example(heading, "diff"))
    for heading, language, name in (
        ("Add an encoder", "toml", "image/foundation_models.toml"),
        ("Add a data set", "yaml", "datasets/catalog.yaml"),
    ):
        with (package / name).open("a", encoding="utf-8") as file:
            file.write("\n" + example(heading, language))
    return home


CHANGED = """
import numpy as np
import ragst_sd as rg

sections = rg.datasets.synthetic(n_donors=3, n_spots=60, n_genes=210)
rg.pp.embed_tiles(sections)
query = sections.pop(next(iter(sections)))
reference = rg.tl.build_reference(sections, use_rep="X_texture")
rg.tl.fit(reference, method="ridge")
table = rg.tl.predict(query, reference, inplace=False)
np.testing.assert_allclose(table.layers["adjustment"], table.X - table.layers["evidence"], atol=1e-6)
stored = rg.tl.predict(query, reference, store="predicted.zarr", inplace=False)
np.testing.assert_allclose(np.asarray(stored.layers["adjustment"]), table.layers["adjustment"], atol=1e-6)
np.testing.assert_allclose(table.obs["mean_adjustment"], np.abs(table.layers["adjustment"]).mean(axis=1), rtol=1e-5)
np.testing.assert_array_equal(stored.obs["mean_adjustment"], table.obs["mean_adjustment"])
assert '`.layers["adjustment"]`' in rg.tl.predict.__doc__

rg.tl.predict(query, reference)
scores = rg.tl.evaluate(query, metrics=["median_error", "rmse"]).groupby("metric")["value"].mean()
assert 0 < scores["median_error"] < scores["rmse"]

from ragst_sd.image.registry import find_foundation_model

assert find_foundation_model("small-vit").width == 384
assert "mouse_heart" in rg.datasets.catalog().index
"""


@pytest.mark.slow
def test_changes_of_the_package(changed):
    """A field, a metric, an encoder and a data set, each added where the guide says and nowhere else."""
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(
        [sys.executable, "-c", CHANGED], cwd=changed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_data_set():
    assert not catalog_faults(yaml.safe_load(example("Add a data set", "yaml")))


def test_a_method(sections, reference, monkeypatch):
    # What is set here is taken back after the test, and with it what the example registers.
    monkeypatch.setitem(METHODS, "nearest", None)
    del METHODS["nearest"]
    names = {"np": np, "rg": rg, "cite": cite, "CitingOptions": CitingOptions, "Method": Method}
    exec(example("Add a method"), names)
    rg.tl.fit(reference, method="nearest", n_neighbors=5)
    query = sections["donor3"]
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    np.testing.assert_allclose(table.obs["effective_n"].dropna(), 1)
    spot, gene = table.obs_names[0], table.var_names[0]
    parts = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    assert abs(parts["contribution"].sum() - table[spot, gene].X.item()) < 1e-5


def test_a_gate(sections, reference, monkeypatch, quick):
    monkeypatch.setitem(GATES, "best_two", None)
    exec(example("Add a gate"), {"torch": torch, "GATES": GATES})
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 2.0, -torch.inf]])
    weights = GATES["best_two"](logits)
    np.testing.assert_allclose(weights.sum(dim=1), 1)
    assert float(weights[0, 1]) > float(weights[0, 0]) > 0

    # What the options say when they are imported after the gate was added.
    @dataclass(frozen=True)
    class Options(RagOptions):
        gate: str = choice("softmax", *GATES)

    monkeypatch.setitem(METHODS, "rag", replace(METHODS["rag"], options=Options))
    rg.tl.fit(reference, method="rag", n_neighbors=5, options=quick("rag") | {"gate": "best_two"}, progress=False)
    rg.tl.predict(sections["donor3"], reference)
    cited = sections["donor3"].tables["predicted"].obsm["retrieval_rows"] >= 0
    assert cited.any(axis=1).all()
