from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import ragst_sd as rg
from ragst_sd._gene_embedding import embedding_table
from ragst_sd._reference import reference_hash

from ..screens import planted_screen

LOGS = {"unit": "log1p_cp10k", "context_key": "cell_type", "batch_key": "batch"}


@pytest.fixture(scope="module")
def _screen():
    return planted_screen(combinations=("P7+P0",))


@pytest.fixture
def screen(_screen):
    return _screen[0].copy(), _screen[1].copy()


@pytest.fixture
def built(screen):
    return rg.tl.build_perturbation_reference(screen[0], embedding=screen[1], **LOGS)


def counts_screen(n_genes=220, rng=0):
    generator = np.random.default_rng(rng)
    rate = generator.uniform(0.5, 4, size=n_genes)
    names = np.repeat(["control", "A", "B"], [60, 30, 30])
    rates = np.where((names == "A")[:, None] & (np.arange(n_genes) < 40), 4 * rate, rate)
    adata = ad.AnnData(sp.csr_matrix(generator.poisson(rates).astype(np.float32)))
    adata.obs["perturbation"] = names
    return adata, {"A": [1.0, 0.0], "B": [0.0, 1.0], "C": [1.0, 1.0]}


def test_controls_that_are_there_twice_count_once(caplog):
    adata, embedding = counts_screen()
    again = adata[adata.obs["perturbation"] == "control"].copy()
    again.obs_names = [f"copy_of_{name}" for name in again.obs_names]
    twice = ad.concat([again, adata])
    once, found = (rg.tl.build_perturbation_reference(cells, embedding=embedding) for cells in (adata, twice))
    assert "60 controls are there twice under other names" in caplog.text
    assert (found.obs["n_controls"] == 60).all()
    np.testing.assert_allclose(found.X, once.X, atol=1e-6)
    np.testing.assert_allclose(found.layers["standard_error"], once.layers["standard_error"], atol=1e-6)


def test_rows_are_measured_responses(screen, built):
    adata, embedding = screen
    assert built.n_obs == 2 * 21
    row = built["a:P3"]
    assert row.obs["n_cells"].item() == 30 and row.obs["n_controls"].item() == 120
    cells = adata.obs["cell_type"] == "a"
    dense = adata.to_df()
    expected = np.mean(
        [
            dense[cells & (adata.obs["perturbation"] == "P3") & (adata.obs["batch"] == b)].mean()
            - dense[cells & (adata.obs["perturbation"] == "control") & (adata.obs["batch"] == b)].mean()
            for b in "12"
        ],
        axis=0,
    )
    np.testing.assert_allclose(np.asarray(row.X).ravel(), expected, atol=1e-5)
    np.testing.assert_allclose(
        (built.layers["response_half1"] + built.layers["response_half2"]) / 2, built.X, atol=1e-5
    )
    assert (built.obs["reliability"] > 0.5).mean() > 0.8
    np.testing.assert_allclose(row.obsm["perturbation_embedding"][0], embedding.loc["P3"], atol=1e-6)


def test_a_combination_is_one_perturbation_whatever_its_order(screen, built):
    assert "a:P0+P7" in built.obs_names
    expected = screen[1].loc["P0"] + screen[1].loc["P7"]
    np.testing.assert_allclose(built["a:P0+P7"].obsm["perturbation_embedding"][0], expected, atol=1e-6)


def test_header_keeps_controls_state_and_the_whole_embedding(screen, built):
    adata, embedding = screen
    header = built.uns["ragst"]
    assert header["task"] == "perturbation"
    assert list(header["embedding"]["genes"]) == sorted(embedding.index)
    assert header["embedding"]["values"].shape == embedding.shape
    assert header["controls"]["values"].shape == (240, adata.n_vars)
    of_a = (adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "a")
    np.testing.assert_allclose(header["contexts"]["mean"][0], adata[of_a].X.mean(axis=0), atol=1e-5)
    assert set(header["control_cells"]) == set(adata.obs_names[adata.obs["perturbation"] == "control"])
    few = rg.tl.build_perturbation_reference(adata, embedding=embedding, max_controls=10, **LOGS)
    assert few.uns["ragst"]["controls"]["values"].shape[0] == 20


def test_the_order_of_cells_and_rows_changes_nothing(screen, built):
    adata, embedding = screen
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    again = rg.tl.build_perturbation_reference(shuffled, embedding=embedding.iloc[::-1], **LOGS)
    assert again.uns["ragst"]["content_hash"] == built.uns["ragst"]["content_hash"]
    np.testing.assert_array_equal(again.obs["reliability"], built.obs["reliability"])
    assert reference_hash(built[::-1].copy()) == built.uns["ragst"]["content_hash"]
    other = built.copy()
    other.layers["standard_error"][0, 0] += 1
    assert reference_hash(other) != built.uns["ragst"]["content_hash"]


def test_written_and_read(screen, built, tmp_path):
    sources = {"a": {"license": "CC BY 4.0", "citation": "someone", "technology": "Perturb-seq"}}
    adata, embedding = screen
    reference = rg.tl.build_perturbation_reference(
        adata, embedding=embedding.drop(index="P1"), sources=sources, min_cells=20, **LOGS
    )
    rg.io.write_reference(reference, tmp_path / "screen.zarr.zip")
    read = rg.io.read_reference(tmp_path / "screen.zarr.zip")
    assert read.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]
    assert read.uns["ragst"]["sources"].loc["a", "license"] == "CC BY 4.0"
    assert read.uns["ragst"]["sources"].loc["b", "license"] == "unknown"
    pd.testing.assert_frame_equal(read.uns["ragst"]["dropped"], reference.uns["ragst"]["dropped"], check_dtype=False)
    rg.io.write_reference(built[:10].copy(), tmp_path / "part.zarr.zip")
    assert rg.io.read_reference(tmp_path / "part.zarr.zip").n_obs == 10
    damaged = reference.copy()
    del damaged.layers["response_half1"]
    with pytest.raises(ValueError, match=r"lacks layers\['response_half1'\]"):
        rg.io.write_reference(damaged, tmp_path / "damaged.zarr.zip")


def test_counts_are_normalised_by_a_named_rule():
    adata, embedding = counts_screen()
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding)
    assert list(reference.obs["context"].unique()) == ["all"]
    normalization = reference.uns["ragst"]["normalization"]
    assert normalization["unit"] == "log1p(counts per 10,000)"
    assert len(normalization["size_factor_genes"]) == 220
    counts = adata.X.toarray()
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    names = adata.obs["perturbation"].to_numpy()
    expected = logs[names == "A"].mean(axis=0) - logs[names == "control"].mean(axis=0)
    np.testing.assert_allclose(np.asarray(reference["all:A"].X).ravel(), expected, atol=1e-4)
    median = rg.tl.build_perturbation_reference(adata, embedding=embedding, target_sum=None)
    assert median.uns["ragst"]["normalization"]["target_sum"] == np.median(counts.sum(axis=1))
    assert median.uns["ragst"]["normalization"]["unit"].startswith("log1p(counts per ")
    part = rg.tl.build_perturbation_reference(adata, embedding=embedding, genes=["3", "1"])
    np.testing.assert_allclose(part["all:A"].X, reference["all:A", ["3", "1"]].X)


def test_genes_without_an_embedding_are_left_out_by_name(screen, caplog):
    adata, embedding = screen
    embedding.loc["P1"] = 0.0
    embedding.loc["P2"] = np.nan
    with caplog.at_level(logging.INFO):
        reference = rg.tl.build_perturbation_reference(adata, embedding=embedding.drop(index="P7"), **LOGS)
    assert "'P1', 'P2', 'P7'" in caplog.text and "covers 17 of 21 perturbations" in caplog.text
    dropped = reference.uns["ragst"]["dropped"]
    assert set(dropped["perturbation"]) == {"P1", "P2", "P7", "P0+P7"}
    assert set(dropped["reason"]) == {"no embedding"}
    assert "P1" not in reference.uns["ragst"]["embedding"]["genes"]
    with pytest.raises(KeyError, match="on_missing='drop'"):
        rg.tl.build_perturbation_reference(adata, embedding=embedding, on_missing="error", **LOGS)
    with pytest.raises(ValueError, match="no gene of any perturbation"):
        rg.tl.build_perturbation_reference(adata, embedding={"X": [1.0]}, **LOGS)


def test_perturbations_of_three_cells_are_left_out_by_name(screen, caplog):
    adata, embedding = screen
    few = np.flatnonzero((adata.obs["perturbation"] == "P4") & (adata.obs["cell_type"] == "a"))[3:]
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), few)].copy()
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
    assert "a:P4" not in reference.obs_names and "b:P4" in reference.obs_names
    assert "fewer than 10 cells: 'P4'" in caplog.text
    line = reference.uns["ragst"]["dropped"].iloc[0]
    assert (line["perturbation"], line["context"], line["n_cells"]) == ("P4", "a", 3)
    kept = rg.tl.build_perturbation_reference(adata, embedding=embedding, min_cells=3, **LOGS)
    assert kept.obs.loc["a:P4", "n_cells"] == 3


def test_cells_of_batches_without_controls_are_left_out(screen, caplog):
    adata, embedding = screen
    lost = (adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "a") & (adata.obs["batch"] == "2")
    reference = rg.tl.build_perturbation_reference(adata[~lost].copy(), embedding=embedding, **LOGS)
    assert reference.obs.loc["a:P0", "n_cells"] == 15 and reference.obs.loc["b:P0", "n_cells"] == 30
    assert "fewer than 2 controls" in caplog.text
    assert (reference.uns["ragst"]["dropped"]["reason"] == "fewer than 2 controls in the batch").all()


def test_types_are_not_mixed_unasked(screen):
    adata, embedding = screen
    adata.obs["perturbation_type"] = np.where(adata.obs["cell_type"] == "a", "CRISPRi", "CRISPRa")
    adata.obs.loc[adata.obs["perturbation"] == "control", "perturbation_type"] = None
    build = {"embedding": embedding, **LOGS}
    with pytest.raises(ValueError, match=r"several types \('CRISPRa', 'CRISPRi'\)"):
        rg.tl.build_perturbation_reference(adata, **build)
    one = rg.tl.build_perturbation_reference(adata, perturbation_type="CRISPRi", **build)
    assert set(one.obs["context"]) == {"a"} and set(one.obs["perturbation_type"]) == {"CRISPRi"}
    both = rg.tl.build_perturbation_reference(adata, perturbation_type=["CRISPRi", "CRISPRa"], **build)
    assert "a:P0:CRISPRi" in both.obs_names
    with pytest.raises(ValueError, match="no perturbed cell is of type 'CRISPRx'"):
        rg.tl.build_perturbation_reference(adata, perturbation_type="CRISPRx", **build)
    del adata.obs["perturbation_type"]
    named = rg.tl.build_perturbation_reference(adata, perturbation_type="knock-out", **build)
    assert set(named.obs["perturbation_type"]) == {"knock-out"}


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        ("no controls", {}, ValueError, r"No cell has 'control'.*Name the controls with `control=`"),
        ("context without controls", {}, ValueError, r"Contexts without control cells: 'b' \(630 cells\)"),
        ("missing label", {}, ValueError, "1 cells have no label"),
        ("", {"perturbation_key": "gene"}, KeyError, "Key 'gene' not found"),
        ("", {"context_key": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ("", {"batch_key": "lane"}, KeyError, "Key 'lane' not found"),
        ("", {"layer": "counts"}, KeyError, "Key 'counts' not found"),
        ("", {"unit": "counts"}, ValueError, "looks log-transformed already"),
        ("", {"unit": "cpm"}, ValueError, "`unit` is 'cpm'"),
        ("counts", {}, ValueError, "not log1p of counts per 10,000"),
        ("same names", {}, ValueError, "names of cells of `adata` are duplicated"),
        ("no cells", {}, ValueError, "`adata` has no cells"),
        ("", {"genes": ["GENE1", "nothing"]}, ValueError, "the cells have no 'nothing'"),
        ("", {"on_missing": "zero"}, ValueError, "`on_missing` is 'zero'"),
        ("", {"min_cells": 1000}, ValueError, "No perturbation has 1000 cells"),
        ("", {"min_cells": 0}, ValueError, "`min_cells` is 0"),
        ("", {"sources": {"c": {}}}, ValueError, "`sources` names contexts"),
        ("", {"embedding": {"P0": [1.0], "P1": [1.0, 2.0]}}, ValueError, r"differ in length \('P0': 1, 'P1': 2\)"),
        ("", {"embedding": [1.0]}, TypeError, "`embedding` is a list"),
        ("", {"embedding": {"P0": ["x"]}}, ValueError, "holds no numbers"),
    ],
)
def test_bad_input(screen, change, arguments, error, message):
    adata, embedding = screen
    if change == "no controls":
        adata = adata[adata.obs["perturbation"] != "control"].copy()
    elif change == "context without controls":
        adata = adata[(adata.obs["perturbation"] != "control") | (adata.obs["cell_type"] == "a")].copy()
    elif change == "missing label":
        adata.obs.loc[adata.obs_names[0], "perturbation"] = None
    elif change == "same names":
        adata.obs_names = ["cell", "cell", *adata.obs_names[2:]]
    elif change == "no cells":
        adata = adata[:0].copy()
    elif change == "counts":
        adata.X = np.round(adata.X * 10)
    before = adata.copy()
    with pytest.raises(error, match=message):
        rg.tl.build_perturbation_reference(adata, **({"embedding": embedding} | LOGS | arguments))
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X, before.X)


def test_few_genes_do_not_make_size_factors():
    adata, embedding = counts_screen(n_genes=100)
    with pytest.raises(ValueError, match="100 genes that size factors can rest on; at least 200"):
        rg.tl.build_perturbation_reference(adata, embedding=embedding)


def test_references_of_other_tasks_are_refused(built, sections):
    with pytest.raises(ValueError, match=r"for the task 'perturbation', not 'histology'. Use `rg.tl.perturb`"):
        rg.tl.predict(sections["donor1"], built)


@pytest.mark.slow
def test_reliability_on_a_real_screen(data_dir):
    adata = ad.read_h5ad(data_dir / "perturb/expression/papalexi2021_thp1_sceptre.h5ad")
    embedding = rg.tl.embed_genes(data_dir / "perturb/embeddings/GO_Biological_Process_2021.gmt")
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, batch_key="bio_rep", target_sum=None)
    assert reference.n_obs == 24
    assert list(reference.uns["ragst"]["dropped"]["perturbation"]) == ["MARCH8"]
    reliability = reference.obs.set_index("perturbation")["reliability"]
    assert (reliability[["STAT1", "IFNGR1", "IFNGR2", "JAK2"]] > 0.9).all()
    assert reliability[["CD86", "CMTM6", "ATF2"]].max() < 0.5


def test_vectors_of_an_embedding_may_be_tensors():
    table = embedding_table({"B": torch.tensor([0.0, 1.0]), "A": torch.tensor([1.0, 2.0])})
    assert list(table["genes"]) == ["A", "B"]
    np.testing.assert_array_equal(table["values"], [[1, 2], [0, 1]])
