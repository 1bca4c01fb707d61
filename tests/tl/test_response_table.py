"""References that are built from responses, in the layouts in which other tools write them."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd._bank import open_bank
from ragst_sd._reference import reference_hash

from ..screens import given_responses, planted_screen

LFC = {"unit": "log_fold_change", "context_key": "context"}


@pytest.fixture(scope="module")
def _given():
    return given_responses()


@pytest.fixture
def given(_given):
    return _given[0].copy(), _given[1].copy()


def ranks(adata):
    out = adata.copy()
    order = np.argsort(np.argsort(-adata.X, axis=1), axis=1)
    out.X = (1 - 2 * order / (adata.n_vars - 1)).astype(np.float32)
    return out


def long(adata):
    """One line per gene of each response."""
    frame = adata.to_df().assign(**adata.obs[["perturbation", "context"]])
    return frame.melt(["perturbation", "context"], var_name="gene", value_name="value")


def test_rows_are_the_responses_as_given(given):
    adata, embedding = given
    adata.layers["standard_error"] = np.full(adata.shape, 0.2)
    adata.obs["n_cells"] = 40
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LFC)
    assert reference.shape == adata.shape and reference.X.dtype == np.float32
    np.testing.assert_array_equal(reference["b:P3"].X, adata["b|P3"].X)
    assert (reference.layers["standard_error"] == np.float32(0.2)).all()
    assert (reference.obs["n_cells"] == 40).all() and (reference.obs["n_controls"] == 0).all()
    assert reference.obs["reliability"].isna().all()
    header = reference.uns["ragst"]
    assert header["normalization"]["unit"] == "log fold change"
    expected = adata[adata.obs["context"] == "b"].X.mean(axis=0)
    np.testing.assert_allclose(header["contexts"]["mean"][1], expected, atol=1e-5)
    assert not len(header["control_cells"]) and not header["treated"]["values"].shape[0]
    screen = open_bank(reference, task="perturbation", fitted=False).screen
    assert not screen.from_cells
    assert screen.halves[0] is screen.halves[1] and (screen.reliability == 1).all()
    plain = rg.tl.build_perturbation_reference(adata[:, :5].copy(), unit="z_score", context_key="context")
    assert plain.obsm["perturbation_embedding"].shape == (24, 0)


def test_the_state_of_a_context_is_the_mean_of_the_rows_that_are_left(given):
    reference = rg.tl.build_perturbation_reference(given[0], **LFC)
    left = reference[reference.obs_names != "a:P0"].copy()
    states = open_bank(left, task="perturbation", fitted=False).screen.states
    np.testing.assert_allclose(states[0], left[left.obs["context"] == "a"].X.mean(axis=0), atol=1e-5)
    assert np.abs(states[0] - reference.uns["ragst"]["contexts"]["mean"][0]).max() > 0.01


def test_written_read_and_in_any_order(given, tmp_path):
    adata, _ = given
    reference = rg.tl.build_perturbation_reference(adata, **LFC)
    other = rg.tl.build_perturbation_reference(adata[::-1].copy(), **LFC)
    assert other.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]
    rg.tl.fit(reference, method="same_perturbation")
    rg.io.write_reference(reference, tmp_path / "given.zarr.zip")
    read = rg.io.read_reference(tmp_path / "given.zarr.zip")
    assert reference_hash(read) == reference.uns["ragst"]["content_hash"]
    predicted = rg.tl.perturb(adata.obs, read, perturbations="P1", context_key="context")
    np.testing.assert_allclose(predicted["a:P1"].X, adata["b|P1"].X, atol=1e-6)
    with pytest.raises(ValueError, match=r"given\.zarr\.zip is a reference of perturbations.*`lazy=False`"):
        rg.io.read_reference(tmp_path / "given.zarr.zip", lazy=True)


def pertpy(adata):
    columns = {"gene": "variable", "value": "log_fc", "perturbation": "contrast"}
    frame = long(adata).rename(columns=columns).assign(p_value=0.01, adj_p_value=0.02)
    return frame, {"unit": "log_fold_change", "perturbation_key": "contrast"}


def scanpy(adata):
    columns = {"gene": "names", "value": "logfoldchanges", "perturbation": "group"}
    frame = long(adata).rename(columns=columns).assign(scores=1.0, pvals=0.01, pvals_adj=0.02)
    return frame, {"unit": "log_fold_change", "perturbation_key": "group"}


def pydeseq2(adata):
    frame = long(adata).rename(columns={"value": "log2FoldChange"}).assign(baseMean=5.0, lfcSE=0.5, stat=2.0)
    return frame.set_index(["perturbation", "context", "gene"]), {"unit": "log_fold_change"}


def decoupler(adata):
    frame = adata.to_df().set_index(pd.MultiIndex.from_frame(adata.obs[["perturbation", "context"]]))
    return frame, {"unit": "z_score"}


def lincs(adata):
    names = {"perturbation": "pert_iname", "context": "cell_id"}
    table = ad.AnnData(sp.csr_matrix(adata.X), obs=adata.obs.rename(columns=names), var=adata.var)
    table.obs["pert_type"] = "trt_cp"
    keys = {"perturbation_key": "pert_iname", "context_key": "cell_id", "type_key": "pert_type"}
    return table, {"unit": "z_score", **keys}


@pytest.mark.parametrize("layout", [pertpy, scanpy, pydeseq2, decoupler, lincs])
def test_layouts_of_other_tools(given, layout):
    adata, _ = given
    data, arguments = layout(adata)
    found = rg.tl.build_perturbation_reference(data, **{"context_key": "context", **arguments})
    expected = rg.tl.build_perturbation_reference(adata, **LFC)
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_allclose(found[:, expected.var_names].X, expected.X, atol=1e-6)
    assert ("standard_error" in found.layers) == (layout is pydeseq2)
    assert set(found.obs["perturbation_type"]) == ({"trt_cp"} if layout is lincs else {"unknown"})


def test_contrasts_as_the_index_of_a_wide_frame(given):
    frame = given[0][given[0].obs["context"] == "a"].to_df().rename(index=lambda name: name[2:])
    found = rg.tl.build_perturbation_reference(frame, unit="z_score", embedding=given[1])
    assert list(found.obs_names) == sorted(f"all:P{i}" for i in range(12))


def test_genes_choose_the_columns_of_a_wide_frame(given):
    frame = given[0].to_df().rename(columns={"GENE0": "TIMELESS", "GENE1": "NKX2-1", "GENE2": "MT-CO1"})
    frame = frame.assign(**given[0].obs[["perturbation", "context"]])
    genes = [name for name in frame if name not in ("perturbation", "context")]
    expected = rg.tl.build_perturbation_reference(frame, **LFC)
    assert list(expected.var_names) == genes
    numbered = frame.set_axis(pd.Index(range(len(frame)), name="signature"))
    assert list(rg.tl.build_perturbation_reference(numbered, **LFC).var_names) == genes
    wider = frame.assign(dose_nM=1000.0, time=24, moa="inhibitor")
    found = rg.tl.build_perturbation_reference(wider, genes=genes, **LFC)
    assert found.uns["ragst"]["content_hash"] == expected.uns["ragst"]["content_hash"]
    rg.tl.fit(found, method="mean")
    predicted = rg.tl.perturb(given[0].obs, found, perturbations=["P0", "P1"], context_key="context")
    scores = [rg.tl.evaluate_perturbation(predicted, one, context_key="context") for one in (frame, wider)]
    pd.testing.assert_frame_equal(*scores)


def test_genes_that_a_row_lacks_are_left_out(given, caplog):
    lines = long(given[0])
    lines = lines[~((lines["gene"] == "GENE7") & (lines["perturbation"] == "P3"))]
    found = rg.tl.build_perturbation_reference(lines, layer="value", **LFC)
    assert found.n_vars == 59 and "GENE7" not in found.var_names
    assert "1 of 60 genes are left out" in caplog.text


def test_controls_and_rows_of_few_cells_are_left_out(given):
    adata, embedding = given
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"P0": "control"})
    adata.obs["n_cells"] = np.where(adata.obs["perturbation"] == "P1", 3, 30)
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LFC)
    assert reference.n_obs == 20 and not set(reference.obs["perturbation"]) & {"P0", "P1", "control"}
    dropped = reference.uns["ragst"]["dropped"]
    assert list(dropped["perturbation"]) == ["P1", "P1"] and list(dropped["n_cells"]) == [3, 3]


class TestBadInput:
    def test_no_unit(self, given):
        for data in (given[0], given[0].to_df()):
            with pytest.raises(ValueError, match=r"`unit` is 'counts', the unit of cells.*`unit='log_fold_change'`"):
                rg.tl.build_perturbation_reference(data, context_key="context")

    def test_cells_with_scaled_values_and_another_control_may_be_cells(self):
        adata, _ = planted_screen(n_programmes=2, per_programme=2)
        adata.X = adata.X - adata.X.mean(axis=0)
        message = (
            r"no controls and values below 0.*`unit='z_score'`.*`control=` \(no row is 'ctrl'; .*'control'.*`layer=`"
        )
        with pytest.raises(ValueError, match=message):
            rg.tl.build_perturbation_reference(adata, control="ctrl")

    @pytest.mark.parametrize("on_disk", [False, True, "dask"])
    def test_a_single_value_below_zero_in_the_last_row_is_seen(self, on_disk, tmp_path, monkeypatch):
        monkeypatch.setattr("ragst_sd.tl._response_table._AT_ONCE", 50)
        adata, _ = planted_screen(n_programmes=2, per_programme=2)
        adata.X = sp.csr_matrix(np.vstack([adata.X[:-1], -np.eye(1, adata.n_vars)]))
        if on_disk == "dask":
            adata.X = da.from_array(adata.X.toarray(), chunks=(30, -1)).map_blocks(sp.csr_matrix)
        elif on_disk:
            adata.write_h5ad(tmp_path / "cells.h5ad")
            adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        with pytest.raises(ValueError, match="no controls and values below 0"):
            rg.tl.build_perturbation_reference(adata, control="ctrl")
        if on_disk:
            adata.file.close()

    def test_no_genes(self):
        adata, _ = planted_screen(n_programmes=2, per_programme=2)
        with pytest.raises(ValueError, match=r"no expression \(X is empty\)"):
            rg.tl.build_perturbation_reference(adata[:, :0].copy(), control="ctrl", unit="log1p_cp10k")

    @pytest.mark.parametrize("sparse", [False, True])
    def test_no_control_in_a_table_on_disk(self, sparse, tmp_path):
        adata, _ = planted_screen(n_programmes=2, per_programme=2)
        adata.X = sp.csr_matrix(adata.X) if sparse else adata.X
        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        with pytest.raises(ValueError, match=r"No cell has 'ctrl'.*There are .*'control'"):
            rg.tl.build_perturbation_reference(backed, control="ctrl", unit="log1p_cp10k")
        backed.file.close()

    def test_two_rows_for_one_perturbation_and_context(self, given):
        twice = ad.concat([given[0], given[0][:2]])
        twice.obs_names_make_unique()
        with pytest.raises(ValueError, match=r"more than one row for 'P0 in a', 'P1 in a'.*average them"):
            rg.tl.build_perturbation_reference(twice, **LFC)
        with pytest.raises(ValueError, match=r"more than one row for .*`context_key=`"):
            rg.tl.build_perturbation_reference(given[0], unit="log_fold_change")
        lines = pd.concat([long(given[0]), long(given[0])[:1]])
        with pytest.raises(ValueError, match=r"more than one value for 'P0', 'a', 'GENE0'"):
            rg.tl.build_perturbation_reference(lines, layer="value", **LFC)

    def test_ranks_and_fold_changes_are_not_taken_for_each_other(self, given):
        with pytest.raises(ValueError, match=r"looks like ranks, not like log fold changes.*`unit='rank'`"):
            rg.tl.build_perturbation_reference(ranks(given[0]), **LFC)
        with pytest.raises(ValueError, match=r"reaches from -.*ranks lie from 1 \(most up\) to -1"):
            rg.tl.build_perturbation_reference(given[0], unit="rank", context_key="context")
        small = given[0].copy()
        small.X = small.X / np.abs(small.X).max()
        assert rg.tl.build_perturbation_reference(small, **LFC).n_obs == 24

    def test_counts_are_no_responses(self, given):
        given[0].X = np.round(np.abs(given[0].X))
        with pytest.raises(ValueError, match="counts of cells or places in ranked lists, not log fold changes"):
            rg.tl.build_perturbation_reference(given[0], **LFC)

    def test_columns(self, given):
        with pytest.raises(KeyError, match=r"'log_fold_change' not found.*Name the column of values with `layer=`"):
            rg.tl.build_perturbation_reference(long(given[0]), **LFC)
        with pytest.raises(KeyError, match=r"'drug' not found in `adata`"):
            rg.tl.build_perturbation_reference(long(given[0]), perturbation_key="drug", **LFC)
        with pytest.raises(ValueError, match=r"`layer` is 'log_fc', but `adata` is a wide data frame"):
            rg.tl.build_perturbation_reference(given[0].to_df(), unit="z_score", layer="log_fc")

    def test_columns_of_a_wide_frame_that_are_no_genes(self, given):
        frame = given[0].to_df().assign(**given[0].obs[["perturbation", "context"]])
        beside = ["dose_nM", "pert_time", "n_replicates", "pvals_adj", "p_value", "padj", "FDR", "Unnamed: 0"]
        for name in beside:
            with pytest.raises(ValueError, match=rf"columns '{name}' are called like annotations.*`genes=`"):
                rg.tl.build_perturbation_reference(frame.assign(**{name: 24.0}), **LFC)
        text = frame.assign(GENE3=frame["GENE3"].astype(str), moa="inhibitor")
        with pytest.raises(ValueError, match=r"must be numbers, which columns 'GENE3', 'moa' are not.*`genes=`"):
            rg.tl.build_perturbation_reference(text, **LFC)
        with pytest.raises(ValueError, match=r"columns 'GENE3' are not\. Convert them with `pd\.to_numeric`"):
            rg.tl.build_perturbation_reference(text, genes=["GENE3", "GENE4"], **LFC)
        with pytest.raises(ValueError, match=r"`adata` has no column 'GENE99'"):
            rg.tl.build_perturbation_reference(frame, genes=["GENE99"], **LFC)

    def test_no_gene_in_all_rows(self, given):
        given[0].X[np.arange(24), :] = np.nan
        with pytest.raises(ValueError, match=r"No gene of `adata\.X` has a finite value in every row"):
            rg.tl.build_perturbation_reference(given[0], **LFC)

    def test_nothing_says_which_rows_are_alike(self, given, caplog):
        one = given[0][given[0].obs["context"] == "a"].copy()
        rg.tl.build_perturbation_reference(one, **LFC)
        assert "no perturbation was measured in two contexts" in caplog.text


class TestMethods:
    def test_those_that_need_an_embedding_or_cells_say_so(self, given):
        reference = rg.tl.build_perturbation_reference(given[0], **LFC)
        with pytest.raises(ValueError, match=r"no embedding of genes, and method 'knn' needs one.*same_perturbation"):
            rg.tl.fit(reference, method="knn")
        with_embedding = rg.tl.build_perturbation_reference(given[0], embedding=given[1], **LFC)
        with pytest.raises(ValueError, match=r"no embedding of genes, and method 'ridge'"):
            rg.tl.fit(reference, method="ridge")
        for method in ("knn", "ridge", "bilinear", "naive_rag", "mean"):
            rg.tl.fit(with_embedding, method=method)

    def test_cells_may_come_without_an_embedding(self):
        adata, _ = planted_screen(n_programmes=2, per_programme=3)
        reference = rg.tl.build_perturbation_reference(
            adata, unit="log1p_cp10k", context_key="cell_type", batch_key="batch"
        )
        rg.tl.fit(reference, method="same_perturbation")
        controls = adata[adata.obs["perturbation"] == "control"]
        predicted = rg.tl.perturb(controls, reference, perturbations="P1", context_key="cell_type", unit="log1p_cp10k")
        row = predicted[predicted.obs["context"] == "a"][:1]
        np.testing.assert_allclose(row.layers["response"], reference["b:P1"].X, atol=1e-5)
        with pytest.raises(KeyError, match="no embedding and no row of 'P99'"):
            rg.tl.perturb(controls, reference, perturbations="P99", context_key="cell_type", unit="log1p_cp10k")


class TestPredicted:
    @pytest.fixture
    def reference(self, given):
        reference = rg.tl.build_perturbation_reference(given[0], **LFC)
        rg.tl.fit(reference, method="same_perturbation")
        return reference

    def test_a_table_of_responses(self, given, reference):
        contexts = pd.DataFrame({"context": ["b", "a", "a"]})
        table = rg.tl.perturb(contexts, reference, perturbations=["P2", "control"], context_key="context")
        assert list(table.obs_names) == ["b:P2", "a:P2", "b:control", "a:control"]
        np.testing.assert_allclose(table["a:P2"].X, given[0]["b|P2"].X, atol=1e-6)
        np.testing.assert_array_equal(table.X, table.layers["response"])
        assert not table["a:control"].X.any()
        assert table.uns["retrieval"]["unit"] == "log fold change"
        assert list(table.obs["task"]) == ["unseen here", "unseen here", "control", "control"]
        lines = rg.get.explain(table, reference, obs_names="a:P2", genes=["GENE3"])
        assert lines["contribution"].sum() == pytest.approx(float(table["a:P2", "GENE3"].X[0, 0]), abs=1e-5)
        assert list(rg.get.neighbors(table, obs_names="a:P2")["reference"]) == ["b:P2"]
        one = rg.tl.perturb(given[0], reference, perturbations="P2", context_key="context", genes="GENE5")
        assert one.shape == (2, 1)

    def test_what_may_be_used_decides_the_task(self, given):
        reference = rg.tl.build_perturbation_reference(given[0], embedding=given[1], **LFC)
        rg.tl.fit(reference, method="knn")
        ask = {"perturbations": "P2", "context_key": "context"}
        here = rg.tl.perturb(given[0].obs, reference, **ask)
        nowhere = rg.tl.perturb(given[0].obs, reference, exclude="perturbation", **ask)
        measured = rg.tl.perturb(given[0].obs, reference, exclude=(), **ask)
        tasks = [set(one.obs["task"]) for one in (here, nowhere, measured)]
        assert tasks == [{"unseen here"}, {"unseen perturbation"}, {"measured here"}]

    def test_a_combination_that_may_be_used_is_not_nothing(self, given):
        adata, embedding = given
        names = {"P5": "P5+P6"}
        both = adata[adata.obs["perturbation"] == "P5"].copy()
        both.obs["perturbation"] = both.obs["perturbation"].astype(str).replace(names)
        both.obs_names = [f"{name}+P6" for name in both.obs_names]
        reference = rg.tl.build_perturbation_reference(ad.concat([adata, both]), embedding=embedding, **LFC)
        rg.tl.fit(reference, method="knn")
        ask = {"perturbations": ["P5", "P2", "P5+P6"], "context_key": "context"}
        here = rg.tl.perturb(adata.obs[:1], reference, **ask)
        assert list(here.obs["task"]) == ["unseen here"] * 3
        nowhere = rg.tl.perturb(adata.obs[:1], reference, exclude="perturbation", **ask)
        said = ["measured in a combination", "unseen perturbation", "unseen perturbation"]
        assert list(nowhere.obs["task"]) == said
        assert "P5+P6" in set(rg.get.neighbors(nowhere, obs_names="a:P5")["perturbation"])
        where = {"perturbation": [name for name in reference.obs["perturbation"].unique() if name != "P5+P6"]}
        without = rg.tl.perturb(adata.obs[:1], reference, exclude="perturbation", where=where, **ask)
        assert list(without.obs["task"]) == ["unseen perturbation"] * 3

    def test_a_new_context(self, given, caplog):
        reference = rg.tl.build_perturbation_reference(given[0], embedding=given[1], **LFC)
        rg.tl.fit(reference, method="mean")
        contexts = pd.DataFrame({"context": ["c"]})
        table = rg.tl.perturb(contexts, reference, perturbations="P2", context_key="context")
        assert "Nothing is known of 'c'" in caplog.text
        np.testing.assert_allclose(table.X[0], given[0].X.mean(axis=0), atol=1e-5)

    def test_tissue_is_refused(self, reference):
        from ..screens import planted_tissue

        sdata = planted_tissue(planted_screen(n_programmes=2, per_programme=2)[0], side=4)
        with pytest.raises(ValueError, match=r"built from responses.*has no cells"):
            rg.tl.perturb_tissue(sdata, reference, perturbations="P1", unit="log1p_cp10k")

    def test_names_that_no_row_has(self, reference, given):
        with pytest.raises(KeyError, match=r"no embedding and no row of 'P77'; available: 'P0', 'P1', 'P10'"):
            rg.tl.perturb(given[0].obs, reference, perturbations="P77", context_key="context")
