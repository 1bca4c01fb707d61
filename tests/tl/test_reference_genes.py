"""Genes of sections of several years and species in one reference."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.reference.symbols import load_table, one_to_one


@pytest.fixture(scope="module")
def pairs():
    """Human genes whose name of earlier days is known, and their mouse orthologues: (old, current, mouse)."""
    human, partner = load_table("human"), one_to_one("human", "mouse")
    known = [
        (old, gene)
        for old, genes in human.previous.items()
        if len(genes) == 1 and old not in human.symbols and old not in human.alias
        for gene in genes
    ]
    by_gene = {gene: old for old, gene in sorted(known)}
    plain = sorted(gene for gene in partner if gene in human.symbols and gene not in by_gene)
    old = sorted((gene, old) for gene, old in by_gene.items() if gene in partner)[:60]
    rows = [(before, gene, partner[gene]) for gene, before in old]
    return rows + [(gene, gene, partner[gene]) for gene in plain[: 260 - len(rows)]]


@pytest.fixture
def named(sections, pairs):
    """Sections by how their genes are called: 0 the old names, 1 the current ones, 2 mouse."""

    def name(sample: str, which: int):
        table = sections[sample]["table"]
        assert table.n_vars == len(pairs)
        table.var_names = [row[which] for row in pairs]
        return sections[sample]

    return name


def build(sections, **options):
    return rg.tl.build_reference(sections, use_rep="X_colour", **options)


def test_old_and_new_names_meet(named, pairs, caplog):
    sections = {"donor1": named("donor1", 0), "donor2": named("donor2", 1)}
    plain = build(sections)
    assert plain.n_vars == 260 + 60
    assert list(plain.var["n_measured"].value_counts().index[:1]) == [plain.n_obs]
    with caplog.at_level(logging.INFO):
        found = build(sections, harmonize=True)
    assert sorted(found.var_names) == sorted(row[1] for row in pairs)
    assert (found.var["n_measured"] == found.n_obs).all()
    assert found.uns["ragst"]["normalization"]["naming"] == "current human symbol"
    assert list(found.uns["ragst"]["sections"]["species"]) == ["human", "human"]
    assert "donor1: genes of human, 200 kept, 60 renamed" in caplog.text
    # the same values as if the sections had been named alike from the start
    again = build({"donor1": named("donor1", 1), "donor2": sections["donor2"]})
    np.testing.assert_array_equal(found[:, again.var_names].X.toarray(), again.X.toarray())


def test_species_are_not_mixed_without_orthologues(named):
    sections = {"donor1": named("donor1", 1), "donor2": named("donor2", 2)}
    for options in ({}, {"harmonize": True}):
        with pytest.raises(
            ValueError, match=r"two species \(human: 'donor1'; mouse: 'donor2'\).*orthologues_to='human'"
        ):
            build(sections, **options)
    found = build(sections, orthologues_to="human")
    assert (found.var["n_measured"] == found.n_obs).all()
    assert list(found.uns["ragst"]["sections"]["species"]) == ["human", "mouse"]
    expected = build({"donor1": sections["donor1"], "donor2": named("donor2", 1)})
    np.testing.assert_array_equal(found[:, expected.var_names].X.toarray(), expected.X.toarray())


def test_a_section_of_two_species_is_refused(named, pairs):
    mixed = named("donor1", 1)
    mixed["table"].var_names = [row[1 + i % 2] for i, row in enumerate(pairs)]
    with pytest.raises(ValueError, match=r"sdatas\['donor1'\]: Gene names mix species"):
        build({"donor1": mixed})


def test_merging_refuses_what_building_refuses(named):
    human, mouse = build({"donor1": named("donor1", 1)}), build({"donor2": named("donor2", 2)})
    with pytest.raises(ValueError, match=r"of the references are of two species \(human: 'donor1'; mouse: 'donor2'\)"):
        rg.tl.merge_references([human, mouse])
    current = build({"donor3": named("donor3", 0)}, harmonize=True)
    with pytest.raises(ValueError, match="naming of the expression: symbol against current human symbol"):
        rg.tl.merge_references([human, current])
    other = build({"donor2": named("donor2", 2)}, orthologues_to="human")
    merged = rg.tl.merge_references([current, other])
    at_once = build({"donor3": named("donor3", 0), "donor2": named("donor2", 2)}, orthologues_to="human")
    assert merged.uns["ragst"]["content_hash"] == at_once.uns["ragst"]["content_hash"]


def test_names_that_no_table_knows_are_refused(sections):
    for sdata in sections.values():
        sdata["table"].var_names = [f"probe {i}" for i in range(sdata["table"].n_vars)]
    assert set(build(sections).uns["ragst"]["sections"]["species"]) == {"unknown"}
    with pytest.raises(ValueError, match=r"Genes of 'donor1', 'donor2', 'donor3' cannot be brought to current symbols"):
        build(sections, harmonize=True)


def test_gene_tables_without_overlap_are_refused(named, sections):
    sections["donor2"]["table"].var_names = [f"probe {i}" for i in range(260)]
    with pytest.raises(ValueError, match="The panels share 0 genes"):
        build({"donor1": named("donor1", 1), "donor2": sections["donor2"]})


def test_logarithms_are_not_added_up(named, pairs):
    section = named("donor1", 0)
    table = section["table"]
    names = [row[0] for row in pairs]
    names[-1] = pairs[0][1]
    table.var_names = names
    counts = table.X.toarray().astype(float)
    table.X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    with pytest.raises(ValueError, match=r"several names mean one gene .* log scale cannot be added up"):
        build({"donor1": section}, unit="log1p_cp10k", harmonize=True)


def test_predictions_are_evaluated_against_other_names(named, pairs):
    """The truth names its genes as of old, or as a mouse: it is brought to the names of the reference."""
    reference = build({"donor1": named("donor1", 0), "donor2": named("donor2", 2)}, orthologues_to="human")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    scores = {}
    for which in (0, 1, 2):
        query = named("donor3", which)
        rg.tl.predict(query, reference)
        scores[which] = rg.tl.evaluate(query, n_genes=None)
        del query.tables["predicted"]
    assert scores[1]["gene"].nunique() >= 260
    for which in (0, 2):
        np.testing.assert_array_equal(scores[which]["value"], scores[1]["value"])
