"""What predicted responses to perturbations rest on: `rg.get.neighbors`, `explain` and `influence(rows=)`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

from ..screens import QUICK, planted_screen

ASK = {"unit": "log1p_cp10k", "context_key": "cell_type"}
SOURCES = {
    "a": {"technology": "Perturb-seq", "license": "MIT", "citation": "A"},
    "b": {"technology": "CROP-seq", "license": "CC-BY-4.0", "citation": "B"},
}


@pytest.fixture(scope="module")
def screen():
    return planted_screen(n_cells=12, n_controls=20, n_genes=30, combinations=("P0+P7",))


@pytest.fixture(scope="module")
def _bank(screen):
    return rg.tl.build_perturbation_reference(
        screen[0],
        embedding=screen[1],
        unit="log1p_cp10k",
        context_key="cell_type",
        batch_key="batch",
        perturbation_type="CRISPRi",
        sources=SOURCES,
    )


@pytest.fixture
def bank(_bank):
    return _bank.copy()


@pytest.fixture
def controls(screen):
    cells = screen[0]
    return cells[np.flatnonzero(cells.obs["perturbation"] == "control")[::8]].copy()


@pytest.fixture
def table(bank, controls):
    rg.tl.fit(bank, method="knn", n_neighbors=4)
    return rg.tl.perturb(controls, bank, perturbations=["P3", "P0+P7", "control"], **ASK)


def measured(cells, perturbation, context):
    """Mean over the cells of a perturbation of the difference from the mean control of their context and batch."""
    labels, values = cells.obs, np.asarray(cells.X, dtype=np.float64)
    own = (labels["perturbation"] == perturbation).to_numpy() & (labels["cell_type"] == context).to_numpy()
    differences = []
    for i in np.flatnonzero(own):
        like = (labels["perturbation"] == "control") & (labels["cell_type"] == context)
        like &= labels["batch"] == labels["batch"].iloc[i]
        differences.append(values[i] - values[like.to_numpy()].mean(axis=0))
    return np.mean(differences, axis=0)


def test_neighbors_are_ranked_and_complete(bank, table):
    frame = rg.get.neighbors(table)
    assert list(frame.columns) == [
        "query", "rank", "reference", "perturbation", "context", "perturbation_type", "n_cells", "reliability",
        "distance", "weight", "technology", "license", "citation",
    ]  # fmt: skip
    perturbed = table.obs_names[table.obs["perturbation"] != "control"]
    assert list(frame["query"].unique()) == list(perturbed)
    vectors = np.asarray(bank.obsm["perturbation_embedding"])
    for query, one in frame.groupby("query"):
        about = table.obs.loc[query]
        assert list(one["rank"]) == [1, 2, 3, 4] and one["weight"].is_monotonic_decreasing
        assert one["weight"].sum() == pytest.approx(1, abs=1e-5)
        assert set(one["context"]) == {about["context"]} and about["perturbation"] not in set(one["perturbation"])
        rows = bank[one["reference"].to_numpy()]
        for name in ("perturbation", "n_cells", "reliability"):
            assert list(one[name]) == list(rows.obs[name])
        asked = vectors[bank.obs_names.get_loc(f"{about['context']}:{about['perturbation']}")]
        cosine = vectors[bank.obs_names.get_indexer(one["reference"])] @ asked / np.linalg.norm(asked)
        cosine /= np.linalg.norm(vectors[bank.obs_names.get_indexer(one["reference"])], axis=1)
        np.testing.assert_allclose(one["distance"], 1 - cosine, atol=1e-5)
        source = SOURCES[about["context"]]
        assert set(one["technology"]) == {source["technology"]} and set(one["license"]) == {source["license"]}
        assert set(one["citation"]) == {source["citation"]} and set(one["perturbation_type"]) == {"CRISPRi"}
    cell = perturbed[3]
    pd.testing.assert_frame_equal(
        rg.get.neighbors(table, obs_names=cell), frame[frame["query"] == cell].reset_index(drop=True)
    )


@pytest.mark.parametrize("method", RESPONSE_METHODS)
def test_contributions_add_up_and_values_are_measured(screen, bank, controls, method):
    rg.tl.fit(bank, method=method, n_neighbors=4, options=QUICK.get(method))
    asked = {"additive": "P0+P7", "context_additive": "P3", "same_perturbation": "P3"}.get(method, "P0+P7")
    table = rg.tl.perturb(controls, bank, perturbations=[asked, "control"], **ASK)
    cells, genes = list(table.obs_names[[0, 4, -1]]), list(table.var_names[[1, 9, 20]])
    frame = rg.get.explain(table, bank, obs_names=cells, genes=genes)
    assert list(frame.columns) == [
        "query", "gene", "reference", "perturbation", "context", "weight", "value", "contribution",
    ]  # fmt: skip
    order = frame[["query", "gene"]].drop_duplicates()
    assert list(map(tuple, order.to_numpy())) == [(cell, gene) for cell in cells for gene in genes]
    for (cell, gene), part in frame.groupby(["query", "gene"]):
        one = table[cell, gene]
        assert part["contribution"].sum() == pytest.approx(one.X.item(), abs=1e-5)
        assert part["contribution"].iloc[1:].sum() == pytest.approx(one.layers["response"].item(), abs=1e-5)
        names = list(part["reference"])
        assert (names[0], names[-1]) == ("source", "adjustment")
        assert part["value"].iloc[0] == pytest.approx(controls[one.obs["source"].iloc[0], gene].X.item(), abs=1e-5)
        adjustment = one.layers["response"].item() - one.layers["evidence"].item()
        assert part["contribution"].iloc[-1] == pytest.approx(adjustment, abs=1e-6)
        cited = part.iloc[1:-1]
        nobody = (one.obsm["retrieval_rows"] < 0).all()
        if one.obs["perturbation"].iloc[0] == "control" or nobody:
            said = (
                "control: no response"
                if one.obs["perturbation"].iloc[0] == "control"
                else f"nothing cited: {table.uns['retrieval']['starts_from']}"
            )
            assert names == ["source", said, "adjustment"] and cited["weight"].isna().all()
            assert cited["contribution"].item() == pytest.approx(one.layers["evidence"].item(), abs=1e-6)
            continue
        assert cited["weight"].is_monotonic_decreasing and cited["weight"].sum() == pytest.approx(1, abs=1e-5)
        for line in cited.itertuples():
            response = measured(screen[0], line.perturbation, line.context)[table.var_names.get_loc(gene)]
            assert line.value == pytest.approx(response, abs=1e-5)
            assert line.contribution == pytest.approx(line.weight * response, abs=1e-5)
            assert line.reference == f"{line.context}:{line.perturbation}"


def test_control_is_the_cell_as_it_was(bank, table, controls):
    cell, gene = table.obs_names[-1], table.var_names[2]
    part = rg.get.explain(table, bank, obs_names=cell, genes=gene)
    assert list(part["contribution"]) == pytest.approx([controls[-1, gene].X.item(), 0, 0])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("mean", "nothing cited: mean of the responses that may be used"),
        ("ridge", "nothing cited: mean of the responses that may be used, and an adjustment"),
        ("none", "nothing cited: no response"),
    ],
)
def test_that_nothing_is_cited_is_said(bank, controls, method, said):
    rg.tl.fit(bank, method=method)
    table = rg.tl.perturb(controls, bank, perturbations=["P3", "control"], **ASK)
    frame = rg.get.neighbors(table)
    perturbed = table.obs_names[table.obs["perturbation"] == "P3"]
    assert list(frame["query"]) == list(perturbed) and set(frame["reference"]) == {said}
    assert (frame["rank"] == 0).all() and (frame["weight"] == 0).all() and frame["distance"].isna().all()
    assert rg.get.neighbors(table, obs_names=table.obs_names[-1]).empty


def test_lines_of_cells_that_cite_stand_among_those_that_do_not(bank, table):
    table.obsm["retrieval_rows"][1], table.obsm["retrieval_weights"][1] = -1, 0
    frame = rg.get.neighbors(table)
    assert list(dict.fromkeys(frame["query"])) == list(table.obs_names[table.obs["perturbation"] != "control"])
    assert list(frame["rank"].iloc[:6]) == [1, 2, 3, 4, 0, 1]
    assert frame["n_cells"].dtype == np.int64 and frame["reference"].iloc[4].startswith("nothing cited: ")


def test_cells_that_rest_on_a_response(bank, table):
    frame = rg.get.neighbors(table)
    row = frame["reference"].iloc[0]
    found = rg.get.influence(table, rows=row)
    expected = frame[frame["reference"] == row]
    assert len(expected) and list(found.columns) == ["reference", "query", "rank", "distance", "weight"]
    assert set(found["query"]) == set(expected["query"]) and set(found["reference"]) == {row}
    never = next(name for name in bank.obs_names if name not in set(frame["reference"]))
    assert rg.get.influence(table, bank, rows=never).empty
    with pytest.raises(KeyError, match=f"no cell of the prediction cites {re.escape(repr(never))}"):
        rg.get.influence(table, rows=never)


def test_another_reference_is_refused(bank, table, reference):
    names = {"obs_names": table.obs_names[0], "genes": table.var_names[0]}
    for other in (bank[:-1].copy(), reference):
        with pytest.raises(ValueError, match="made from a reference with hash"):
            rg.get.explain(table, other, **names)
    with pytest.raises(KeyError, match="no cell 'nowhere'"):
        rg.get.explain(table, bank, **(names | {"obs_names": "nowhere"}))
    bare = table.copy()
    del bare.layers["response"]
    with pytest.raises(KeyError, match="'response' not found"):
        rg.get.explain(bare, bank, **names)


CODE = """
import sys
import anndata as ad
import ragst_sd as rg

table = ad.read_zarr(sys.argv[1] + "/table.zarr")
rg.get.neighbors(table).to_csv(sys.argv[1] + "/neighbors.csv", index=False)
rg.get.influence(table, rows=sys.argv[2]).to_csv(sys.argv[1] + "/reverse.csv", index=False)
names = {"obs_names": list(table.obs_names), "genes": list(table.var_names[:2])}
try:
    rg.get.explain(table, None, **names)
except ValueError as error:
    print(error)
bank = rg.io.read_reference(sys.argv[1] + "/bank.zarr.zip")
rg.get.explain(table, bank, **names).to_csv(sys.argv[1] + "/parts.csv", index=False)
"""


@pytest.mark.slow
def test_a_table_read_back_in_a_new_process(bank, table, tmp_path):
    table.write_zarr(tmp_path / "table.zarr")
    rg.io.write_reference(bank, tmp_path / "bank.zarr.zip")
    row = rg.get.neighbors(table)["reference"].iloc[0]
    path = os.pathsep.join([str(Path(rg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), row],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "The reference is needed" in done.stdout and table.uns["retrieval"]["reference_hash"][:12] in done.stdout
    names = {"obs_names": list(table.obs_names), "genes": list(table.var_names[:2])}
    for name, expected in {
        "neighbors": rg.get.neighbors(table),
        "reverse": rg.get.influence(table, rows=row),
        "parts": rg.get.explain(table, bank, **names),
    }.items():
        found = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=["", "nan"])
        found = found.fillna({"perturbation": "", "context": ""}) if name == "parts" else found
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_categorical=False, rtol=1e-5, atol=1e-6)


TISSUE_ONLY = {
    "influence": lambda table, bank: rg.get.influence(table, bank),
    "risk_coverage": lambda table, bank: rg.get.risk_coverage(table, truth=table),
    "evaluate": lambda table, bank: rg.tl.evaluate(table, truth=table),
    "report": lambda table, bank: rg.tl.report(table, bank, path="nothing.md"),
    "filter_predicted": lambda table, bank: rg.pp.filter_predicted(table),
    "prediction": lambda table, bank: rg.pl.prediction(table, genes="GENE1"),
    "retrieval": lambda table, bank: rg.pl.retrieval(table, bank, obs_names=table.obs_names[0], genes="GENE1"),
    "explain": lambda table, bank: rg.pl.explain(table, bank, obs_names=table.obs_names[0], genes="GENE1"),
    "reliability": lambda table, bank: rg.pl.reliability(table),
    "sources": lambda table, bank: rg.pl.sources(table),
    "viewer": lambda table, bank: rg.pl.viewer(table, bank),
    "predict": lambda table, bank: rg.tl.predict(table, bank),
}


@pytest.mark.parametrize("name", TISSUE_ONLY)
def test_what_is_for_tissue_names_the_task(bank, table, name):
    with pytest.raises(ValueError, match=r"task 'perturbation'.*made by `rg.tl.perturb`.*needs a prediction of tissue"):
        TISSUE_ONLY[name](table, bank)


def test_tissue_functions_refuse_a_reference_of_perturbations(bank, query):
    rg.tl.fit(bank, method="mean")
    for call in (
        lambda: rg.tl.predict(query, bank),
        lambda: rg.tl.calibrate(bank),
        lambda: rg.tl.cross_validate(bank),
    ):
        with pytest.raises(ValueError, match="for the task 'perturbation', not 'histology'"):
            call()
