"""`rg.tl.merge_references`."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ragst_sd as rg


def build(sections, names, **kwargs):
    return rg.tl.build_reference({name: sections[name] for name in names}, use_rep="X_colour", **kwargs)


def content_hash(reference):
    return reference.uns["ragst"]["content_hash"]


def without_genes(sections, name, n):
    """A section whose panel lacks `n` genes."""
    table = sections[name].tables["table"]
    sections[name].tables["table"] = table[:, n:].copy()


def same_content(first, second):
    assert content_hash(first) == content_hash(second)
    second = second[first.obs_names]
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    np.testing.assert_array_equal(first.layers["counts"].toarray(), second.layers["counts"].toarray())
    np.testing.assert_array_equal(first.obsm["thumbnail"], second.obsm["thumbnail"])
    assert first.obs.astype(str).equals(second.obs.astype(str))
    assert first.var.equals(second.var)
    for name in ("sections", "sources", "panels", "normalization"):
        a, b = (one.uns["ragst"][name] for one in (first, second))
        assert set(a) == set(b)
    assert list(first.uns["ragst"]["sections"]["sample"]) == list(first.uns["ragst"]["sources"].index)


def test_appending_gives_what_building_at_once_gives(sections):
    everything = build(sections, sections)
    merged = rg.tl.merge_references({"old": build(sections, ["donor1", "donor2"]), "new": build(sections, ["donor3"])})
    same_content(merged, everything)
    other_order = rg.tl.merge_references([build(sections, ["donor3"]), build(sections, ["donor2", "donor1"])])
    same_content(other_order, everything)


def test_other_panels_are_normalised_anew_from_counts(sections, caplog):
    without_genes(sections, "donor3", 20)
    first, second = build(sections, ["donor1", "donor2"]), build(sections, ["donor3"])
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        merged = rg.tl.merge_references([first, second])
    assert "references[0] is normalised anew by the 240 genes that all panels share (before: 260)" in caplog.text
    everything = build(sections, sections)
    same_content(merged, everything)
    assert not np.allclose(merged[first.obs_names, first.var_names].X.toarray(), first.X.toarray())
    del first.layers["counts"]
    with pytest.raises(ValueError, match=r"240, and it has no `layers\['counts'\]`"):
        rg.tl.merge_references([first, second])


def test_named_panels_stay_what_they_are(sections):
    without_genes(sections, "donor2", 20)
    sources = {name: {"panel": "our probes"} for name in sections}
    parts = [build(sections, [name], sources={name: sources[name]}) for name in sections]
    merged = rg.tl.merge_references(parts)
    assert list(merged.uns["ragst"]["panels"]) == ["our probes"]
    assert merged.varm["measured"].all()
    same_content(merged, build(sections, sections, sources=sources))


def test_a_source_is_removed(sections):
    without_genes(sections, "donor3", 20)
    everything = build(sections, sections)
    rest = everything[everything.obs["donor"] != "donor3"]
    pruned = rg.tl.merge_references(rest)
    same_content(pruned, build(sections, ["donor1", "donor2"]))
    assert list(pruned.uns["ragst"]["sources"].index) == ["donor1", "donor2"]
    assert everything.n_obs == sum(sdata.tables["table"].n_obs for sdata in sections.values())


def test_a_plain_subset_predicts_like_a_reference_of_its_rows(sections, query):
    sources = {name: {"tissue": "colon" if name == "donor1" else "lung"} for name in sections}
    both = build(sections, ["donor1", "donor2"], sources={k: sources[k] for k in ("donor1", "donor2")})
    colon = both[both.obs["tissue"] == "colon"].copy()
    alone = build(sections, ["donor1"], sources={"donor1": sources["donor1"]})
    for one in (colon, alone):
        rg.tl.fit(one, method="knn", n_neighbors=10)
    assert content_hash(colon) == content_hash(alone)
    first, second = (rg.tl.predict(query, one, inplace=False) for one in (colon, alone))
    np.testing.assert_array_equal(first.X, second.X)
    pruned = rg.tl.merge_references(colon)
    assert content_hash(pruned) == content_hash(alone)
    assert "fit" not in pruned.uns["ragst"]


def test_the_hash_does_not_depend_on_the_order_of_the_rows(reference, rng):
    shuffled = reference[rng.permutation(reference.n_obs)].copy()
    assert content_hash(rg.tl.merge_references(shuffled)) == content_hash(reference)


def test_the_result_is_written_read_fitted_and_predicts(sections, query, tmp_path):
    merged = rg.tl.merge_references([build(sections, ["donor1"]), build(sections, ["donor2"])])
    rg.tl.fit(merged, method="knn", n_neighbors=10)
    rg.io.write_reference(merged, tmp_path / "r.zarr.zip")
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    at_once = build(sections, ["donor1", "donor2"])
    rg.tl.fit(at_once, method="knn", n_neighbors=10)
    first, second = (rg.tl.predict(query, one, inplace=False) for one in (back, at_once))
    np.testing.assert_array_equal(first.X, second.X)


def test_references_read_from_disk_are_merged(sections, tmp_path):
    everything = build(sections, sections)
    rg.io.write_reference(everything, tmp_path / "r.zarr.zip")
    back = rg.io.read_reference(tmp_path / "r.zarr.zip")
    kept = rg.tl.merge_references(back[back.obs["donor"] != "donor1"])
    same_content(kept, build(sections, [name for name in sections if name != "donor1"]))


def test_inputs_are_left_alone(sections):
    without_genes(sections, "donor2", 20)
    first, second = build(sections, ["donor1"]), build(sections, ["donor2"])
    rg.tl.fit(first, method="knn", n_neighbors=10)
    before = first.copy()
    merged = rg.tl.merge_references([first, second])
    merged.X.data[:] = -1
    merged.obsm["X_colour"][:] = -1
    assert "fit" in first.uns["ragst"]
    np.testing.assert_array_equal(first.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(first.obsm["X_colour"], before.obsm["X_colour"])
    assert first.obs.equals(before.obs)


def test_another_encoder_is_refused(sections, embed):
    first = build(sections, ["donor1"])
    rg.pp.embed_tiles(sections["donor2"], **(embed | {"tile_px": 48, "key_added": "X_colour", "context": (1,)}))
    second = build(sections, ["donor2"])
    with pytest.raises(ValueError, match=r"old and new were made differently \(tile_px: 32 against 48; context"):
        rg.tl.merge_references({"old": first, "new": second})


def test_other_settings_and_names_of_genes_are_refused(sections):
    first = build(sections, ["donor1"])
    with pytest.raises(ValueError, match="standardize: True against False"):
        rg.tl.merge_references([first, build(sections, ["donor2"], standardize=False)])
    with pytest.raises(ValueError, match=r"references\[0\] lacks \['label'\]"):
        rg.tl.merge_references([first, build(sections, ["donor2"], obs=["label"])])
    table = sections["donor2"].tables["table"]
    symbols = list(table.var_names)
    table.var_names = [f"ENSG{i:011d}" for i in range(table.n_vars)]
    with pytest.raises(ValueError, match="naming of the expression: symbol against ensembl"):
        rg.tl.merge_references([first, build(sections, ["donor2"])])
    table.var_names = [f"{name}-other" for name in symbols]
    with pytest.raises(ValueError, match="share 0 genes"):
        rg.tl.merge_references([first, build(sections, ["donor2"])])


def test_the_same_sample_twice_is_refused(sections):
    with pytest.raises(ValueError, match=r"'donor2'.*in first and second"):
        rg.tl.merge_references(
            {"first": build(sections, ["donor1", "donor2"]), "second": build(sections, ["donor2", "donor3"])}
        )


def test_selections_of_genes_merge_only_if_they_are_alike(sections):
    genes = list(sections["donor1"].tables["table"].var_names[:30])
    parts = [build(sections, [name], genes=genes) for name in sections]
    assert content_hash(rg.tl.merge_references(parts)) == content_hash(build(sections, sections, genes=genes))
    other = build(sections, ["donor2"], genes=genes[:20])
    with pytest.raises(ValueError, match=r"selections of genes.*30 against 20, 20 in common"):
        rg.tl.merge_references([parts[0], other])
    without_genes(sections, "donor2", 40)
    with pytest.raises(ValueError, match="hold selections of genes"):
        rg.tl.merge_references([parts[0], build(sections, ["donor2"])])


def test_a_common_donor_is_named(sections, caplog):
    sections["donor2"].tables["table"].obs["donor"] = "donor1"
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.merge_references([build(sections, ["donor1"]), build(sections, ["donor2"])])
    assert "Donors 'donor1' are in several references" in caplog.text


def test_the_same_tissue_under_two_donors(sections, caplog):
    from spatialdata import deepcopy

    first = build(sections, ["donor1", "donor2"])
    twin = deepcopy(sections["donor1"])
    twin.tables["table"].obs["donor"] = "someone else"
    second = rg.tl.build_reference({"twin": twin}, use_rep="X_colour")
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.merge_references([first, second], on_duplicate="warn")
    assert "'donor1' and 'twin' have identical images but different donors" in caplog.text
    with pytest.raises(ValueError, match=r"'donor1' and 'twin'.*Give both the same donor"):
        rg.tl.merge_references([first, second])


@pytest.mark.parametrize("given", [[], {}, [3], "reference"])
def test_what_is_no_reference_is_refused(given):
    with pytest.raises((TypeError, ValueError), match=r"empty|AnnData"):
        rg.tl.merge_references(given)


def test_larger_thumbnails_are_kept(sections):
    large = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour")
    large.obsm["thumbnail"] = np.asarray(large.obsm["thumbnail"]).repeat(2, axis=1).repeat(2, axis=2)
    other = rg.tl.build_reference({"donor2": sections["donor2"]}, use_rep="X_colour")
    other.obsm["thumbnail"] = np.asarray(other.obsm["thumbnail"]).repeat(2, axis=1).repeat(2, axis=2)
    merged = rg.tl.merge_references([large, other])
    rows = merged.obs_names.get_indexer(large.obs_names)
    np.testing.assert_array_equal(merged.obsm["thumbnail"][rows], large.obsm["thumbnail"])


def test_thumbnails_of_an_earlier_release_are_enlarged(sections):
    first, second = (rg.tl.build_reference({name: sections[name]}, use_rep="X_colour") for name in ("donor1", "donor2"))
    small = second.copy()
    small.obsm["thumbnail"] = second.obsm["thumbnail"][:, ::2, ::2]
    merged = rg.tl.merge_references([first, small])
    assert merged.obsm["thumbnail"].shape == (first.n_obs + second.n_obs, 64, 64, 3)
    rows = merged.obs_names.get_indexer(second.obs_names)
    np.testing.assert_array_equal(merged.obsm["thumbnail"][rows][:, ::2, ::2], small.obsm["thumbnail"])
    np.testing.assert_array_equal(merged.obsm["thumbnail"][rows][:, 1::2, 1::2], small.obsm["thumbnail"])
