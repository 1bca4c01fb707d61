"""Gene names brought to current symbols."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd.reference.symbols import load_table

# EPCAM, KRT8 and TENT5C; one alias; one that stands for two genes; one that nobody knows.
NAMES = ["TENT5C", "EPCAM", "ENSG00000170421.12", "HER-2", "STRA13", "my_probe", "FAM46C"]
MORE = [name for name in sorted(load_table("human").symbols) if name not in NAMES][:35]
NEW = ["TENT5C", "EPCAM", "KRT8", "ERBB2", "STRA13", "my_probe"]


@pytest.fixture
def counts(rng):
    return rng.poisson(3, (8, len(NAMES))).astype(np.float32)


@pytest.fixture
def adata(counts):
    adata = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame({"donor": list("aabbccdd")}, index=[f"s{i}" for i in range(8)]),
        var=pd.DataFrame({"length": np.arange(len(NAMES))}, index=NAMES),
        layers={"dense": counts * 2},
        obsm={"spatial": np.zeros((8, 2))},
        varm={"loadings": np.arange(len(NAMES) * 2.0).reshape(-1, 2)},
    )
    adata.uns["ragst"] = {"source": {"tissue": "breast"}}
    return adata


def same(first, second):
    pd.testing.assert_frame_equal(first.var, second.var)
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert list(first.layers) == list(second.layers) and list(first.uns["ragst"]) == list(second.uns["ragst"])


def test_report(adata):
    before = adata.copy()
    report = rg.pp.harmonize_genes(adata, inplace=False, species="human")
    same(adata, before)
    assert list(report.index) == NAMES and list(report["name"]) == NAMES
    assert list(report["gene"]) == [*NEW, "TENT5C"]
    assert list(report["action"]) == ["merged", "kept", "renamed", "renamed", "kept", "kept", "merged"]
    how = ["symbol", "symbol", "ensembl_version", "alias", "ambiguous", "unknown", "previous"]
    assert list(report["how"]) == how
    assert report.loc["STRA13", "candidates"] == "BHLHE40|CENPX" and report.loc["STRA13", "symbol"] == ""


def test_table_is_renamed_and_counts_are_added_up(adata, counts):
    report = rg.pp.harmonize_genes(adata, species="human")
    assert list(adata.var_names) == NEW
    expected = counts[:, :6].copy()
    expected[:, 0] += counts[:, 6]
    assert sp.issparse(adata.X) and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    np.testing.assert_array_equal(adata.layers["dense"], expected * 2)
    np.testing.assert_array_equal(adata.varm["loadings"], np.arange(14.0).reshape(-1, 2)[:6])
    assert list(adata.var["length"]) == list(range(6)) and list(adata.obs["donor"]) == list("aabbccdd")
    assert adata.var.loc["TENT5C", "gene_original"] == "TENT5C|FAM46C"
    assert adata.var.loc["TENT5C", "gene_how"] == "symbol|previous"
    header = adata.uns["ragst"]["genes"]
    assert adata.uns["ragst"]["source"] == {"tissue": "breast"}
    assert header["species"] == header["measured_in"] == "human"
    assert header["action"] == report["action"].value_counts().to_dict() == {"kept": 3, "merged": 2, "renamed": 2}
    assert any("GENCODE 48" in source for source in header["sources"])


def test_unknown_genes_are_dropped_on_request(adata):
    report = rg.pp.harmonize_genes(adata, species="human", unknown="drop")
    assert list(adata.var_names) == NEW[:4]
    assert list(report.index[report["action"] == "dropped"]) == ["STRA13", "my_probe"]
    assert list(adata.uns["ragst"]["genes"]["dropped"]) == ["STRA13", "my_probe"]


def test_a_second_run_changes_nothing_and_keeps_the_first_names(adata):
    rg.pp.harmonize_genes(adata, species="human")
    before = adata.copy()
    report = rg.pp.harmonize_genes(adata, species="human")
    assert set(report["action"]) == {"kept"}
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert list(adata.var["gene_original"]) == list(before.var["gene_original"])


def test_names_from_a_column(adata):
    adata.var["feature_name"] = adata.var_names
    adata.var_names = [f"probe{i}" for i in range(7)]
    adata.var.loc["probe5", "feature_name"] = "nan"
    report = rg.pp.harmonize_genes(adata, species="human", gene_symbols="feature_name")
    assert list(adata.var_names) == [*NEW[:5], "probe5"]
    assert list(report.index) == [f"probe{i}" for i in range(7)]
    assert adata.var.loc["TENT5C", "gene_original"] == "probe0|probe6"


def test_orthologues_on_request_only(adata):
    report = rg.pp.harmonize_genes(adata, species="human", orthologues_to="mouse")
    assert list(adata.var_names) == ["Tent5c", "Epcam", "Krt8", "Erbb2"]
    assert list(report.index[report["action"] == "dropped"]) == ["STRA13", "my_probe"]
    assert adata.uns["ragst"]["genes"]["species"] == "mouse"
    assert adata.uns["ragst"]["genes"]["measured_in"] == "human"
    rg.pp.harmonize_genes(adata, orthologues_to="mouse")
    assert list(adata.var_names) == ["Tent5c", "Epcam", "Krt8", "Erbb2"]


def test_views_and_empty_expression(adata):
    view = adata[2:5]
    rg.pp.harmonize_genes(view, species="human")
    assert view.shape == (3, 6) and adata.shape == (8, 7)
    bare = ad.AnnData(var=pd.DataFrame(index=NAMES), obs=adata.obs)
    rg.pp.harmonize_genes(bare, species="human")
    assert list(bare.var_names) == NEW and bare.X is None


def test_it_can_be_written(adata, tmp_path):
    rg.pp.harmonize_genes(adata, species="human")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert list(back.var["gene_original"]) == list(adata.var["gene_original"])
        assert list(back.uns["ragst"]["genes"]["sources"]) == list(adata.uns["ragst"]["genes"]["sources"])
        assert len(back.uns["ragst"]["genes"]["dropped"]) == 0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.log1p, "fractions up to"),
        (lambda x: x - 300, "negative values"),
        (lambda x: x / x.sum(axis=1, keepdims=True) * 1e4, "counts per 10,000"),
    ],
)
def test_only_counts_are_merged(adata, counts, values, found):
    # Rows of many genes: few values say little about a unit.
    wide = ad.AnnData(
        sp.csr_matrix(values(np.tile(counts + 1, (1, 6)) * 200)),
        var=pd.DataFrame(index=NAMES + MORE),
    )
    before = wide.copy()
    with pytest.raises(
        ValueError, match=rf"mean one gene \('TENT5C'\), and only counts can be added up: X holds .*{found}"
    ):
        rg.pp.harmonize_genes(wide, species="human")
    assert list(wide.var_names) == list(before.var_names)
    # Without anything to merge, logarithms are renamed.
    single = wide[:, 1:].copy()
    rg.pp.harmonize_genes(single, species="human")
    np.testing.assert_array_equal(single.X.toarray(), before.X.toarray()[:, 1:])


def test_a_layer_of_logarithms_is_refused_too(adata, counts):
    adata.layers["log"] = np.log1p(counts)
    with pytest.raises(ValueError, match=r"layers\['log'\] holds"):
        rg.pp.harmonize_genes(adata, species="human")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"species": "rat"}, "`species` is 'rat'"),
        ({"orthologues_to": "Human"}, "Did you mean 'human'"),
        ({"unknown": "guess"}, "`unknown` is 'guess'"),
        (
            {"species": "mouse"},
            r"not those of mouse: 0% are names of mouse, and 43% .* Is `rg.pp.harmonize_genes\(..., species='human'\)` meant",
        ),
    ],
)
def test_bad_arguments(adata, kwargs, message):
    before = adata.copy()
    with pytest.raises(ValueError, match=message):
        rg.pp.harmonize_genes(adata, **kwargs)
    same(adata, before)


def test_bad_objects(adata, predicted, reference, tmp_path):
    with pytest.raises(KeyError, match=r"'nmes' not found in `table.var`"):
        rg.pp.harmonize_genes(adata, gene_symbols="nmes")
    with pytest.raises(KeyError, match=r"'tabel' not found in `sdata.tables`"):
        rg.pp.harmonize_genes(predicted, table_key="tabel")
    with pytest.raises(TypeError, match="`sdata` is a DataFrame"):
        rg.pp.harmonize_genes(adata.obs)
    with pytest.raises(ValueError, match=r"was predicted by `rg.tl.predict`.*Harmonise the sections before"):
        rg.pp.harmonize_genes(predicted, table_key="predicted")
    with pytest.raises(ValueError, match="is a reference"):
        rg.pp.harmonize_genes(reference)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"backed by .*a\.h5ad"):
        rg.pp.harmonize_genes(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"), species="human")


def test_mixed_species_and_nothing_left(adata):
    adata.var_names = ["TENT5C", "EPCAM", "KRT8", "ERBB2", "Epcam", "Krt8", "Erbb2"]
    for species in (None, "human"):
        with pytest.raises(ValueError, match=r"mix species: .*Split the table by species"):
            rg.pp.harmonize_genes(adata, species=species)
    only = adata[:, :1].copy()
    only.var_names = ["CYP2D6"]
    with pytest.raises(ValueError, match=r"No gene is left of 1: 1 dropped"):
        rg.pp.harmonize_genes(only, species="human", orthologues_to="mouse")


def test_old_and_new_names_of_one_section_make_the_same_reference(sections, data_dir):
    """Sections of one tissue whose genes have the names of 2016 in one, and current ones in the other."""
    names = ad.read_h5ad(data_dir / "histology" / "her2st" / "B4.h5ad").var_names[:260]
    current = rg.pp.harmonize_genes(ad.AnnData(var=pd.DataFrame(index=names)), inplace=False)["gene"]
    assert (current != names).sum() >= 5 and current.is_unique
    for sample, own in (("donor1", list(names)), ("donor2", list(current))):
        sections[sample].tables["table"].var_names = own
    both = {name: sections[name] for name in ("donor1", "donor2")}
    assert rg.tl.build_reference(both, use_rep="X_colour", thumbnails=False).n_vars > 260
    for sdata in both.values():
        rg.pp.harmonize_genes(sdata)
    reference = rg.tl.build_reference(both, use_rep="X_colour", thumbnails=False)
    assert sorted(reference.var_names) == sorted(current)
    assert (reference.var["n_measured"] == reference.n_obs).all()


def test_sections_of_two_species_make_no_reference_without_orthologues(sections, data_dir):
    mouse = ad.read_h5ad(data_dir / "histology" / "mob2k" / "MOB1.h5ad").var_names
    to_human = rg.pp.harmonize_genes(ad.AnnData(var=pd.DataFrame(index=mouse)), inplace=False, orthologues_to="human")
    paired = to_human[to_human["action"] != "dropped"].iloc[:260]
    sections["donor1"].tables["table"].var_names = list(paired.index)
    sections["donor2"].tables["table"].var_names = list(paired["gene"])
    both = {name: sections[name] for name in ("donor1", "donor2")}
    with pytest.raises(ValueError, match="Sections are of two species"):
        rg.tl.build_reference(both, use_rep="X_colour", thumbnails=False)
    for sdata in both.values():
        rg.pp.harmonize_genes(sdata, orthologues_to="human")
    assert rg.tl.build_reference(both, use_rep="X_colour", thumbnails=False).n_vars == 260
