"""`benchmarks/replogle_nadig.py` on made cells in the layout of the public file."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

LINES = ("hepg2", "k562")
KEYS = {"perturbation": "gene", "context": "cell_line", "batch": "gem_group"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two lines, two programmes of three genes each; a line responds to all of them with a factor of its own."""
    generator = np.random.default_rng(0)
    base = generator.uniform(1, 4, 230)
    programme = [generator.normal(size=230) * (generator.random(230) < 0.2) for _ in range(2)]
    counts, rows = [], []
    for c, line in enumerate(LINES):
        own = base * np.exp(0.3 * generator.normal(size=230))
        for name in ["non-targeting", *[f"G{i}" for i in range(6)]]:
            for i in range(160 if name == "non-targeting" else 24):
                effect = 0 if name == "non-targeting" else programme[int(name[1]) // 3] * (1 + 0.2 * c)
                counts.append(generator.poisson(own * np.exp(effect)))
                rows.append((name, line, 1 + i % 2))
    obs = pd.DataFrame(rows, columns=["gene", "cell_line", "gem_group"], index=[f"c{i}" for i in range(len(rows))])
    adata = ad.AnnData(csr_matrix(np.asarray(counts, dtype="float32")), obs=obs)
    adata.var_names = [f"GENE{i}" for i in range(230)]
    path = tmp_path_factory.mktemp("made") / "replogle.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def embedding():
    vectors = {f"G{i}": [1.0, 0.05 * i] if i < 3 else [-1.0, 0.05 * i] for i in range(6)}
    return pd.DataFrame(vectors).T


def test_cells_are_drawn_by_line_and_perturbation(script, file):
    cells = script.read_cells(file, keys=KEYS, control="non-targeting", max_cells=12, rng=0)
    counts = cells.obs.groupby(["context", "perturbation"]).size()
    assert set(counts.xs("control", level="perturbation")) == {120} and set(counts.drop("control", level=1)) == {12}
    assert set(cells.obs["perturbation_type"]) == {"control", "CRISPRi"}
    with pytest.raises(KeyError, match="--perturbation-key"):
        script.read_cells(file, keys=KEYS | {"batch": "lane"}, control="non-targeting", max_cells=12, rng=0)
    with pytest.raises(ValueError, match="--control"):
        script.read_cells(file, keys=KEYS, control="NT", max_cells=12, rng=0)


@pytest.mark.slow
def test_both_protocols(script, file, embedding):
    cells = script.read_cells(file, keys=KEYS, control="non-targeting", max_cells=24, rng=0)
    methods = ["mean", "same_perturbation", "knn"]
    few = script.run(cells, embedding, "cell_type", methods, n_genes=220, few_shot=0.34)
    # each line is held out, a third of its perturbations is seen
    assert set(few["fold"]) == set(LINES)
    for line in LINES:
        held = few[(few["fold"] == line) & (few["method"] == "knn")]
        assert set(held["context"]) == {line} and held["perturbation"].nunique() == 4
    unseen = script.run(cells, embedding, "perturbation", methods, n_genes=220, n_folds=2)
    held = unseen[unseen["method"] == "knn"].groupby("fold")["perturbation"].unique()
    assert sorted(name for names in held for name in names) == [f"G{i}" for i in range(6)]
    # its response elsewhere is held out too
    assert "same_perturbation" not in set(unseen["method"])
    scores = pd.concat([few, unseen])
    means = scores[scores["metric"] == "pearson_delta"].groupby(["protocol", "method"])["value"].mean()
    assert means["cell_type", "same_perturbation"] > 0.7
    assert means["perturbation", "knn"] > means["perturbation", "mean"] + 0.2
    text = script.summary_table(scores)
    assert "| cell_type | all | 8 | same_perturbation | " in text and "| perturbation | all | 12 | knn | " in text


def test_genes_are_chosen_from_controls(script, file):
    cells = script.read_cells(file, keys=KEYS, control="non-targeting", max_cells=24, rng=0)
    genes = script.variable_genes(cells, 50)
    perturbed = (cells.obs["perturbation"] != "control").to_numpy()
    changed = cells.copy()
    changed.X[np.flatnonzero(perturbed)] = 0
    assert script.variable_genes(changed, 50) == genes and len(genes) == 50
