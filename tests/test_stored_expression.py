"""What of a measured table is expression: genes, whatever else was counted beside them, however it is stored."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd._gene_names import offered_names, stored_expression

PROTEINS = ["EPCAM", "CD3E", "ENSG00000000001"]
EMBEDDING = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4]}


def counted(n_genes=210, n=40):
    rng = np.random.default_rng(0)
    values = rng.poisson(3.0, size=(3 * n, n_genes)).astype(np.float32)
    obs = pd.DataFrame({"perturbation": np.repeat(["control", "STAT1", "JAK2"], n)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    names = ["EPCAM", "CD3E", *(f"GENE{i}" for i in range(n_genes - 2))]
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=names))


def with_proteins(table, kind="Antibody Capture"):
    """The same cells, with antibodies of the same names counted first."""
    extra = np.random.default_rng(1).poisson(400.0, size=(table.n_obs, len(PROTEINS))).astype(np.float32)
    kinds = [kind] * len(PROTEINS) + ["Gene Expression"] * table.n_vars
    var = pd.DataFrame({"feature_types": pd.Categorical(kinds)}, index=[*PROTEINS, *table.var_names])
    x = table.X.toarray() if sp.issparse(table.X) else table.X
    return ad.AnnData(np.hstack([extra, x]), obs=table.obs.copy(), var=var, obsm=dict(table.obsm), uns=dict(table.uns))


@pytest.mark.parametrize("kind", ["Antibody Capture", "CRISPR Guide Capture", "Negative Control Probe", None])
def test_only_genes_are_expression(kind, caplog):
    table = counted()
    both = with_proteins(table, kind)
    caplog.set_level("INFO")
    values, offered = stored_expression(both, None, "table", "")
    np.testing.assert_array_equal(values.toarray(), table.X)
    assert offered == offered_names(both) == {"symbol": list(table.var_names)}
    assert f"{kind or 'nan'} (3)" in caplog.text


def test_capitals_of_the_type_do_not_matter():
    both = with_proteins(counted())
    both.var["feature_types"] = both.var["feature_types"].astype(str).str.lower()
    assert stored_expression(both, None, "table", "")[0].shape[1] == 210


def test_control_probes_are_known_by_their_names(caplog):
    probes = (
        "NegControlProbe_00042 NegControlCodeword_0500 BLANK_0006 Blank-1 NegPrb1 Negative1 SystemControl1 ERCC-00002"
    )
    genes = ["NEGR1", "ERCC1", "BLNK", "NELFB", "ANTXR1"]
    names = [*probes.split(), *genes]
    table = ad.AnnData(np.ones((3, len(names)), np.float32), var=pd.DataFrame(index=names))
    caplog.set_level("INFO")
    assert stored_expression(table, None, "table", "")[0].shape == (3, len(genes))
    assert offered_names(table) == {"symbol": genes}
    assert "8 control probes are left out: 'NegControlProbe_00042'" in caplog.text


def test_a_column_that_knows_no_genes_is_refused():
    table = counted()
    table.var["feature_types"] = "GEX"
    with pytest.raises(ValueError, match=r"No feature has 'Gene Expression' in .*; found 'GEX \(210\)'"):
        rg.tl.build_perturbation_reference(table, embedding=EMBEDDING)


def test_a_reference_of_sections_holds_no_proteins(sections):
    expected = rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)
    for sdata in sections.values():
        sdata.tables["table"] = with_proteins(sdata.tables["table"])
    found = rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)
    assert found.uns["ragst"]["content_hash"] == expected.uns["ragst"]["content_hash"]


def test_truth_holds_no_proteins(predicted):
    expected = rg.tl.evaluate(predicted)
    predicted.tables["table"] = with_proteins(predicted.tables["table"])
    pd.testing.assert_frame_equal(rg.tl.evaluate(predicted), expected)


def test_a_screen_holds_no_guides():
    table = counted()
    expected, found = (
        rg.tl.build_perturbation_reference(one, embedding=EMBEDDING)
        for one in (table, with_proteins(table, "CRISPR Guide Capture"))
    )
    assert found.uns["ragst"]["content_hash"] == expected.uns["ragst"]["content_hash"]
    rg.tl.fit(found, method="mean")
    answers = [rg.tl.perturb(one[:5].copy(), found, perturbations="STAT1") for one in (table, with_proteins(table))]
    np.testing.assert_array_equal(*(one.X for one in answers))


def test_names_are_not_merged_across_types():
    table = counted()[:, :2].copy()
    both = with_proteins(table)
    both.var_names = ["CD3E.1", "CD3E", "CD326", "EPCAM", "ENSG00000198851"]
    report = rg.pp.harmonize_genes(both, species="human", unknown="drop")
    assert list(report["how"][:3]) == ["other_feature"] * 3
    assert list(report["action"]) == ["kept", "renamed", "kept", "kept", "renamed"]
    assert list(both.var_names) == ["CD3E.1", "CD3E (Antibody Capture)", "CD326", "EPCAM", "CD3E"]
    np.testing.assert_array_equal(both.X[:, 3:], table.X)


class TestStorage:
    def masked(self):
        table = counted()
        table.X = np.ma.masked_array(table.X, mask=np.eye(*table.shape))
        return table

    @pytest.mark.parametrize("view", [False, True])
    def test_masked_values_are_refused(self, view):
        table = self.masked()
        with pytest.raises(TypeError, match="masked array with 120 masked values, neither measured nor zero"):
            stored_expression(table[:] if view else table, None, "table", "")

    def test_masked_layers_and_embeddings_are_refused(self, sections):
        table = sections["donor1"].tables["table"]
        table.layers["counts"] = np.ma.masked_array(table.X.toarray(), mask=False)
        with pytest.raises(TypeError, match="masked array"):
            rg.tl.build_reference(sections["donor1"], use_rep="X_colour", layer="counts")
        mask = np.zeros(table.obsm["X_colour"].shape, dtype=bool)
        mask[3] = True
        table.obsm["X_colour"] = np.ma.masked_array(table.obsm["X_colour"], mask=mask)
        with pytest.raises(ValueError, match="is NaN or infinite in 1 rows"):
            rg.tl.build_reference(sections["donor1"], use_rep="X_colour")

    @pytest.mark.parametrize("store", [np.asfortranarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
    @pytest.mark.parametrize("backed", [False, True])
    def test_the_same_values(self, store, backed, tmp_path):
        table = counted()
        other = table.copy()
        other.X = store(table.X)
        if backed:
            other.write_h5ad(tmp_path / "cells.h5ad")
            other = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        order = np.random.default_rng(0).permutation(table.n_obs)
        for one, expected in ((other, table.X), (other[order], table.X[order])):
            np.testing.assert_array_equal(stored_expression(one, None, "table", "")[0].toarray(), expected)
