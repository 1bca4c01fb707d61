"""Recipes: what they may say, and that they give the same reference every time."""

from __future__ import annotations

import contextlib
import logging
import shutil

import numpy as np
import pytest
import yaml

import ragst_sd as rg
from ragst_sd.io._recipe import Tiles, read_recipe

from .recipes import RECIPE, deposit


@pytest.fixture(scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deposit")
    deposit(folder / "sections", n_donors=3)
    return folder


@pytest.fixture
def folder(_folder, tmp_path):
    """A folder of three sections with a recipe, of this test's own."""
    shutil.copytree(_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(autouse=True)
def _silent():
    with rg.settings.override(progress=False):
        yield


# Of one section, where no more are needed.
SHORT = RECIPE.replace("    tissue", "    samples: [donor1]\n    tissue")


def build(folder, text, name="reference.zarr.zip", **kwargs):
    (folder / "own.yaml").write_text(text)
    return rg.io.build_recipe(folder / "own.yaml", path=folder / name, **kwargs)


def content_hash(reference):
    return reference.uns["ragst"]["content_hash"]


def with_sources(*sources, **more):
    recipe = yaml.safe_load(RECIPE)
    details = {name: recipe["sources"][0][name] for name in ("tissue", "technology", "license", "citation")}
    return yaml.safe_dump({**recipe, "sources": [details | one for one in sources], **more})


class TestBuilding:
    def test_is_what_the_functions_make(self, folder):
        (folder / "sections" / "donor3.h5ad").unlink()
        built = rg.io.build_recipe(folder / "small.yaml", path=folder / "reference.zarr.zip")
        details = yaml.safe_load(RECIPE)["sources"][0]
        sections = {}
        for donor in ("donor1", "donor2"):
            files = folder / "sections" / f"{donor}.h5ad", folder / "sections" / f"{donor}.png"
            sdata = rg.io.read_st(*files, sample=donor)
            rg.pp.embed_tiles(sdata, tile_px=64, mpp=1.0, context=(1,), batch_size=16)
            sections[donor] = sdata
        sources = {name: {k: details[k] for k in ("tissue", "technology", "license", "citation")} for name in sections}
        by_hand = rg.tl.build_reference(sections, use_rep="X_texture", sources=sources)
        assert content_hash(built) == content_hash(by_hand)
        for column in by_hand.obs:
            assert (built.obs[column].astype(str) == by_hand.obs[column].astype(str)).all()
        np.testing.assert_array_equal(built.obsm["thumbnail"], by_hand.obsm["thumbnail"])
        assert built.uns["ragst"]["sources"].equals(by_hand.uns["ragst"]["sources"])
        for name, values in by_hand.uns["ragst"]["sections"].items():
            np.testing.assert_array_equal(built.uns["ragst"]["sections"][name], values)

    @pytest.mark.slow
    def test_twice_and_in_another_order(self, folder):
        first = build(folder, with_sources({"folder": "sections"}), "first.zarr.zip")
        again = build(folder, with_sources({"folder": "sections"}), "again.zarr.zip")
        other = build(
            folder,
            with_sources(
                {"folder": "sections", "samples": ["donor3"]}, {"folder": "sections", "samples": ["donor2", "donor1"]}
            ),
            "other.zarr.zip",
        )
        assert content_hash(first) == content_hash(again) == content_hash(other)
        assert content_hash(rg.io.read_reference(folder / "other.zarr.zip")) == content_hash(first)

    @pytest.mark.slow
    def test_what_is_built_stays(self, folder, caplog):
        caplog.set_level(logging.INFO, "ragst_sd")
        path = folder / "reference.zarr.zip"
        first = rg.io.build_recipe(folder / "small.yaml", path=path)
        rg.tl.fit(first, method="knn", n_neighbors=5, progress=False)
        rg.io.write_reference(first, path, overwrite=True)
        shutil.rmtree(folder / "reference.card")
        again = rg.io.build_recipe(folder / "small.yaml", path=path)
        assert "built already" in caplog.text
        assert again.uns["ragst"]["fit"]["method"] == "knn"
        assert (folder / "reference.card" / "README.md").exists()

    @pytest.mark.slow
    def test_the_card_is_that_of_the_last_recipe(self, folder):
        """Same tissue and so the same content hash, under other terms."""
        page = folder / "reference.card" / "README.md"
        build(folder, RECIPE)
        old = page.read_text()
        text = RECIPE.replace("CC-BY-4.0", "CC-BY-NC-4.0").replace("Nobody (2020)", "Somebody (2021)")
        reference = build(folder, text, overwrite=True)
        new = page.read_text()
        assert content_hash(reference) in old and content_hash(reference) in new
        for gone, there in (("CC-BY-4.0", "CC-BY-NC-4.0"), ("Nobody (2020)", "Somebody (2021)")):
            assert gone in old and gone not in new and there in new
        # A build that was killed between reference and card.
        page.write_text(old)
        build(folder, text)
        assert page.read_text() == new

    @pytest.mark.slow
    def test_other_names_of_genes_embed_nothing_anew(self, folder, caplog):
        caplog.set_level(logging.INFO, "ragst_sd")
        build(folder, SHORT)
        for naming in ("{harmonize: true}", "{orthologues_to: mouse}"):
            caplog.clear()
            with contextlib.suppress(ValueError):  # these genes are of no species
                build(folder, f"{SHORT}reference: {naming}\n", overwrite=True)
            assert caplog.text.count("Going on from") == 1

    @pytest.mark.slow
    def test_one_more_section_embeds_that_section_only(self, folder, caplog):
        caplog.set_level(logging.INFO, "ragst_sd")
        build(folder, with_sources({"folder": "sections", "samples": ["donor1", "donor2"]}))
        caplog.clear()
        text = with_sources({"folder": "sections", "license": "MIT"})
        with pytest.raises(FileExistsError, match="another recipe"):
            build(folder, text)
        reference = build(folder, text, overwrite=True)
        assert caplog.text.count("Going on from") == 2
        assert set(reference.uns["ragst"]["sources"]["license"]) == {"MIT"}
        assert reference.obs["sample"].nunique() == 3

    @pytest.mark.slow
    def test_other_files_or_settings_are_embedded_again(self, folder, caplog):
        import anndata as ad

        caplog.set_level(logging.INFO, "ragst_sd")
        first = build(folder, RECIPE)
        source = folder / "sections" / "donor2.h5ad"
        changed = ad.read_h5ad(source)
        changed.X[int(np.argmax(changed.obs["in_tissue"])), 0] += 1
        changed.write_h5ad(source)
        caplog.clear()
        second = build(folder, RECIPE, overwrite=True)
        assert caplog.text.count("Going on from") == 2
        assert content_hash(second) != content_hash(first)
        caplog.clear()
        build(folder, RECIPE.replace("tile_px: 64", "tile_px: 70"), overwrite=True)
        assert "Going on from" not in caplog.text

    def test_parts_go_if_asked(self, folder):
        build(folder, SHORT, keep_parts=False)
        assert not (folder / "reference.zarr.zip.parts").exists()

    def test_filters(self, folder):
        text = with_sources(
            {"folder": "sections", "samples": ["donor1"]},
            {"folder": "sections", "samples": ["donor3"], "filters": {"min_counts": 3500}},
            filters={"in_tissue": True, "min_genes": 10, "obs": {"label": ["epithelium", "stroma"]}},
            reference={"obs": ["label"]},
        )
        import anndata as ad

        labels = set(ad.read_h5ad(folder / "sections" / "donor1.h5ad").obs["label"])
        chosen = sorted(labels)[:2]
        text = text.replace("epithelium", chosen[0]).replace("stroma", chosen[1])
        reference = build(folder, text)
        assert set(reference.obs["label"]) <= set(chosen)
        for donor in ("donor1", "donor3"):
            table = ad.read_h5ad(folder / "sections" / f"{donor}.h5ad")
            keep = (table.obs["in_tissue"] == 1) & table.obs["label"].isin(chosen)
            if donor == "donor3":
                keep &= np.asarray(table.X.sum(axis=1)).ravel() >= 3500
            wanted = [f"{donor}:{name}" for name in table.obs_names[keep]]
            assert list(reference.obs_names[reference.obs["sample"] == donor]) == wanted

    @pytest.mark.slow
    def test_genes(self, folder):
        whole = build(folder, RECIPE, "whole.zarr.zip")
        names = list(whole.var_names[[7, 3, 5]])
        few = build(folder, RECIPE + f"genes: {names}\n", "few.zarr.zip")
        swapped = build(folder, RECIPE + f"genes: {names[::-1]}\n", "swapped.zarr.zip")
        assert list(few.var_names) == sorted(names)
        assert content_hash(few) == content_hash(swapped)
        np.testing.assert_array_equal(few.X.toarray(), whole[:, sorted(names)].X.toarray())
        variable = build(folder, RECIPE + "genes: {most_variable: 20}\n", "variable.zarr.zip")
        spread = np.var(whole.X.toarray(), axis=0)
        assert set(variable.var_names) == set(whole.var_names[np.argsort(-spread)[:20]])
        same = build(folder, RECIPE + f"genes: {list(variable.var_names)}\n", "same.zarr.zip")
        assert content_hash(same) == content_hash(variable)

    def test_donors_and_prefix(self, folder, caplog):
        text = with_sources(
            {"folder": "sections", "samples": ["donor1"], "donors": {"donor1": "anna"}},
            {"folder": "sections", "samples": ["donor1"], "prefix": "again_", "donor": "anna"},
        )
        reference = build(folder, text)
        assert set(reference.obs["sample"]) == {"donor1", "again_donor1"}
        assert set(reference.obs["donor"]) == {"anna"}
        assert "Donor 'anna' is named by" in caplog.text

    @pytest.mark.slow
    def test_fit(self, folder):
        reference = build(folder, RECIPE + "fit: {method: knn, n_neighbors: 5}\nseed: 3\n")
        assert rg.io.read_reference(folder / "reference.zarr.zip").uns["ragst"]["fit"]["method"] == "knn"
        assert content_hash(reference) == content_hash(build(folder, RECIPE, "plain.zarr.zip"))

    def test_environment_variables(self, folder, monkeypatch):
        monkeypatch.setenv("DEPOSIT_OF_TEST", str(folder))
        text = SHORT.replace("folder: sections", "folder: ${DEPOSIT_OF_TEST}/sections")
        reference = build(folder, text)
        assert "${DEPOSIT_OF_TEST}" in reference.uns["ragst"]["recipe"]["text"]
        monkeypatch.delenv("DEPOSIT_OF_TEST")
        with pytest.raises(ValueError, match=r"own\.yaml, line 4: `sources\[0\]\.folder`.*DEPOSIT_OF_TEST is not set"):
            build(folder, text)

    @pytest.mark.slow
    def test_a_mapping(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        reference = rg.io.build_recipe(yaml.safe_load(RECIPE), path="mapped.zarr.zip")
        assert content_hash(reference) == content_hash(build(folder, RECIPE))

    def test_never_replaces_what_is_not_a_reference(self, folder):
        (folder / "reference.zarr.zip").write_text("mine")
        with pytest.raises(FileExistsError, match="not a reference"):
            build(folder, RECIPE, overwrite=True)
        (folder / "other.card").mkdir()
        (folder / "other.card" / "README.md").write_text("mine")
        with pytest.raises(FileExistsError, match="not a data card"):
            build(folder, RECIPE, "other.zarr.zip")
        assert not (folder / "other.zarr.zip").exists()


BAD = {
    "unknown field": (RECIPE.replace("license:", "licence:"), r"line 7: `sources\[0\]\.licence`.*Did you mean 'license'"),
    "unknown block": (RECIPE + "tile: 3\n", r"line 11: `tile`: there is no such field\. Did you mean 'tiles'"),
    "twice": (RECIPE + "name: again\n", r"line 11: `name` stands here again; it is on line 2"),
    "not yaml": ("version: 1\nsources: [\n", r"line \d: this is not YAML"),
    "version": (RECIPE.replace("version: 1", "version: 7"), r"line 1: `version` is 7"),
    "no version": (RECIPE.replace("version: 1\n", ""), r"`version` is missing"),
    "empty": ("", r"it must be a block of fields"),
    "no sources": ("version: 1\n", r"`sources` is missing"),
    "sources": ("version: 1\nsources: her2st\n", r"line 2: `sources` is 'her2st'; it must be a block of fields: 'dataset'"),
    "empty sources": ("version: 1\nsources: []\n", r"line 2: `sources` is empty"),
    "neither": ("version: 1\nsources:\n  - license: MIT\n", r"line 3: `sources\[0\]` must have either"),
    "both": (RECIPE.replace("folder:", "dataset: her2st\n    folder:"), r"`sources\[0\]` must have either"),
    "wrong kind": (RECIPE.replace("technology: Visium", "bin_um: 8"), r"line 6: `sources\[0\]\.bin_um` does not go with"),
    "not text": (RECIPE.replace("license: CC-BY-4.0", "license: no"), r"line 7: .*is False; it must be text"),
    "tile": (RECIPE.replace("tile_px: 64", "tile_px: 6.4"), r"line 10: `tiles\.tile_px` is 6\.4; it must be a whole number"),
    "mpp": (RECIPE.replace("mpp: 1.0", "mpp: -1"), r"line 10: `tiles\.mpp` is -1"),
    "context": (RECIPE.replace("[1]", "[1, a]"), r"line 10: `tiles\.context\[1\]` is 'a'"),
    "context twice": (RECIPE.replace("[1]", "[1, 2, 1.0]"), r"line 10: `tiles\.context`: 1 numbers are duplicated.*'1\.0'"),
    "genes": (RECIPE + "genes: most\n", r"line 11: `genes` is 'most'"),
    "genes field": (RECIPE + "genes: {most_varible: 20}\n", r"line 11: `genes\.most_varible`.*Did you mean 'most_variable'"),
    "seed": (RECIPE + "seed: -1\n", r"line 11: `seed` is -1"),
    "unit": (RECIPE + "reference: {unit: tpm}\n", r"line 11: `reference\.unit` is 'tpm'; it must be one of 'counts'"),
    "flag": (RECIPE + "filters: {in_tissue: 1}\n", r"line 11: `filters\.in_tissue` is 1; it must be true or false"),
    "model": (RECIPE.replace("model: texture", "model: textur"), r"line 9: `encoder`: Unknown model 'textur'"),
    "method": (RECIPE + "fit: {method: knnn}\n", r"line 11: fit\.method.*Did you mean 'knn'"),
    "donors": (RECIPE.replace("tissue: made", "donors: {donr1: A}\n    tissue: made"), r"line 5: .*names no sample of this source: 'donr1'.*Did you mean 'donor1'"),
    "column": (RECIPE + "filters: {obs: {layer: x}}\n", r"section 'donor1': Key 'layer' not found in `obs`.*The filters name it"),
    "value": (RECIPE + "filters: {obs: {label: x}}\n", r"section 'donor1': no spot has 'x' in column 'label'"),
    "no spot left": (RECIPE + "filters: {min_counts: 1e9}\n", r"`filters\.min_counts` is '1e9'"),
    "none left": (RECIPE + "filters: {min_counts: 100000}\n", r"section 'donor1': the filters leave none of"),
    "small tiles": (RECIPE.replace("tile_px: 64", "tile_px: 16"), r"section 'donor1': Texture needs tiles"),
    "layer": (RECIPE + "reference: {layer: raw}\n", r"section 'donor1': Key 'raw' not found in `layers`"),
    "missing gene": (RECIPE + "genes: [NOSUCHGENE]\n", r"no section measured 'NOSUCHGENE'"),
    "sample": (RECIPE.replace("tissue: made", "samples: [donor9]\n    tissue: made"), r"no sample 'donor9'; available: 'donor1'"),
    "same name": (with_sources({"folder": "sections"}, {"folder": "sections"}), r"section named 'donor1' comes from .*prefix"),
    "data set": (with_sources({"dataset": "her2sst"}), r"`sources\[0\]`: .*Did you mean 'her2st'"),
    "method argument": (RECIPE + "fit: {neighbours: 3}\n", r"line 11: `fit\.neighbours`.*Did you mean 'n_neighbors'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_are_refused_by_name(folder, case):
    text, message = BAD[case]
    with pytest.raises((ValueError, KeyError), match=message):
        build(folder, text)
    assert not (folder / "reference.zarr.zip").exists()


def test_missing_files(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        rg.io.build_recipe(folder / "none.yaml", path=folder / "reference.zarr.zip")
    with pytest.raises(FileNotFoundError, match=r"line 4: `sources\[0\]\.folder`.*nowhere' does not exist"):
        build(folder, RECIPE.replace("folder: sections", "folder: nowhere"))
    with pytest.raises(TypeError, match="`recipe` is a int"):
        rg.io.build_recipe(3, path=folder / "reference.zarr.zip")


def test_a_donor_must_be_known(folder):
    import anndata as ad

    file = folder / "sections" / "donor1.h5ad"
    table = ad.read_h5ad(file)
    del table.obs["donor"]
    table.write_h5ad(file)
    with pytest.raises(
        ValueError, match=r"line 4: `sources\[0\]`, section 'donor1': its donor is not known.*`donors:`"
    ):
        build(folder, RECIPE)


def test_defaults(folder):
    (folder / "least.yaml").write_text("version: 1\nsources: [{folder: sections}]\n")
    recipe, _, _ = read_recipe(folder / "least.yaml")
    assert recipe.name == "least"
    assert recipe.encoder.model == "texture"
    assert recipe.tiles == Tiles(tile_px=224, mpp=0.5, context=None)
    assert recipe.genes is None and recipe.fit is None and recipe.seed == 0
    (folder / "least.yaml").write_text("version: 1\nsources: [{folder: sections}]\ntiles: {mpp: native}\n")
    assert read_recipe(folder / "least.yaml")[0].tiles.mpp is None


def test_files_of_the_encoder_lie_beside_the_recipe(folder):
    (folder / "own.yaml").write_text(
        "version: 1\nsources: [{folder: sections}]\nencoder: {model: own.onnx, model_kwargs: {output: map}}\n"
    )
    encoder = read_recipe(folder / "own.yaml")[0].encoder
    assert (encoder.model, encoder.model_kwargs) == (str(folder / "own.onnx"), {"output": "map"})


@pytest.mark.slow
def test_the_catalogue(tmp_path, data_dir, monkeypatch):
    """A section of the catalogue, in a mirror made of real files: counts as a table, picture, coordinates."""
    import anndata as ad
    import pandas as pd

    from ragst_sd.datasets import _catalog

    entry = {
        **_catalog.catalog_entry("her2st"),
        "name": "her2st",
        "files": [{"name": name, "url": None, "size": None, "sha256": None} for name in ("c.tsv.gz", "s.tsv", "i.jpg")],
        "samples": {"B4": {"donor": "her2st B", "files": {"counts": "c.tsv.gz", "coordinates": "s.tsv", "image": "i.jpg"}}},
    }  # fmt: skip
    monkeypatch.setattr(_catalog, "_shipped", lambda: {"her2st": entry})
    mirror = tmp_path / "mirror" / "her2st"
    mirror.mkdir(parents=True)
    source = data_dir / "histology" / "mob2k"
    table = ad.read_h5ad(source / "MOB1.h5ad")
    names = [f"{i}x{i}" for i in range(table.n_obs)]
    dense = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    pd.DataFrame(dense.astype(int), index=names, columns=table.var_names).to_csv(mirror / "c.tsv.gz", sep="\t")
    pixels = np.asarray(table.obsm["spatial"])
    pd.DataFrame({"pixel_x": pixels[:, 0], "pixel_y": pixels[:, 1]}, index=names).to_csv(mirror / "s.tsv", sep="\t")
    shutil.copy(source / "MOB1.jpg", mirror / "i.jpg")
    monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
    text = "version: 1\nsources: [{dataset: her2st}]\ntiles: {tile_px: 64, mpp: native, context: 1}\n"
    reference = build(tmp_path, text)
    assert set(reference.obs["donor"]) == {"her2st B"}
    assert set(reference.uns["ragst"]["sources"]["license"]) == {"CC-BY-4.0"}
    card = (tmp_path / "reference.card" / "README.md").read_text()
    assert "@article{her2st," in card
    assert content_hash(build(tmp_path, text, "again.zarr.zip")) == content_hash(reference)
