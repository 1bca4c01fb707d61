"""`benchmarks/score_predictions.py`, end to end on a small folder."""

from __future__ import annotations

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ragst_sd as rg


@pytest.fixture(scope="module")
def data(_sections, tmp_path_factory):
    """A folder as the benchmark reads it: counts and a picture of three donors."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "histology" / "made").mkdir(parents=True)
    for name, sdata in _sections.items():
        table = sdata.tables["table"]
        plain = ad.AnnData(table.X.copy(), obs=pd.DataFrame(index=table.obs_names), var=table.var[[]].copy())
        plain.obsm["spatial"] = np.asarray(table.obsm["spatial"])
        plain.uns["meta"] = {"patient": name, "section": name, "um_per_px": 1.0}
        plain.write_h5ad(folder / "histology" / "made" / f"{name}.h5ad")
        image = sdata.images["he"]
        full = image["scale0"].image if hasattr(image, "children") else image
        pixels = np.asarray(full)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "histology" / "made" / f"{name}.png")
    return folder


@pytest.fixture
def run(script, data, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["score", "--data", str(data), "--set", "made", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return call


def truth(data, name):
    """log1p of counts per 10,000, written out."""
    table = ad.read_h5ad(data / "histology" / "made" / f"{name}.h5ad")
    counts = table.X.toarray().astype(float)
    table.X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    return table, np.log1p(counts)


def write(data, folder, change=lambda table, raw: table):
    folder.mkdir()
    for name in ("donor1", "donor2", "donor3"):
        table, raw = truth(data, name)
        change(table, raw)
        # Neither the order of spots nor that of genes is ours to expect.
        table[::-1, ::-1].copy().write_h5ad(folder / f"{name}.h5ad")


def test_folds_name_what_may_be_known(run, data, tmp_path):
    run("--write-folds", tmp_path)
    fold = json.loads((tmp_path / "donor3.json").read_text())
    assert fold["held_out_sections"] == ["donor3"]
    assert fold["training_sections"] == ["donor1", "donor2"]
    assert len(fold["genes"]) == 250
    both = np.vstack([truth(data, name)[0].X for name in fold["training_sections"]])
    names = truth(data, "donor1")[0].var_names
    assert set(fold["genes"]) == set(names[np.argsort(-both.var(axis=0))[:250]])


@pytest.mark.slow
def test_the_truth_scores_one(run, data, tmp_path):
    write(data, tmp_path / "p")
    out = run("--predictions", tmp_path / "p", "--name", "oracle", "--csv", tmp_path / "scores.csv")
    assert "| made | its own | oracle | 1.000 | none | 1.000 | donor1 1.000, donor2 1.000, donor3 1.000 |" in out
    scores = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    rmse = scores.loc[scores["metric"] == "rmse", "value"].astype(float)
    assert len(rmse) == 750 and rmse.max() < 1e-5
    assert set(scores.loc[scores["method"] == "", "metric"]) == {"noise_ceiling"}


@pytest.mark.slow
def test_the_other_unit(run, data, tmp_path):
    def raw(table, raw):
        table.X = raw

    write(data, tmp_path / "p", raw)
    assert "| 1.000 | none | 1.000 |" in run("--predictions", tmp_path / "p", "--unit", "log1p_counts")
    assert "| 1.000 | none | 1.000 |" not in run("--predictions", tmp_path / "p")


def test_spots_are_found_by_their_place(run, data, tmp_path):
    def rename(table, raw):
        table.obs_names = [f"cell{i}" for i in range(table.n_obs)]

    write(data, tmp_path / "p", rename)
    assert "| 1.000 | none | 1.000 |" in run("--predictions", tmp_path / "p")


def test_scores_are_those_of_our_own_path(run, script, data, tmp_path):
    sections = script.read_folder(data / "histology" / "made")
    (tmp_path / "p").mkdir()
    expected = []
    for fold in script.make_folds(sections):
        rg.tl.fit(fold.reference, method="knn", n_neighbors=10)
        for name in fold.held:
            table = rg.tl.predict(sections[name], fold.reference, inplace=False)
            scores = rg.tl.evaluate(table, truth=sections[name].tables["table"], genes=fold.genes, metrics=["pearson"])
            expected.append(scores.loc[scores["gene"] != "", "value"].mean())
            ad.AnnData(table.X, obs=table.obs[[]], var=table.var[[]]).write_h5ad(tmp_path / "p" / f"{name}.h5ad")
    assert f"| {np.mean(expected):.3f} | none |" in run("--predictions", tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"donor2\.h5ad does not exist"),
        (lambda path: ad.read_h5ad(path)[2:].copy().write_h5ad(path), "2 of .* spots are not predicted"),
        (lambda path: ad.read_h5ad(path)[:, :5].copy().write_h5ad(path), "genes are not predicted"),
    ],
)
def test_incomplete_predictions(run, data, tmp_path, change, message):
    write(data, tmp_path / "p")
    change(tmp_path / "p" / "donor2.h5ad")
    with pytest.raises(SystemExit, match=message):
        run("--predictions", tmp_path / "p")
