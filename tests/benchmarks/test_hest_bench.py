"""HEST-Bench's protocol on a small folder in its layout."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from ..io.slides import write_patches
from ..sections import mean_colour

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)

SAMPLES = ["A1", "B1", "C1"]


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("hest_bench")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three samples of three patients, each held out once; features beside their pictures."""
    folder = tmp_path_factory.mktemp("bench") / "DRAWN"
    (folder / "splits").mkdir(parents=True)
    (folder / "features").mkdir()
    rng = np.random.default_rng(0)
    for k, sample in enumerate(SAMPLES):
        write_patches(folder, sample, seed=k + 1, edge=8, meta={"patient": f"P{k}"}, enlarged=1)
        with h5py.File(folder / "patches" / f"{sample}.h5") as file:
            pictures, barcodes = file["img"][()].astype(float), file["barcode"][()]
        parts = pictures.reshape(len(pictures), 4, 14, 4, 14, 3).mean(axis=(2, 4)).reshape(len(pictures), -1)
        order = rng.permutation(len(parts))
        with h5py.File(folder / "features" / f"{sample}.h5", "w") as file:
            file["embeddings"], file["barcodes"] = parts[order].astype(np.float32), barcodes[order]
    table = ad.read_h5ad(folder / "st" / "A1.h5ad")
    genes = list(table.var_names[::30])
    (folder / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    for k, held in enumerate(SAMPLES):
        for name, samples in (("train", [s for s in SAMPLES if s != held]), ("test", [held])):
            paths = {"patches_path": "patches/{}.h5", "expr_path": "st/{}.h5ad"}
            listed = pd.DataFrame({"sample_id": samples})
            for column, path in paths.items():
                listed[column] = [path.format(sample) for sample in samples]
            listed.to_csv(folder / "splits" / f"{name}_{k}.csv", index=False)
    return folder


def by_hand(task, held):
    """The protocol in numpy, with features and counts read from the files themselves: the score of one fold."""
    genes = json.loads((task / "var_50genes.json").read_text())["genes"]
    x, y = {}, {}
    for sample in SAMPLES:
        with h5py.File(task / "features" / f"{sample}.h5") as file:
            x[sample] = file["embeddings"][()].astype(np.float64)
            names = [name.decode() for name in file["barcodes"][:, 0]]
        y[sample] = np.log1p(ad.read_h5ad(task / "st" / f"{sample}.h5ad")[names, genes].X.toarray())
    train = [sample for sample in SAMPLES if sample != held]
    x_train, y_train = (np.concatenate([part[sample] for sample in train]) for part in (x, y))
    scaler = StandardScaler().fit(x_train)
    pca = PCA(min(256, *x_train.shape), svd_solver="full").fit(scaler.transform(x_train))
    k_train, k_test = (pca.transform(scaler.transform(part)) for part in (x_train, x[held]))
    alpha = 100 / (k_train.shape[1] * len(genes))
    coefficients = np.linalg.solve(k_train.T @ k_train + alpha * np.eye(k_train.shape[1]), k_train.T @ y_train)
    predicted = k_test @ coefficients
    return np.mean([pearsonr(predicted[:, j], y[held][:, j])[0] for j in range(len(genes))])


def test_own_regression_is_the_protocol_step_by_step(bench, task):
    frame = bench.run(task, model="parts", methods=(), features=task / "features", mpp=2.0)
    own = frame[frame["target"] == "log1p counts"]
    assert own["method"].tolist() == ["hest_ridge"] * 3
    np.testing.assert_allclose(own["pearson"], [by_hand(task, held) for held in SAMPLES], atol=2e-3)


@pytest.mark.slow
def test_every_method_is_scored_on_both_targets(bench, task):
    frame = bench.run(task, model="parts", methods=("ridge", "knn"), features=task / "features", mpp=2.0)
    assert len(frame) == 3 * 2 * 3
    assert set(frame["target"]) == {"log1p counts", "log1p cp10k"}
    table = bench.summary(frame)
    assert list(table.index) == ["hest_ridge", "ridge", "knn"]
    # The tissue is drawn: its genes follow from its pictures, and methods that predict say so.
    assert (table["pearson"].loc[["ridge", "knn"]] > 0.5).all(axis=None)
    by_target = frame.pivot_table(index=["fold", "method"], columns="target", values="pearson")
    assert (by_target["log1p counts"] != by_target["log1p cp10k"]).all()


def test_pictures_are_embedded_where_no_features_are_given(bench, task):
    listed = bench.folds(task)[0][1]
    sections = bench.read_sections(task, listed, model=mean_colour, features=None, metadata=None, mpp=2.0)
    (sdata,) = sections.values()
    assert np.isfinite(sdata.tables["table"].obsm["X_bench"]).all()


def test_patients_of_the_metadata_are_donors(bench, task):
    path = task / "HEST.csv"
    pd.DataFrame({"id": SAMPLES, "dataset_title": "D", "patient": ["P1", "P1", "P2"]}).to_csv(path, index=False)
    listed = bench.folds(task)[0][0]
    sections = bench.read_sections(task, listed, model="parts", features=task / "features", metadata=path, mpp=2.0)
    assert {name: sdata.tables["table"].obs["donor"].iloc[0] for name, sdata in sections.items()} == {
        "B1": "D: P1",
        "C1": "D: P2",
    }


def test_another_folder(bench, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no train_<k>\.csv"):
        bench.folds(tmp_path)


@pytest.mark.slow
def test_command_line(bench, task, tmp_path, monkeypatch, capsys):
    written = tmp_path / "scores.csv"
    monkeypatch.setattr(
        "sys.argv",
        f"hest_bench.py {task} --features {task / 'features'} --model parts --mpp 2 --methods rag --write {written}".split(),
    )
    bench.main()
    assert "rag" in capsys.readouterr().out
    assert set(pd.read_csv(written)["method"]) == {"hest_ridge", "rag"}
