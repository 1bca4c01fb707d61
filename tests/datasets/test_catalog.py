"""The catalogue of data sets: every shipped entry, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

import ragst_sd as rg
from ragst_sd.datasets._catalog import (
    CATALOG,
    as_list,
    catalog_entries,
    catalog_entry,
    citation_bibtex,
    citation_text,
)

from .catalog_schema import FIELDS, LAYOUTS, LOADERS, catalog_faults, check_catalog

SHIPPED = catalog_entries()


def entry(**changes) -> dict:
    """A sound entry that the catalogue does not need to hold."""
    sound = {
        **dict.fromkeys(FIELDS),
        "name": "some_set",
        "title": "Some set",
        "kind": "spatial",
        "organ": "breast",
        "species": "Homo sapiens",
        "technology": "Visium",
        "license": "CC-BY-4.0",
        "redistribution": True,
        "commercial_use": True,
        "gated": False,
        "citation": {"author": "Someone", "title": "Some article", "year": 2024, "doi": "10.1000/some"},
        "layout": "visium",
        "loader": "visium",
        "files": [
            {"name": "counts.h5", "url": "https://example.org/counts.h5", "size": 10, "sha256": "0123456789abcdef" * 4},
            {"name": "spatial.tar.gz", "url": None, "size": None, "sha256": None, "archive": "tar.gz"},
        ],
        "samples": {
            "s1": {"donor": "d1", "files": {"counts": "counts.h5", "scalefactors": "spatial.tar.gz/scalefactors.json"}}
        },
        "status": "listed",
        "unverified": ["organ"],
        "checked": "a page",
    }
    return {**sound, **changes}


def with_file(**changes) -> dict:
    changed = entry()
    changed["files"][0].update(changes)
    return changed


def without(field: str) -> dict:
    changed = entry()
    del changed[field]
    return changed


def test_a_sound_entry_has_no_faults():
    assert catalog_faults([entry()]) == []


FAULTS = [
    (without("license"), "`license` is missing", "none stated"),
    (entry(license=None), "`license` is missing", "none stated"),
    (entry(license=" "), "`license` is missing", "none stated"),
    (entry(license="CC BY 4.0, I think"), "`license`", "SPDX"),
    (entry(license="unknown", redistribution=None, commercial_use=None), "`license` is 'unknown'", "`unverified`"),
    (entry(license="none stated"), "`redistribution` is true", "not confirmed"),
    (entry(unverified=["license"]), "`commercial_use` is true", "not confirmed"),
    (entry(license="CC-BY-NC-4.0"), "`commercial_use` is true", "CC-BY-NC-4.0"),
    (entry(redistribution="yes"), "`redistribution`", "'yes'"),
    (entry(gated=None), "`gated`", "None"),
    (without("donors"), "'donors'", "missing"),
    (entry(organs="breast"), "'organs' is no field", "Did you mean 'organ'?"),
    (entry(name="Some Set"), "`name`", "lower-case"),
    (entry(title=""), "`title`", "text"),
    (entry(checked=None), "`checked`", "text"),
    (entry(notes=3), "`notes`", "3"),
    (entry(kind="spatail"), "`kind`", "Did you mean 'spatial'?"),
    (entry(layout="vizium"), "`layout`", "Did you mean 'visium'?"),
    (entry(status="tried"), "`status`", "'tried'"),
    (entry(loader="other"), "`loader`", "'other'"),
    (entry(status="tested", loader=None), "`status` is 'tested'", "`loader` is null"),
    (entry(organ=["breast", "breast"]), "`organ`", "different"),
    (entry(species="human"), "`species`", "Homo sapiens"),
    (entry(spots=0), "`spots`", "0"),
    (entry(donors=8.0), "`donors`", "8.0"),
    (entry(sections=True), "`sections`", "True"),
    (entry(image_mpp=-0.5), "`image_mpp`", "-0.5"),
    (entry(doi="https://doi.org/10.1000/some"), "`doi`", "https://doi.org"),
    (entry(url="example.org"), "`url`", "example.org"),
    (entry(citation="Someone 2024"), "`citation`", "title"),
    (entry(citation={"title": "Some article"}), "`citation`", "doi or url"),
    (entry(citation={"title": "A", "doi": "10.1000/a", "pages": 3}), "`citation`", "'pages'"),
    (entry(citation={"title": "A", "doi": "10.1000/a", "year": "2024"}), "`citation`", "'2024'"),
    (with_file(sha256="abc"), "'counts.h5': `sha256`", "64"),
    (with_file(sha256="0123456789ABCDEF" * 4), "'counts.h5': `sha256`", "lower-case"),
    (with_file(size="10 MB"), "'counts.h5': `size`", "'10 MB'"),
    (with_file(size=1.5), "'counts.h5': `size`", "1.5"),
    (with_file(url="ftp.example.org"), "'counts.h5': `url`", "http"),
    (with_file(archive="rar"), "'counts.h5': `archive`", "'zip'"),
    (with_file(md5="abc"), "'counts.h5': 'md5' is no field", "sha256"),
    (with_file(name="../counts.h5"), "'../counts.h5': `name`", "'..'"),
    (with_file(name="spatial.tar.gz"), "'spatial.tar.gz': `name` is used 2 times", ""),
    (entry(samples={}), "`samples` is empty", "'visium'"),
    (entry(samples={"s1": {"files": {"counts": "counts.h5"}}}), "`samples`, 's1'", "`donor`"),
    (entry(samples={"s1": {"donor": None, "files": {"counts": "counts.h5"}}}), "`samples`, 's1': `donor`", "None"),
    (entry(samples={"s1": {"donor": "d1", "files": {}}}), "`samples`, 's1'", "empty"),
    (entry(samples={"s1": {"donor": "d1", "files": {"image": "he.tif"}}}), "'he.tif' (image)", "neither"),
    (entry(samples={"s1": {"donor": "d1", "files": {"image": "counts.h5/he.tif"}}}), "'counts.h5/he.tif'", "neither"),
    (entry(query="tissue_general == 'breast'"), "`query`", "census"),
    (entry(kind="scrna", layout="census", loader="census"), "`query`", "census"),
    (entry(unverified=["organism"]), "'organism'", "no field"),
    (entry(unverified=["donors"]), "`donors`", "empty"),
    (entry(unverified=None), "`unverified`", "list"),
]


@pytest.mark.parametrize(
    ("faulty", "field", "says"), FAULTS, ids=[f"{i}: {field}" for i, (_, field, _) in enumerate(FAULTS)]
)
def test_a_fault_is_refused_by_entry_and_field(faulty, field, says):
    with pytest.raises(ValueError, match="in the catalogue") as caught:
        check_catalog([faulty])
    message = str(caught.value)
    assert repr(faulty["name"]) in message
    assert field in message
    assert says in message


def test_every_fault_is_told_at_once():
    message = "\n".join(catalog_faults([entry(kind="x", layout="y"), entry(name="other", license=None)]))
    assert all(part in message for part in ("'some_set': `kind`", "'some_set': `layout`", "'other': `license`"))


def test_names_are_unique_and_sorted():
    assert catalog_faults([entry(), entry()]) == ["Entry 'some_set': `name` is used 2 times."]
    assert "sorted" in catalog_faults([entry(name="b"), entry(name="a")])[0]


@pytest.mark.parametrize("entries", [{"some_set": {}}, ["some_set"]])
def test_what_is_no_list_of_entries_is_refused(entries):
    with pytest.raises(ValueError, match=r"must be a mapping|is a list"):
        check_catalog(entries)


class TestShipped:
    def test_is_sound_and_large_enough(self):
        check_catalog(yaml.safe_load(CATALOG.read_text(encoding="utf-8")))
        assert sum(entry["kind"] != "scrna" for entry in SHIPPED.values()) >= 40
        assert {"spatial", "collection", "scrna"} <= {entry["kind"] for entry in SHIPPED.values()}

    def test_every_layout_with_a_loader_occurs(self):
        assert {entry["layout"] for entry in SHIPPED.values()} == set(LAYOUTS)
        assert {entry["loader"] for entry in SHIPPED.values()} == {*LOADERS, None}
        assert all(entry["loader"] in (None, entry["layout"]) for entry in SHIPPED.values())

    def test_hashes_are_those_of_single_files(self):
        by_hash = {}
        for name, one in SHIPPED.items():
            for file in one["files"]:
                if file["sha256"]:
                    assert len(set(file["sha256"])) > 8, file
                    by_hash.setdefault(file["sha256"], []).append(f"{name}/{file['name']}")
        # One picture is offered at two addresses, and one section's picture under its own and under a plain name.
        twice = [names for names in by_hash.values() if len(names) > 1]
        assert twice == [
            [
                "squidpy_visium_hne/visium_hne_image.tiff",
                "tenx_visium_mouse_brain_coronal/V1_Adult_Mouse_Brain_image.tif",
            ]
        ]

    def test_addresses_are_used_once(self):
        urls = [file["url"] for one in SHIPPED.values() for file in one["files"]]
        assert len(urls) == len(set(urls)) > 100
        assert None not in urls

    def test_a_loadable_file_belongs_to_a_sample_or_is_an_archive(self):
        for name, one in SHIPPED.items():
            used = {file for sample in one["samples"].values() for file in sample["files"].values()}
            spare = [file["name"] for file in one["files"] if file["name"] not in used and not file.get("archive")]
            assert one["loader"] is None or not spare, name

    def test_donors_are_not_confused_across_entries(self):
        owners = {}
        for name, one in SHIPPED.items():
            for sample in one["samples"].values():
                owners.setdefault(sample["donor"], set()).add(name)
        shared = {donor: names for donor, names in owners.items() if len(names) > 1}
        assert set(shared) == {
            *("10x breast block A", "10x colorectal P2", "10x mouse brain coronal", "10x mouse brain sagittal"),
            "K562 cell line",
        }

    def test_counts_agree_with_samples(self):
        for name, one in SHIPPED.items():
            donors = {sample["donor"] for sample in one["samples"].values()}
            assert one["sections"] is None or len(one["samples"]) <= one["sections"], name
            assert one["donors"] is None or len(donors) <= one["donors"], name

    def test_single_cells_match_organs_of_sections(self):
        organs = {"scrna": set(), "spatial": set()}
        for one in SHIPPED.values():
            if one["kind"] in organs:
                organs[one["kind"]] |= {
                    (organ, species) for organ in as_list(one["organ"]) for species in as_list(one["species"])
                }
        assert organs["scrna"] <= organs["spatial"]

    def test_entries_are_copies(self):
        kept = catalog_entry("her2st")
        changed = catalog_entry("her2st")
        changed["files"].clear()
        assert catalog_entry("her2st") == kept

    def test_an_unknown_name_is_told(self):
        with pytest.raises(KeyError, match="Did you mean 'her2st'"):
            catalog_entry("her2-st")


class TestCatalog:
    def test_one_row_per_entry(self):
        table = rg.datasets.catalog()
        assert table.index.name == "name"
        assert list(table.index) == list(SHIPPED)
        assert set(FIELDS) - {"name", "um_between_centers"} | {"bibtex", "size"} == set(table.columns)

    def test_dtypes(self):
        table = rg.datasets.catalog()
        for column in ("donors", "sections", "spots", "genes", "samples", "files", "size"):
            assert table[column].dtype == pd.Int64Dtype()
        for column in ("redistribution", "commercial_use", "gated"):
            assert table[column].dtype == pd.BooleanDtype()
        assert pd.api.types.is_float_dtype(table["image_mpp"])
        texts = table.drop(columns=table.select_dtypes(["number", "boolean"]).columns)
        assert texts.map(lambda value: isinstance(value, str)).all(axis=None)
        assert (table["license"] != "").all()

    def test_values_are_those_of_the_entries(self):
        table = rg.datasets.catalog()
        for name, one in SHIPPED.items():
            row = table.loc[name]
            assert row["organ"] == ", ".join(as_list(one["organ"]))
            assert row["unverified"] == ", ".join(one["unverified"])
            assert row["samples"] == len(one["samples"])
            assert (None if row["spots"] is pd.NA else row["spots"]) == one["spots"]
            assert (None if row["redistribution"] is pd.NA else bool(row["redistribution"])) is one["redistribution"]
            assert (row["citation"], row["bibtex"]) == (citation_text(one), citation_bibtex(one))

    def test_size_is_missing_unless_every_file_has_one(self):
        table = rg.datasets.catalog()
        for name, one in SHIPPED.items():
            sizes = [file["size"] for file in one["files"]]
            expected = pd.NA if not sizes or None in sizes else sum(sizes)
            assert table.loc[name, "size"] is expected if expected is pd.NA else table.loc[name, "size"] == expected

    def test_an_unconfirmed_licence_leaves_the_flags_open(self):
        table = rg.datasets.catalog()
        open_ = table["unverified"].str.split(", ").map(lambda fields: "license" in fields)
        assert open_.any()
        assert table.loc[open_, ["redistribution", "commercial_use"]].isna().all(axis=None)

    @pytest.mark.parametrize(
        ("field", "wanted"),
        [
            ("organ", "breast"),
            ("species", ["Mus musculus"]),
            ("technology", ["Visium HD", "Xenium"]),
            ("kind", ("collection", "slide")),
            ("license", "CC-BY-4.0"),
            ("status", "listed"),
        ],
    )
    def test_filters_against_a_loop(self, field, wanted):
        asked = [wanted] if isinstance(wanted, str) else list(wanted)
        expected = [name for name, one in SHIPPED.items() if any(value in asked for value in as_list(one[field]))]
        found = rg.datasets.catalog(**{field: wanted})
        assert list(found.index) == expected != []
        pd.testing.assert_frame_equal(found, rg.datasets.catalog().loc[expected])

    def test_filters_join(self):
        found = rg.datasets.catalog(organ="breast", technology="ST", license="CC-BY-4.0")
        assert set(found.index) == {"her2st", "stnet_breast"}

    def test_nothing_left_is_an_empty_table(self):
        found = rg.datasets.catalog(organ="tonsil", technology="ST")
        assert found.empty
        assert (found.dtypes == rg.datasets.catalog().dtypes).all()

    @pytest.mark.parametrize(("field", "wanted"), [("organ", "brest"), ("technology", ["Visium", "visium hd"])])
    def test_an_unknown_value_is_told(self, field, wanted):
        with pytest.raises(ValueError, match=f"`{field}` is .* must be one of .*Did you mean"):
            rg.datasets.catalog(**{field: wanted})


def test_citation_of_an_article():
    one = entry(
        citation={
            "author": "{Some Group} and Doe, Jane and others",
            "title": "On spots.",
            "year": 2024,
            "doi": "10.1000/a",
        }
    )
    assert citation_text(one) == "Some Group; Doe, Jane et al. (2024). On spots. https://doi.org/10.1000/a"
    assert citation_bibtex(one).splitlines() == [
        "@article{some_set,",
        "  author = {{Some Group} and Doe, Jane and others},",
        "  title = {On spots.},",
        "  year = {2024},",
        "  doi = {10.1000/a},",
        "}",
    ]


def test_citation_of_a_page_without_author_and_year():
    fields = {"author": None, "title": "A page", "journal": "Archive", "year": None, "url": "https://a.org"}
    one = entry(citation=fields)
    assert citation_text(entry(citation={**fields, "year": 2024})) == "A page (2024). Archive. https://a.org"
    assert citation_text(one) == "A page. Archive. https://a.org"
    assert citation_bibtex(one).splitlines()[0] == "@misc{some_set,"
    assert "  howpublished = {Archive}," in citation_bibtex(one)
