"""Recipes of the package: what they are made of, and the whole way from `ragst-sd build breast` to a predicted slide."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml

import ragst_sd as rg
from ragst_sd.__main__ import main
from ragst_sd.datasets import _catalog
from ragst_sd.datasets._catalog import catalog_entries
from ragst_sd.datasets._references import recipe_files
from ragst_sd.io._recipe import read_recipe
from ragst_sd.reference.symbols import known_names

from ..io import layouts
from ..io.painting import Tissue, affine
from ..io.recipes import Nursery
from ..io.slides import write_pyramid
from .catalog_schema import LOADERS
from .deposited import Deposits

RECIPES = sorted(recipe_files())


def test_what_is_listed():
    table = rg.datasets.references()
    assert list(table.index) == RECIPES == ["breast", "colon", "heart", "mouse_brain", "prostate"]
    assert table["donors"].to_dict() == {"breast": 5, "colon": 1, "heart": 1, "mouse_brain": 2, "prostate": 3}
    assert (table["published"] == "").all()
    assert table.loc["breast", "technology"] == "ST, Visium"
    # Of 36 sections of her2st six are taken.
    assert table.loc["breast", "estimated_spots"] == 3798 + 3987 + 2518 + 4325 + round(13620 / 6)
    assert all(Path(file).is_file() for file in table["recipe"])


def test_the_page_has_the_same_figures():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "organ_references.md").read_text(encoding="utf-8")
    for name, row in rg.datasets.references().iterrows():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        fields = ["donors", "sections", "license", "estimated_spots", "estimated_download_gb", "estimated_minutes"]
        assert cells[3:] == [str(row[field]).replace(",", "") for field in fields]


def test_estimates_of_downloads_are_known_sizes_and_pixels(monkeypatch):
    changed = deepcopy(_catalog._shipped())
    (heart,) = (entry for entry in changed.values() if entry["name"] == "tenx_visium_human_heart")
    monkeypatch.setattr(_catalog, "_shipped", lambda: changed)
    picture = next(file for file in heart["files"] if file["name"].endswith("tif"))
    others = sum(file["size"] or 0 for file in heart["files"])
    pixels = (9000 / heart["image_mpp"]) ** 2
    assert rg.datasets.references().loc["heart", "estimated_download_gb"] == round((3 * pixels + others) / 1e9, 1)
    picture["size"] = 7_000_000_000
    assert rg.datasets.references().loc["heart", "estimated_download_gb"] == round((7e9 + others) / 1e9, 1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_rest_on_tested_loaders_free_licences_and_an_open_encoder(name):
    recipe, _, _ = read_recipe(name)
    entries = [catalog_entries()[source.dataset] for source in recipe.sources]
    for entry, source in zip(entries, recipe.sources, strict=True):
        assert entry["status"] == "tested" and entry["loader"] in LOADERS
        assert entry["redistribution"] and entry["commercial_use"] and not entry["gated"]
        assert not {"license", "samples", "files"} & set(entry["unverified"])
        assert set(source.samples or entry["samples"]) <= set(entry["samples"])
        # None is enlarged by much, which would cost detail.
        assert entry["image_mpp"] <= 1.05 * recipe.tiles.mpp
    assert len({entry["organ"] for entry in entries}) == len({entry["species"] for entry in entries}) == 1
    assert recipe.encoder.model == "texture"
    assert recipe.fit is not None


def test_an_unknown_name_says_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["build", "brest"]) == 1
    told = capsys.readouterr().err
    assert "brest does not exist" in told and "'mouse_brain', 'prostate'" in told and "Did you mean 'breast'?" in told
    assert list(tmp_path.iterdir()) == []


def test_a_file_goes_before_a_recipe_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart").mkdir()
    assert read_recipe("heart")[0].name == "Human heart"
    (tmp_path / "heart").rmdir()
    (tmp_path / "heart").write_text("version: 1\nname: Mine\nsources: [{folder: x}]\n")
    assert read_recipe("heart")[0].name == "Mine"


@pytest.fixture
def served(server, tmp_path, monkeypatch):
    """Put small files in the place of those of a recipe on the server; gives the catalogue whose addresses lead there."""

    def put(recipe: str) -> Path:
        catalogue = catalog_entries()
        # Genes that the tables of names know; of the made Ensembl ids two are true ones.
        symbols = sorted(name for name in known_names("human") if name.isalnum() and not name.startswith("ENSG"))[:260]
        symbols[3], symbols[5] = "TSPAN6", "TNMD"
        monkeypatch.setattr(layouts, "GENES", symbols)
        writers = {"st_tsv": layouts.write_st, "visium": layouts.write_visium}
        seed = 0
        for source in read_recipe(recipe)[0].sources:
            entry = catalogue[source.dataset]
            for sample in source.samples or entry["samples"]:
                seed += 1
                folder = tmp_path / "made" / sample / f"_{entry['loader'].removesuffix('_tsv')}"
                folder.mkdir(parents=True)
                writers[entry["loader"]](folder, seed=seed)
                for file, content in Deposits(folder.parent).files(entry, sample).items():
                    listed = next(one for one in entry["files"] if one["name"] == file)
                    address = urlsplit(listed["url"])
                    server.files[f"/{address.netloc}{address.path}"] = content
                    listed.update(size=None, sha256=None, url=f"{server.url}/{address.netloc}{address.path}")
        (tmp_path / "catalog.yaml").write_text(yaml.safe_dump(list(catalogue.values())))
        monkeypatch.setattr(_catalog, "_shipped", lambda: catalogue)
        return tmp_path / "catalog.yaml"

    return put


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="builds are forked")
def test_from_build_breast_to_a_predicted_slide(served, server, cache, tmp_path, monkeypatch, capsys):
    import spatialdata as sd

    catalogue = served("breast")
    monkeypatch.chdir(tmp_path)

    def parts() -> dict[Path, int]:
        """When each file of embeddings was written."""
        return {part: part.stat().st_mtime_ns for part in Path("breast.zarr.zip.parts").glob("*/*/part-*.npy")}

    nursery = Nursery(tmp_path, RAGST_TEST_CATALOG=str(catalogue), RAGST_SD_CACHE_DIR=str(cache))
    try:
        # Between two downloads.
        assert nursery.build("breast", step=42) == 9, nursery.log.read_text()
        first = [path for path, _ in server.asked]
        assert 5 < len(first) < len(server.files)
        assert not parts()
        # Between the embeddings of two sections.
        assert nursery.build("breast", step=50) == 9, nursery.log.read_text()
        kept = parts()
        assert kept and not Path("breast.zarr.zip").exists()
        assert nursery.build("breast") == 0, nursery.log.read_text()
        # Only what was not whole was asked for again.
        again = [path for path, _ in server.asked]
        assert set(again) == set(server.files)
        assert len(again) <= len(server.files) + 1
        assert kept.items() <= parts().items()
        n_told = len(nursery.log.read_text())
        assert nursery.build("breast") == 0
        assert "It is built already." in nursery.log.read_text()[n_told:]
    finally:
        nursery.close()
    reference = rg.io.read_reference("breast.zarr.zip")
    assert reference.obs["sample"].nunique() == 10
    donors = set(reference.obs["donor"])
    assert len(donors) == 5
    card = Path("breast.card/README.md").read_text()
    assert "**Licence: CC-BY-4.0**" in card and "@article{her2st," in card and "# Human breast cancer" in card

    tissue, mpp = Tissue(99, period_um=600.0), 0.9
    write_pyramid(Path("slide.svs"), tissue.paint((1600, 1600), affine(mpp)), mpp=mpp)
    assert main(["predict", "slide.svs", "--reference", "breast.zarr.zip"]) == 0, capsys.readouterr()
    predicted = sd.read_zarr("predicted/slide.zarr").tables["predicted"]
    assert set(predicted.uns["retrieval"]["cited"]["donor"]) <= donors
    # Every third gene is one of cellular tissue.
    marked = [gene in layouts.GENES[::3] for gene in predicted.var_names]
    truth = tissue.cellular(np.asarray(predicted.obsm["spatial"]) * mpp)
    assert np.corrcoef(np.asarray(predicted.X)[:, marked].mean(axis=1), truth)[0, 1] > 0.6

    # The same encoder and tiles of another size: the stored embedding is not that of the reference.
    assert main(["embed", "slide.svs"]) == 0
    capsys.readouterr()
    assert main(["predict", "embedded", "--reference", "breast.zarr.zip", "--out", "other"]) == 1
    assert "were made differently (tile_px: 224 against 160; mpp: 0.5 against 0.7)" in capsys.readouterr().out
    assert not Path("other/slide.zarr").exists()


@pytest.mark.slow
def test_what_goes_wrong_while_a_recipe_is_built(served, server, cache, tmp_path, monkeypatch, capsys, reference):
    served("heart")
    monkeypatch.chdir(tmp_path)
    files = dict(server.files)
    # A file that its owner has moved.
    (moved,) = (path for path in files if path.endswith("_image.tif"))
    del server.files[moved]
    assert main(["build", "heart"]) == 1
    told = capsys.readouterr().err
    assert "heart.yaml, line 7: `sources[0]`, section 'V1_Human_Heart': " in told
    assert f"{moved} does not exist (any more): the server answers 404" in told
    assert "put the file (see https://www.10xgenomics.com/" in told
    assert "tenx_visium_human_heart/V1_Human_Heart_image.tif and set RAGST_SD_DATA_DIR=<folder>." in told
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("heart")]
    # A copy of the user's own takes its place; what has arrived stays.
    mirror = tmp_path / "mirror" / "tenx_visium_human_heart"
    mirror.mkdir(parents=True)
    (mirror / Path(moved).name).write_bytes(files[moved])
    monkeypatch.setenv("RAGST_SD_DATA_DIR", str(mirror.parent))
    # A reference of another encoder is there already.
    rg.io.write_reference(reference, "heart.zarr.zip")
    before = Path("heart.zarr.zip").read_bytes()
    assert main(["build", "heart"]) == 1
    told = capsys.readouterr().err
    assert "another recipe" in told and "encoder 'colour'" in told and "--overwrite" in told
    assert Path("heart.zarr.zip").read_bytes() == before
    assert main(["build", "heart", "--overwrite"]) == 0, capsys.readouterr()
    assert sorted(path for path, _ in server.asked) == sorted(files)
    assert rg.io.read_reference("heart.zarr.zip").uns["ragst"]["encoder"]["encoder"] == "texture"
    card = Path("heart.card/README.md").read_text()
    assert "One donor. Nothing can be learned about differences between donors, and no accuracy" in card
