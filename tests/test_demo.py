"""The demo and the command line."""

from __future__ import annotations

import logging
import re
import warnings

import pandas as pd
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd.__main__ import main
from ragst_sd._demo import read_folder, run_demo


@pytest.fixture
def small(monkeypatch, quick):
    """Smaller synthetic tissue and shorter training, so that the demo takes seconds."""
    from ragst_sd.datasets import _synthetic

    original = _synthetic.synthetic
    monkeypatch.setattr(
        rg.datasets, "synthetic", lambda n_donors: original(n_donors=n_donors, image_px=700, n_genes=260), raising=False
    )
    fit = rg.tl.fit
    monkeypatch.setattr(
        rg.tl,
        "fit",
        lambda reference, *, method, **kwargs: fit(reference, method=method, options=quick(method), **kwargs),
        raising=False,
    )


@pytest.mark.slow
def test_demo_writes_what_it_says(small, tmp_path, monkeypatch, caplog):
    said = []
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        metrics = run_demo(tmp_path / "out", n_donors=3, say=said.append)
    # Python shows no deprecations that are not caused in one's own lines.
    hidden = (DeprecationWarning, PendingDeprecationWarning)
    assert [str(one.message) for one in warned if not issubclass(one.category, hidden)] == []
    assert [record.getMessage() for record in caplog.records] == []
    assert list(metrics.index) == ["mean", "ridge", "knn", "rag"]
    knn = metrics.loc["knn"]
    assert knn["pearson"] > 0.2
    assert 1 <= knn["effective_n"] <= 50
    for name in (
        "metrics.csv",
        "prediction.png",
        "retrieval.png",
        "explanation.csv",
        "donor3.zarr",
        "reference.zarr.zip",
    ):
        assert (tmp_path / "out" / name).exists()
        assert any(name in line for line in said)
    assert any(str(tmp_path / "out") in line for line in said)
    scores = rg.tl.evaluate(sd.read_zarr(tmp_path / "out" / "donor3.zarr"), metrics=["pearson"])
    of_genes = scores[scores["gene"] != ""].dropna().sort_values("value")["gene"].tolist()
    median, best = re.search(
        r"prediction.png +(\S+), the median of the genes, and (\S+), the best", "\n".join(said)
    ).groups()
    assert (median, best) == (of_genes[len(of_genes) // 2], of_genes[-1])
    # The table is the last thing on the screen, and it is what `evaluate` and `summary` say.
    assert said[-1].split()[:3] == ["method", "pearson", "pearson_all_genes"]
    shown = dict(line.split()[:2] for line in said[-1].splitlines()[1:])
    query = sd.read_zarr(tmp_path / "out" / "donor3.zarr")
    again = rg.get.summary(rg.tl.evaluate(query)).iloc[0]
    assert float(shown["rag"]) == pytest.approx(again["pearson"], abs=6e-4)
    assert f"over the {again['n_genes']:.0f} genes" in said[-2]
    (happened,) = (text for text in said if "What happened" in text)
    # The lines that it tells to go on with are true.
    told = [line.partition("#")[0].strip() for line in happened.splitlines() if line.startswith("  ")]
    monkeypatch.chdir(tmp_path / "out")
    exec("\n".join(told), {})
    assert (tmp_path / "out" / "viewer.html").exists()
    back = sd.read_zarr(tmp_path / "out" / "donor3.zarr")
    assert rg.get.neighbors(back)["donor"].isin(["donor1", "donor2"]).all()
    explained = pd.read_csv(tmp_path / "out" / "explanation.csv")
    assert explained["reference"].iloc[-1] in ("adjustment", "regression")
    run_demo(tmp_path / "out", n_donors=3, say=said.append)


def test_bad_folder_is_one_line(tmp_path, capsys):
    assert main(["demo", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "holds no pair of <section>.h5ad" in error
    assert "Traceback" not in error


def test_help_and_version(capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit, match="0"):
            main([flag])
    assert "ragst-sd" in capsys.readouterr().out


def test_real_folder(data_dir):
    sections = read_folder(data_dir / "histology" / "mob2k")
    assert sorted(sections) == ["MOB1", "MOB2", "MOB3", "MOB4"]
    assert {sdata.tables["table"].obs["donor"].iloc[0] for sdata in sections.values()} == {"ind1", "ind2"}
