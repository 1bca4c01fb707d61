"""The worked examples of the contributing guide, followed to the letter: a gate and a method, each in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ragst_sd as rg
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import CitingOptions, choice
from ragst_sd.retrieval.rag import RagOptions

GUIDE = Path(__file__).parents[1] / "docs" / "contributing.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="no documentation beside the tests")


def example(heading: str) -> str:
    section = GUIDE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return code


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
