"""`rg.tl.build_reference`."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from spatialdata.transformations import Scale, set_transformation

import ragst_sd as rg


def test_rows_values_and_annotations(sections, reference):
    assert list(reference.obs.columns) == ["donor", "sample", "tissue", "technology", "x_um", "y_um", "panel"]
    parts = []
    for name in ("donor1", "donor2"):
        table = sections[name].tables["table"]
        counts = table.X.toarray().astype(float)
        parts.append(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
        rows = reference[[f"{name}:{spot}" for spot in table.obs_names]]
        np.testing.assert_array_equal(rows.obsm["X_colour"], table.obsm["X_colour"])
        np.testing.assert_allclose(rows.obs[["x_um", "y_um"]], table.obsm["spatial"])
    order = sections["donor1"].tables["table"].var_names.get_indexer(reference.var_names)
    np.testing.assert_allclose(reference.X.toarray(), np.vstack(parts)[:, order], atol=1e-5)
    assert (reference.var["n_measured"] == reference.n_obs).all()
    assert reference.uns["ragst"]["normalization"]["unit"] == "log1p(counts per 10,000)"


def test_thumbnails_show_the_tiles(sections, reference):
    """The thumbnail and the embedding of a spot show the same place, if from levels of different resolution."""
    assert reference.obsm["thumbnail"].shape == (reference.n_obs, 64, 64, 3)
    assert reference.obsm["thumbnail"].dtype == np.uint8
    means = reference.obsm["thumbnail"].reshape(reference.n_obs, -1, 3).mean(axis=1)
    np.testing.assert_allclose(means, reference.obsm["X_colour"][:, :3] * 255, atol=4)


def test_places_and_thumbnails_follow_an_image_that_was_resampled(sections, reference):
    sdata = sections["donor1"]
    for name in ("he", "spots"):
        set_transformation(sdata[name], Scale([0.5, 0.5], ("x", "y")), "half")
    small = sdata.subset(["he", "spots", "table"]).transform_to_coordinate_system("half", maintain_positioning=True)
    found = rg.tl.build_reference({"donor1": small}, use_rep="X_colour")
    rows = reference[found.obs_names]
    np.testing.assert_allclose(found.obs[["x_um", "y_um"]], rows.obs[["x_um", "y_um"]], atol=1)
    # The same field of view, at half the resolution.
    means = [table.obsm["thumbnail"].astype(float).mean(axis=(1, 2)) for table in (found, rows)]
    assert abs(means[0] - means[1]).mean() < 3


def test_list_mapping_and_single_section(sections):
    one = rg.tl.build_reference(sections["donor1"], use_rep="X_colour")
    assert set(one.obs["sample"]) == {"donor1"}
    many = rg.tl.build_reference(list(sections.values()), use_rep="X_colour")
    assert set(many.obs["sample"]) == {"donor1", "donor2", "donor3"}


def test_sources_and_extra_columns(sections):
    reference = rg.tl.build_reference(
        sections,
        use_rep="X_colour",
        obs=["label"],
        sources={"donor1": {"tissue": "colon", "technology": "Visium", "license": "MIT", "citation": "X 2026"}},
    )
    tissue = reference.obs["tissue"].astype(str)
    assert set(tissue[reference.obs["sample"] == "donor1"]) == {"colon"}
    assert "colon" not in set(tissue[reference.obs["sample"] != "donor1"])
    assert reference.uns["ragst"]["sources"].loc["donor1", "license"] == "MIT"
    assert reference.obs["label"].nunique() > 1


def test_different_panels_keep_missing_apart_from_zero(sections):
    genes = list(sections["donor1"].tables["table"].var_names)
    sections["donor2"].tables["table"] = sections["donor2"].tables["table"][:, genes[20:]].copy()
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    measured = pd.DataFrame(
        reference.varm["measured"], index=reference.var_names, columns=reference.uns["ragst"]["panels"]
    )
    panel = reference.obs["panel"].astype(str)[reference.obs["sample"] == "donor2"].unique().item()
    assert not measured.loc[genes[:20], panel].any()
    assert measured.loc[genes[20:]].all().all()
    assert set(reference.uns["ragst"]["normalization"]["size_factor_genes"]) == set(genes[20:])
    assert (reference.var.loc[genes[:20], "n_measured"] < reference.n_obs).all()


def test_genes_not_listed_by_a_section_of_a_named_panel_are_zeros(sections):
    genes = list(sections["donor1"].tables["table"].var_names)
    sections["donor2"].tables["table"] = sections["donor2"].tables["table"][:, genes[20:]].copy()
    sources = {name: {"panel": "our probes"} for name in sections}
    reference = rg.tl.build_reference(sections, use_rep="X_colour", sources=sources)
    assert reference.varm["measured"].all()
    assert list(reference.uns["ragst"]["panels"]) == ["our probes"]


def test_symbols_are_found_beside_ids(sections):
    table = sections["donor2"].tables["table"]
    table.var["gene_symbols"] = list(table.var_names)
    table.var_names = [f"ENSG{i:011d}" for i in range(table.n_vars)]
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    assert reference.varm["measured"].all()
    assert "EPCAM" in reference.var_names


def test_duplicated_names_are_added_up(sections, caplog):
    plain = rg.tl.build_reference(sections["donor1"], use_rep="X_colour")
    table = sections["donor1"].tables["table"]
    names = list(table.var_names)
    first, second = names[0], names[1]
    names[1] = first
    table.var_names = names
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        merged = rg.tl.build_reference(sections["donor1"], use_rep="X_colour")
    assert "1 duplicated gene names are added up" in caplog.text
    expected = plain.layers["counts"][:, [plain.var_names.get_loc(first), plain.var_names.get_loc(second)]].sum(axis=1)
    got = merged.layers["counts"][:, merged.var_names.get_loc(first)].toarray()
    np.testing.assert_allclose(got.ravel(), np.asarray(expected).ravel())
    assert second not in merged.var_names


def test_log_normalised_input_gives_the_same_values(sections, reference):
    for sdata in sections.values():
        table = sdata.tables["table"]
        counts = table.X.toarray().astype(float)
        table.layers["logged"] = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    again = rg.tl.build_reference(
        {name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour", layer="logged", unit="log1p_cp10k"
    )
    np.testing.assert_allclose(again.X.toarray(), reference.X.toarray(), atol=1e-5)
    assert "counts" not in again.layers


def test_spots_without_counts_are_left_out(sections, caplog):
    table = sections["donor1"].tables["table"]
    counts = table.X.toarray()
    counts[5] = 0
    table.X = counts
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        reference = rg.tl.build_reference(sections["donor1"], use_rep="X_colour")
    assert reference.n_obs == table.n_obs - 1
    assert "1 spots have no counts" in caplog.text


def test_spots_beside_the_tissue_are_left_out(sections, caplog):
    table = sections["donor1"].tables["table"]
    table.obs["in_tissue"] = (np.arange(table.n_obs) > 3).astype(int)
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        reference = rg.tl.build_reference(sections["donor1"], use_rep="X_colour")
    assert reference.n_obs == table.n_obs - 4
    assert "4 spots lie beside the tissue by `obs['in_tissue']`" in caplog.text


def test_same_image_under_two_donors_warns(sections, caplog):
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.build_reference(sections, use_rep="X_colour")
    assert "identical images" not in caplog.text
    from spatialdata import deepcopy

    twin = deepcopy(sections["donor1"])
    twin.tables["table"].obs["donor"] = "twin"
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.build_reference({**sections, "twin": twin}, use_rep="X_colour", on_duplicate="warn")
    assert "'donor1' and 'twin' have identical images" in caplog.text


def test_gene_selection_keeps_the_size_factors(sections, reference):
    genes = list(reference.var_names[[7, 3]])
    part = rg.tl.build_reference(
        {name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour", genes=genes
    )
    assert list(part.var_names) == genes
    np.testing.assert_allclose(part.X.toarray(), reference[:, genes].X.toarray(), atol=1e-6)


@pytest.mark.parametrize("standardize", [True, False])
def test_standardisation_takes_out_stain(sections, standardize):
    reference = rg.tl.build_reference(sections, use_rep="X_colour", standardize=standardize)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    key = reference.obsm["retrieval_key"]
    donors = reference.obs["donor"].astype(str)
    centres = np.stack([key[donors == donor].mean(axis=0) for donor in donors.unique()])
    spread = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max() / key.std()
    assert (spread < 1e-3) == standardize


def test_no_section_of_a_list_is_lost(sections):
    members = list(sections.values())
    for sdata in members[:2]:
        del sdata.tables["table"].obs["sample"]
    members[2].tables["table"].obs["sample"] = "sample2"
    reference = rg.tl.build_reference(members, use_rep="X_colour")
    assert set(reference.obs["sample"]) == {"sample1", "sample2", "sample3"}
    assert reference.n_obs == sum(sdata.tables["table"].n_obs for sdata in members)
    members[1].tables["table"].obs["sample"] = "sample2"
    with pytest.raises(ValueError, match="names in `obs\\['sample'\\]` are duplicated, for example 'sample2'"):
        rg.tl.build_reference(members, use_rep="X_colour")


def test_rows_without_counts_in_the_shared_genes_are_left_out(sections, caplog):
    """Their size factor would be zero, and all their genes measured zeros."""
    genes = list(sections["donor1"].tables["table"].var_names)
    sections["donor2"].tables["table"] = sections["donor2"].tables["table"][:, genes[20:]].copy()
    counts = sections["donor1"].tables["table"].X.toarray()
    counts[3] = 0
    counts[3, :20] = 7
    sections["donor1"].tables["table"].X = counts
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        reference = rg.tl.build_reference(sections, use_rep="X_colour")
    assert "1 spots have no counts in the 240 genes" in caplog.text
    assert f"donor1:{sections['donor1'].tables['table'].obs_names[3]}" not in reference.obs_names
    assert reference.obsm["thumbnail"].shape[0] == reference.n_obs == reference.layers["counts"].shape[0]


def test_tissue_may_vary_within_a_section(sections):
    for sdata in sections.values():
        obs = sdata.tables["table"].obs
        obs["tissue"] = np.where(np.arange(len(obs)) % 2, "tumour", "normal")
    reference = rg.tl.build_reference(sections, use_rep="X_colour", obs=["tissue"])
    assert set(reference.obs["tissue"]) == {"tumour", "normal"}
    with pytest.raises(ValueError, match="`obs` names 'panel'"):
        rg.tl.build_reference(sections, use_rep="X_colour", obs=["panel"])


def test_log_values_of_several_panels_are_refused(sections):
    for i, sdata in enumerate(sections.values()):
        table = sdata.tables["table"][:, 5 * i :].copy()
        table.X = np.log1p(table.X.toarray() / table.X.sum(axis=1) * 1e4)
        sdata.tables["table"] = table
    with pytest.raises(ValueError, match="Sections of 3 panels"):
        rg.tl.build_reference(sections, use_rep="X_colour", unit="log1p_cp10k")


def test_names_may_be_given_one_by_one(sections):
    reference = rg.tl.build_reference(sections, use_rep="X_colour", genes="EPCAM", obs="label")
    assert list(reference.var_names) == ["EPCAM"]
    assert "label" in reference.obs


@pytest.mark.parametrize("kind", ["csc", "float64", "int64", "dask"])
def test_counts_of_any_kind(sections, reference, kind):
    import dask.array as da
    import scipy.sparse as sp

    for name in ("donor1", "donor2"):
        table = sections[name].tables["table"]
        dense = table.X.toarray()
        table.layers["kind"] = {
            "csc": lambda x: sp.csc_matrix(x),
            "float64": lambda x: x.astype(np.float64),
            "int64": lambda x: x.astype(np.int64),
            "dask": lambda x: da.from_array(x, chunks=20),
        }[kind](dense)
    again = rg.tl.build_reference(
        {name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour", layer="kind"
    )
    assert again.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]


def many_samples(template, n, *, spots=60, n_genes=1500):
    """Functions that each make a section of their own: expression and embedding only, with the header of `template`."""
    import anndata as ad
    from spatialdata import SpatialData

    header = template.tables["table"].uns["ragst"]["embeddings"]["X_colour"]
    width = template.tables["table"].obsm["X_colour"].shape[1]
    names = [f"G{i}" for i in range(n_genes)]
    opened = []

    def make(i):
        rng = np.random.default_rng(i)
        opened.append(i)
        table = ad.AnnData(
            rng.poisson(1.0, (spots, n_genes)).astype(np.float32),
            obs=pd.DataFrame({"donor": f"donor{i}"}, index=[f"spot{j}" for j in range(spots)]),
            var=pd.DataFrame(index=names),
            obsm={"X_colour": rng.normal(size=(spots, width)).astype(np.float32)},
        )
        table.uns["ragst"] = {"embeddings": {"X_colour": header | {"image_hash": str(i)}}}
        return SpatialData(tables={"table": table})

    return {f"s{i}": lambda i=i: make(i) for i in range(n)}, opened


@pytest.mark.slow
def test_memory_is_that_of_the_result_and_of_one_section(sections, monkeypatch):
    """Samples are opened one after the other; what is needed beside the result does not grow with their number."""
    import tracemalloc

    from ragst_sd import _reference
    from ragst_sd.reference import normalize

    # The blocks in which rows are hashed and take logarithms, in proportion to these small sections.
    monkeypatch.setattr(_reference, "HASH_BLOCK", 60)
    monkeypatch.setattr(normalize, "_BLOCK_ROWS", 60)
    beside = {}
    for n in (5, 50):
        samples, opened = many_samples(sections["donor1"], n)
        rg.tl.build_reference(dict(list(samples.items())[:2]), use_rep="X_colour", thumbnails=False)
        opened.clear()
        tracemalloc.start()
        reference = rg.tl.build_reference(samples, use_rep="X_colour", thumbnails=False)
        result, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert opened == list(range(n))
        assert reference.n_obs == 60 * n
        size = sum(x.data.nbytes + x.indices.nbytes for x in (reference.X, reference.layers["counts"]))
        beside[n] = (peak - result) / (size / n)
    # In multiples of what one section adds to the result; twice the result would be 50.
    assert beside[50] < 12


def test_functions_give_what_sections_give(sections, reference):
    lazily = {name: lambda name=name: sections[name] for name in ("donor1", "donor2")}
    again = rg.tl.build_reference(lazily, use_rep="X_colour")
    assert again.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]
    np.testing.assert_array_equal(again.obsm["thumbnail"], reference.obsm["thumbnail"])
    with pytest.raises(TypeError, match="SpatialData"):
        rg.tl.build_reference({"donor1": lambda: 3}, use_rep="X_colour")


def test_sections_of_one_tissue_are_refused(sections):
    from spatialdata import deepcopy

    twin = deepcopy(sections["donor1"])
    twin.tables["table"].obs["donor"] = "twin"
    with pytest.raises(ValueError, match=r"'donor1' and 'twin' have identical images.*Give both the same donor"):
        rg.tl.build_reference({**sections, "twin": twin}, use_rep="X_colour")
    with pytest.raises(ValueError, match="`on_duplicate` is 'stop'"):
        rg.tl.build_reference(sections, use_rep="X_colour", on_duplicate="stop")


def test_donors_on_one_slide_are_no_duplicates(sections):
    """Two donors whose spots lie on different places of one picture."""
    from spatialdata import deepcopy

    whole = sections["donor1"]
    half = whole["table"].obsm["spatial"][:, 0] < np.median(whole["table"].obsm["spatial"][:, 0])
    parts = {"left": deepcopy(whole), "right": deepcopy(whole)}
    for name, keep in (("left", half), ("right", ~half)):
        parts[name].tables["table"] = parts[name].tables.pop("table")[keep].copy()
        parts[name]["table"].obs["donor"] = name
    reference = rg.tl.build_reference(parts, use_rep="X_colour")
    assert set(reference.obs["donor"]) == {"left", "right"}
