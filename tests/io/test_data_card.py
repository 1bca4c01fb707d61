"""Data cards: what they tell, from the reference alone."""

from __future__ import annotations

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.datasets._catalog import catalog_entry, citation_text
from ragst_sd.io._data_card import bibtex_of, composition, draw_composition, draw_pictures, gather_facts


@pytest.fixture
def mixed(sections):
    """Three donors of two organs, under three licences, one of them not known."""
    her2st = citation_text(catalog_entry("her2st"))
    sources = {
        "donor1": {"tissue": "breast", "technology": "ST", "license": "CC-BY-4.0", "citation": her2st},
        "donor2": {"tissue": "breast", "technology": "ST", "license": "CC-BY-NC-4.0", "citation": her2st},
        "donor3": {"tissue": "liver", "technology": "Visium", "license": "MIT", "citation": "Ours {2020}"},
    }
    return rg.tl.build_reference(sections, use_rep="X_colour", sources=sources)


def test_the_most_restrictive_licence_stands_on_top(mixed, reference):
    top = rg.io.data_card(mixed).splitlines()[4]
    assert top.startswith("**Licence: CC-BY-NC-4.0**, the most restrictive of the 3 licences of its sections.")
    assert "no commercial use" in top
    unknown = rg.io.data_card(reference)
    assert unknown.splitlines()[4].startswith("**Licence: not known**, that of all sections.")
    assert "No licence is known for 'donor1', 'donor2'" in unknown
    assert "No citation is known." in unknown


def test_numbers_are_those_of_the_reference(mixed):
    facts = gather_facts(mixed)
    by_organ = composition(facts["rows"], "tissue")
    for organ, line in by_organ.iterrows():
        rows = mixed.obs[mixed.obs["tissue"] == organ]
        assert line["spots"] == len(rows)
        assert line["sections"] == rows["sample"].nunique()
        assert line["donors"] == rows["donor"].nunique()
    assert list(by_organ["spots"]) == sorted(by_organ["spots"], reverse=True)
    for sample, line in facts["sections"].iterrows():
        counts = mixed[mixed.obs["sample"] == sample].layers["counts"].toarray().sum(axis=1)
        assert line["spots"] == len(counts)
        assert line["median_counts"] == np.median(counts)
    card = rg.io.data_card(mixed)
    assert f"| Spots | {mixed.n_obs:,} |" in card
    assert "| Organs | breast, liver |" in card
    assert mixed.uns["ragst"]["content_hash"] in card
    assert "| name | colour |" in card


def test_citations(mixed):
    card = rg.io.data_card(mixed)
    assert card.count("@article{her2st,") == 1
    assert "@misc{source1,\n  note = {Ours (2020)},\n}" in card
    assert bibtex_of(["@book{a,\n  title = {b},\n}", "unknown"]) == ["@book{a,\n  title = {b},\n}"]


def test_gaps_follow_the_facts(mixed, sections):
    found = "\n".join(gather_facts(mixed)["gaps"])
    assert "Few donors (3)" in found
    assert "Only one donor of organ 'liver'" in found
    assert "One organ" not in found
    assert "Some terms forbid commercial use" in found
    one = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour")
    found = "\n".join(gather_facts(one)["gaps"])
    assert "One donor." in found
    assert "The organ of" in found
    sections["donor2"].tables["table"].X = sections["donor2"].tables["table"].X.multiply(0.1).ceil().tocsr()
    shallow = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    medians = gather_facts(shallow)["sections"]["median_counts"]
    listed = ", ".join(repr(name) for name in medians.index[medians < 1000])
    assert listed
    assert f"in the genes kept): {listed}." in "\n".join(gather_facts(shallow)["gaps"])
    twice = rg.tl.build_reference({"a": sections["donor1"], "b": sections["donor1"]}, use_rep="X_colour")
    assert "The same picture under several names: 'a', 'b'" in "\n".join(gather_facts(twice)["gaps"])


def test_written_beside_pictures(mixed, tmp_path):
    from skimage.io import imread

    folder = tmp_path / "mixed.card"
    text = rg.io.data_card(mixed, path=folder, name="Mixed *tissue*")
    assert (folder / "README.md").read_text() == text
    assert "# Mixed \\*tissue\\*" in text
    assert {path.name for path in folder.iterdir()} == {"README.md", "composition.png", "depth.png"}
    for name in ("composition.png", "depth.png"):
        assert f"]({name})" in text
        assert imread(folder / name).std() > 5
    (folder / "notes.txt").write_text("mine")
    rg.io.data_card(mixed, path=folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="not a data card"):
        rg.io.data_card(mixed, path=folder)


def test_pictures_show_the_numbers(mixed):
    facts = gather_facts(mixed)
    axes = draw_composition(facts["compositions"]).axes
    assert [ax.get_title() for ax in axes] == ["Organ", "Technology", "Donor"]
    widths = [bar.get_width() for bar in axes[2].patches]
    assert widths[::-1] == list(composition(mixed.obs.astype(str), "donor")["spots"])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["liver", "breast"]


def test_of_many_donors_the_largest_are_drawn(mixed):
    names = [f"d{i % 40}" for i in range(mixed.n_obs)]
    mixed.obs["donor"] = names
    ax = draw_composition(gather_facts(mixed)["compositions"]).axes[2]
    assert ax.get_title() == "Donor, without 10 others"
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[::-1] == list(mixed.obs["donor"].value_counts().head(30))


def test_names_cannot_change_the_page(sections):
    sources = {"donor1": {"license": "MIT | x", "citation": "```\n# Mine", "tissue": "<script>"}}
    reference = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour", sources=sources)
    card = rg.io.data_card(reference)
    assert "<script>" not in card
    assert "MIT \\| x" in card
    assert card.count("```") == 2


def test_a_log_scale_has_no_depth(sections):
    for sdata in sections.values():
        table = sdata.tables["table"]
        table.X = table.X.multiply(1e4 / table.X.sum(axis=1)).tocsr().log1p()
    reference = rg.tl.build_reference(sections, use_rep="X_colour", unit="log1p_cp10k")
    facts = gather_facts(reference)
    assert [picture.file for picture in draw_pictures(facts)] == ["composition.png"]
    assert "The depth of the sections is not known" in "\n".join(facts["gaps"])


def test_not_a_reference(query):
    with pytest.raises(ValueError, match="build_reference"):
        rg.io.data_card(query.tables["table"])
